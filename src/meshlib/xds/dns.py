"""Endpoints from DNS, for the clusters that ask for it.

STRICT_DNS: every address of every name is an endpoint, with the weight, health, priority and locality that the load assignment
gives to the name. LOGICAL_DNS: the first address is the only endpoint. A name is asked again every `dns_refresh_rate` seconds,
but only when the cluster was used since the last time: an idle process asks nothing. A lookup that fails leaves the addresses
that were found last; a cluster whose names were never found has no endpoints. (Envoy differs in one point: there, an answer
without addresses empties a STRICT_DNS cluster.)

Everything runs on the given executor, except the lookups, which may block for long: each has a short-lived thread.
"""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping

from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.endpoint import OUT, ClusterLoadAssignment, Endpoint, Health, LocalityEndpoints
from meshlib.runtime.clock import Clock
from meshlib.runtime.threads import Executor, Timer
from meshlib.stats import Registry

__all__ = ["DnsDriver", "Family", "Resolve", "is_dns", "resolve"]

LOOKUPS = 8
"""Lookups at the same time."""

Family = socket.AddressFamily
Resolve = Callable[[str, Family], tuple[str, ...]]
"""From a name to its addresses, in order of preference; AF_UNSPEC asks for both families. Raises OSError."""

Spawn = Callable[[Callable[[], None]], None]


def resolve(host: str, family: Family) -> tuple[str, ...]:
    """By the system's resolver. AF_UNSPEC is Envoy's AUTO: IPv6 addresses, and only without any the IPv4 ones."""
    found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    addresses = dict.fromkeys((kind, str(address[0])) for kind, _, _, _, address in found)
    six = tuple(address for kind, address in addresses if kind == socket.AF_INET6)
    return six or tuple(address for _, address in addresses)


def _spawn(task: Callable[[], None]) -> None:
    threading.Thread(target=task, name="meshlib-dns", daemon=True).start()


class _Watch:
    """One cluster: what was found for each of its names, and when it is asked for again."""

    __slots__ = ("assignment", "cluster", "found", "missing", "timer", "used")

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.found: dict[str, tuple[str, ...]] = {}
        self.missing: set[str] = set()
        self.assignment: ClusterLoadAssignment | None = None
        self.timer: Timer | None = None
        self.used = -1


class DnsDriver:
    """See the module's text. on_resolved: gets a cluster's endpoints, when they are first known and when they change.

    usage: how often a cluster was used so far (a counter); None: every cluster counts as used. All methods are for the
    executor's thread.
    """

    def __init__(
        self,
        *,
        executor: Executor,
        clock: Clock,
        on_resolved: Callable[[str, ClusterLoadAssignment], None],
        registry: Registry,
        resolve: Resolve = resolve,
        usage: Callable[[str], int] | None = None,
        spawn: Spawn = _spawn,
    ) -> None:
        self._executor = executor
        self._clock = clock
        self._on_resolved = on_resolved
        self._registry = registry
        self._resolve = resolve
        self._usage = usage
        self._spawn = spawn
        self._watches: dict[str, _Watch] = {}
        self._queue: deque[tuple[_Watch, str]] = deque()
        self._running = 0

    def sync(self, clusters: Mapping[str, Cluster]) -> None:
        """Watch exactly these clusters. A cluster that changed is asked for at once and keeps what is known."""
        for name in [name for name in self._watches if name not in clusters]:
            self._stop(self._watches.pop(name))
        for name, cluster in clusters.items():
            watch = self._watches.get(name)
            if watch is None:
                self._watches[name] = watch = _Watch(cluster)
            elif watch.cluster is cluster:
                continue
            else:
                watch.cluster = cluster
            self._refresh(watch)

    def close(self) -> None:
        """Start no further lookup."""
        self.sync({})
        self._queue.clear()

    def _stop(self, watch: _Watch) -> None:
        if watch.timer is not None:
            watch.timer.cancel()
        watch.missing.clear()

    def _refresh(self, watch: _Watch) -> None:
        self._stop(watch)
        watch.used = self._usage(watch.cluster.name) if self._usage is not None else -1
        names = _names(watch.cluster)
        watch.found = {name: found for name, found in watch.found.items() if name in names}
        watch.missing.update(names)
        self._queue.extend((watch, name) for name in names)
        "".encode(
            "idna"
        )  # loads the codec here: a fork in the middle of an import in a lookup's thread would break it
        if not names:
            self._complete(watch)
        self._fill()

    def _fill(self) -> None:
        while self._queue and self._running < LOOKUPS:
            watch, name = self._queue.popleft()
            if name in watch.missing:
                self._running += 1
                self._count(watch, "update_attempt")
                self._spawn(lambda watch=watch, name=name: self._look_up(watch, name))  # type: ignore[misc]

    def _look_up(self, watch: _Watch, name: str) -> None:
        """On a thread of its own."""
        try:
            found: tuple[str, ...] = self._resolve(name, _family(watch.cluster))
        except (OSError, UnicodeError):
            found = ()
        self._executor.post(lambda: self._looked_up(watch, name, found))

    def _looked_up(self, watch: _Watch, name: str, found: tuple[str, ...]) -> None:
        self._running -= 1
        if name in watch.missing:
            watch.missing.discard(name)
            self._count(watch, "update_success" if found else "update_failure")
            if found and set(found) != set(watch.found.get(name, ())):
                watch.found[name] = found
            if not watch.missing:
                self._complete(watch)
        self._fill()

    def _complete(self, watch: _Watch) -> None:
        assignment = _assignment(watch.cluster, watch.found)
        if assignment != watch.assignment:
            watch.assignment = assignment
            self._on_resolved(watch.cluster.name, assignment)
        self._later(watch)

    def _later(self, watch: _Watch) -> None:
        due = self._clock.monotonic() + watch.cluster.dns_refresh_rate
        watch.timer = self._executor.call_at(due, lambda: self._due(watch))

    def _due(self, watch: _Watch) -> None:
        if self._usage is None or self._usage(watch.cluster.name) != watch.used:
            self._refresh(watch)
        else:
            self._later(watch)

    def _count(self, watch: _Watch, what: str) -> None:
        self._registry.scope("cluster", ("envoy_cluster_name", watch.cluster.name)).counter(what).value += 1


