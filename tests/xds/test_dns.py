from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from meshlib.resources.cluster import Cluster
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint, Health, Locality, LocalityEndpoints
from meshlib.runtime.clock import FakeClock
from meshlib.stats import Registry
from meshlib.xds.dns import DnsDriver, Family, resolve
from tests.runtime.manual import ManualWorker
from tests.snapshot.builders import dns_cluster


class World:
    """A driver, a zone file, and lookups that run at once (or when `release` is called)."""

    def __init__(
        self, zone: Mapping[str, tuple[str, ...]], usage: Callable[[str], int] | None = None
    ) -> None:
        self.zone = dict(zone)
        self.clock = FakeClock()
        self.worker = ManualWorker(self.clock)
        self.registry = Registry()
        self.asked: list[tuple[str, Family]] = []
        self.held: list[Callable[[], None]] = []
        self.hold = False
        self.results: list[ClusterLoadAssignment] = []
        self.driver = DnsDriver(
            executor=self.worker,
            clock=self.clock,
            on_resolved=lambda name, assignment: self.results.append(assignment),
            registry=self.registry,
            resolve=self.look_up,
            usage=usage,
            spawn=self.spawn,
        )

    def look_up(self, host: str, family: Family) -> tuple[str, ...]:
        self.asked.append((host, family))
        if host not in self.zone:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return self.zone[host]

    def spawn(self, task: Callable[[], None]) -> None:
        if self.hold:
            self.held.append(task)
        else:
            task()

    def sync(self, *clusters: Cluster) -> None:
        self.driver.sync({cluster.name: cluster for cluster in clusters})
        self.worker.run()

    def count(self, what: str) -> int:
        return self.registry.counter(f"cluster.web.{what}").value

    @property
    def addresses(self) -> list[str]:
        return [endpoint.key for place in self.results[-1].localities for endpoint in place.endpoints]


def test_every_address_of_every_name_is_an_endpoint() -> None:
    world = World({"a": ("10.0.0.1", "10.0.0.2"), "b": ("10.0.0.3", "10.0.0.1")})
    world.sync(dns_cluster("web", "a", "b"))
    assert world.addresses == ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]
    hosts = [endpoint.hostname for endpoint in world.results[-1].localities[0].endpoints]
    assert hosts == ["a", "a", "b"]
    assert world.results[-1].cluster_name == "web"


def test_of_a_logical_name_the_first_address_counts() -> None:
    world = World({"a": ("10.0.0.1", "10.0.0.2")})
    world.sync(dns_cluster("web", "a", logical=True))
    assert world.addresses == ["10.0.0.1:80"]


def test_weight_health_priority_and_locality_are_those_of_the_name() -> None:
    places = (
        LocalityEndpoints(
            locality=Locality(zone="z"),
            weight=7,
            endpoints=(
                Endpoint("a", 81, weight=3, hostname="own"),
                Endpoint("b", 82, health=Health.UNHEALTHY),
                Endpoint("c", 83, health=Health.DEGRADED),
                Endpoint("e", 85, health=Health.DRAINING),
            ),
        ),
        LocalityEndpoints(priority=1, endpoints=(Endpoint("d", 84),)),
    )
    plan = dns_cluster("web")
    plan = dataclasses.replace(
        plan, load_assignment=ClusterLoadAssignment(cluster_name="", localities=places)
    )
    world = World(
        {
            "a": ("10.0.0.1", "10.0.0.2"),
            "b": ("10.0.0.3",),
            "c": ("10.0.0.4",),
            "d": ("::1",),
            "e": ("10.0.0.5",),
        }
    )
    world.sync(plan)
    first, second = world.results[-1].localities
    assert first.endpoints[0] == Endpoint("10.0.0.1", 81, weight=3, hostname="own")
    assert first.weights == (3, 3, 1, 1, 1)
    assert (list(first.unhealthy), list(first.degraded), list(first.draining)) == ([2, 4], [3], [4])
    assert (first.locality.zone, first.weight) == ("z", 7)
    assert (second.priority, second.endpoints[0].key, second.weights) == (1, "[::1]:84", None)


