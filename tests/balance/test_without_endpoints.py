"""A cluster whose assignment is awaited, or has nothing in it."""

from __future__ import annotations

from random import Random

import pytest

from meshlib.balance.balancer import LoadBalancer
from meshlib.balance.priorities import Loads, spread
from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.state import StateStore
from meshlib.stats import Registry


def test_no_priorities_get_no_load() -> None:
    assert spread([]) == Loads((), (), ())


@pytest.mark.parametrize("assignment", [None, ClusterLoadAssignment(cluster_name="c")])
def test_a_cluster_without_endpoints_picks_nothing(assignment: ClusterLoadAssignment | None) -> None:
    state = StateStore(Registry()).cluster("c")
    balancer = LoadBalancer(Cluster(name="c", discovery=DiscoveryType.EDS), assignment, state, Random(1))
    assert balancer.pick(0.0) is None
    assert balancer.size == 0