def is_dns(cluster: Cluster) -> bool:
    """The cluster's endpoints come from DNS."""
    return cluster.discovery in (DiscoveryType.STRICT_DNS, DiscoveryType.LOGICAL_DNS)


def _family(cluster: Cluster) -> Family:
    if cluster.dns_ipv4_only:
        return socket.AF_INET
    return socket.AF_INET6 if cluster.dns_ipv6_only else socket.AF_UNSPEC


def _names(cluster: Cluster) -> dict[str, None]:
    """Each name to resolve, once."""
    assert cluster.load_assignment is not None
    localities = cluster.load_assignment.localities
    return dict.fromkeys(endpoint.address for locality in localities for endpoint in locality.endpoints)


def _assignment(cluster: Cluster, found: Mapping[str, tuple[str, ...]]) -> ClusterLoadAssignment:
    """The cluster's load assignment with addresses in place of names; an address that comes up twice counts once."""
    assert cluster.load_assignment is not None
    single = cluster.discovery is DiscoveryType.LOGICAL_DNS
    seen: set[str] = set()
    localities = []
    for locality in cluster.load_assignment.localities:
        endpoints: list[Endpoint] = []
        for endpoint in locality.endpoints:
            for address in found.get(endpoint.address, ())[: 1 if single else None]:
                hostname = endpoint.hostname or endpoint.address
                resolved = dataclasses.replace(endpoint, address=address, hostname=hostname)
                if resolved.key not in seen:
                    seen.add(resolved.key)
                    endpoints.append(resolved)
        localities.append(_locality(locality, tuple(endpoints)))
    return dataclasses.replace(
        cluster.load_assignment, cluster_name=cluster.name, localities=tuple(localities)
    )


def _locality(locality: LocalityEndpoints, endpoints: tuple[Endpoint, ...]) -> LocalityEndpoints:
    weights = tuple(endpoint.weight for endpoint in endpoints)
    return dataclasses.replace(
        locality,
        endpoints=endpoints,
        unhealthy=tuple(i for i, endpoint in enumerate(endpoints) if endpoint.health in OUT),
        degraded=tuple(i for i, endpoint in enumerate(endpoints) if endpoint.health is Health.DEGRADED),
        draining=tuple(i for i, endpoint in enumerate(endpoints) if endpoint.health is Health.DRAINING),
        weights=weights if len(set(weights)) > 1 else None,
    )