def test_names_are_asked_for_again_and_changes_are_published() -> None:
    world = World({"a": ("10.0.0.1",)})
    world.sync(dns_cluster("web", "a", rate=5))
    world.worker.advance(20)
    assert len(world.asked) == 5
    assert len(world.results) == 1
    world.zone["a"] = ("10.0.0.2",)
    world.worker.advance(5)
    assert world.addresses == ["10.0.0.2:80"]
    world.zone["a"] = ("10.0.0.3", "10.0.0.2")
    world.worker.advance(5)
    world.zone["a"] = ("10.0.0.2", "10.0.0.3")
    world.worker.advance(5)
    assert len(world.results) == 3


def test_a_failure_keeps_what_was_found_and_counts() -> None:
    world = World({"a": ("10.0.0.1",), "b": ("10.0.0.2",)})
    world.sync(dns_cluster("web", "a", "b"))
    del world.zone["a"]
    world.zone["b"] = ("10.0.0.9",)
    world.worker.advance(5)
    assert world.addresses == ["10.0.0.1:80", "10.0.0.9:80"]
    assert (world.count("update_attempt"), world.count("update_success"), world.count("update_failure")) == (
        4,
        3,
        1,
    )


def test_a_name_that_was_never_found_is_a_cluster_without_endpoints() -> None:
    world = World({})
    world.sync(dns_cluster("web", "a"))
    assert world.addresses == []
    world.zone["a"] = ("10.0.0.1",)
    world.worker.advance(5)
    assert world.addresses == ["10.0.0.1:80"]


def test_a_name_that_is_no_name_is_a_failure() -> None:
    world = World({})

    def fail(host: str, family: Family) -> tuple[str, ...]:
        host.encode("idna")
        raise AssertionError(host)

    world.driver._resolve = fail
    world.sync(dns_cluster("web", "a" * 70 + "."))
    assert world.addresses == []
    assert world.count("update_failure") == 1


def test_an_unused_cluster_is_not_asked_for_again_until_it_is_used() -> None:
    used = [0]
    world = World({"a": ("10.0.0.1",)}, usage=lambda name: used[0])
    world.sync(dns_cluster("web", "a"))
    world.worker.advance(1000)
    assert len(world.asked) == 1
    used[0] += 1
    world.worker.advance(5)
    assert len(world.asked) == 2
    world.worker.advance(1000)
    assert len(world.asked) == 2


def test_a_cluster_that_is_gone_is_forgotten() -> None:
    world = World({"a": ("10.0.0.1",)})
    world.hold = True
    world.sync(dns_cluster("web", "a"))
    world.sync()
    for task in world.held:
        task()
    world.worker.advance(100)
    assert world.results == []
    assert len(world.asked) == 1


def test_a_changed_cluster_is_asked_for_at_once_and_keeps_what_is_known() -> None:
    world = World({"a": ("10.0.0.1",)})
    world.sync(dns_cluster("web", "a"))
    del world.zone["a"]
    world.sync(dns_cluster("web", "a", "b"))
    assert world.addresses == ["10.0.0.1:80"]
    world.sync(dns_cluster("web", "b"))
    assert world.addresses == []


def test_only_some_lookups_run_at_the_same_time() -> None:
    names = [f"n{number}" for number in range(20)]
    world = World({name: (f"10.0.0.{number}",) for number, name in enumerate(names)})
    world.hold = True
    world.sync(dns_cluster("web", *names))
    assert len(world.held) == 8
    while world.held:
        world.held.pop()()
        world.worker.run()
    assert len(world.addresses) == 20


def test_the_family_is_the_clusters() -> None:
    world = World({"a": ("10.0.0.1",)})
    plain = dns_cluster("web", "a")
    world.sync(plain)
    world.sync(dataclasses.replace(plain, dns_ipv4_only=True))
    world.sync(dataclasses.replace(plain, dns_ipv6_only=True))
    families = [family for _, family in world.asked]
    assert families == [socket.AF_UNSPEC, socket.AF_INET, socket.AF_INET6]


def test_the_systems_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("127.0.0.1", socket.AF_INET) == ("127.0.0.1",)
    assert resolve("::1", socket.AF_INET6) == ("::1",)

    def both(*arguments: Any) -> list[Any]:
        four = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))
        six = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00::1", 0, 0, 0))
        return [four, four, six] if arguments[2] == socket.AF_UNSPEC else [four]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    assert resolve("a", socket.AF_UNSPEC) == ("fd00::1",)
    assert resolve("a", socket.AF_INET) == ("10.0.0.1",)
