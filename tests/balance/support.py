"""Clusters of plain hosts, and what a balancer picks from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from meshlib import proto
from meshlib.balance.balancer import LoadBalancer
from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.decode_endpoint import decode_load_assignment
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint, Locality, LocalityEndpoints
from meshlib.resources.reader import Reading
from meshlib.state import ClusterState
from meshlib.stats import Registry

__all__ = ["Balanced", "hosts", "key", "locality", "wire"]


def key(number: int) -> str:
    return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:80"


def hosts(first: int, count: int, weights: Sequence[int] = ()) -> tuple[Endpoint, ...]:
    return tuple(
        Endpoint(key(number).removesuffix(":80"), 80, weight=weights[index] if weights else 1)
        for index, number in enumerate(range(first, first + count))
    )


def locality(
    first: int,
    count: int,
    *,
    bad: int = 0,
    degraded: int = 0,
    draining: int = 0,
    weights: Sequence[int] = (),
    **fields: Any,
) -> LocalityEndpoints:
    """Hosts first .. first+count-1: the last `bad` are unhealthy, before them stand `degraded` degraded ones.

    draining: so many of the bad ones, the last, are not counted.
    """
    return LocalityEndpoints(
        locality=Locality(zone=str(first)),
        endpoints=hosts(first, count, weights),
        unhealthy=tuple(range(count - bad, count)),
        degraded=tuple(range(count - bad - degraded, count - bad)),
        draining=tuple(range(count - draining, count)),
        weights=list(weights) if len(set(weights)) > 1 else None,
        **fields,
    )


def wire(count: int, *, first: int = 0, ipv6: bool = False) -> ClusterLoadAssignment:
    """An assignment decoded from its bytes, as xDS brings it."""
    message = proto.message("envoy.config.endpoint.v3.ClusterLoadAssignment")(cluster_name="c")
    group = message.endpoints.add()
    for number in range(first, first + count):
        address = group.lb_endpoints.add().endpoint.address.socket_address
        address.address = f"fd00::{number:x}" if ipv6 else key(number).removesuffix(":80")
        address.port_value = 80
    return decode_load_assignment(message.SerializeToString(), Reading())


@dataclass
class Balanced:
    """A balancer over these localities. `counts(n)` picks n times."""

    localities: Sequence[LocalityEndpoints]
    fields: dict[str, Any] = field(default_factory=dict)
    assignment: dict[str, Any] = field(default_factory=dict)
    seed: int = 1
    state: ClusterState = field(default_factory=lambda: ClusterState("c", Registry()))

    def __post_init__(self) -> None:
        self.balancer = self.again(self.localities)

    def again(self, localities: Sequence[LocalityEndpoints]) -> LoadBalancer:
        """The balancer of the next push, on the same state."""
        load = ClusterLoadAssignment(cluster_name="c", localities=tuple(localities), **self.assignment)
        cluster = Cluster(name="c", discovery=DiscoveryType.STATIC, **self.fields)
        self.balancer = LoadBalancer(cluster, load, self.state, Random(self.seed))
        return self.balancer

    def pick(self) -> str | None:
        endpoint = self.balancer.pick(0.0)
        return None if endpoint is None else endpoint.key

    def counts(self, times: int) -> Counter[str | None]:
        return Counter(self.pick() for _ in range(times))

    def eject(self, number: int, ejected: bool = True) -> None:
        name = key(number)
        endpoint = self.state.endpoint(name, name.removesuffix(":80"), 80)
        endpoint.ejected = ejected
        self.balancer.refresh()
