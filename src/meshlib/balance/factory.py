"""The load balancer of a cluster, by its policy."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from meshlib.balance.balancer import LoadBalancer, no_pause
from meshlib.balance.hashing import HashingLoadBalancer
from meshlib.resources.cluster import Cluster, HashingConfig
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.state import ClusterState

__all__ = ["make_balancer"]


def make_balancer(
    cluster: Cluster,
    assignment: ClusterLoadAssignment | None,
    state: ClusterState,
    random: Random,
    *,
    previous: LoadBalancer | None = None,
    pause: Callable[[], None] = no_pause,
    defer: Callable[[Callable[[], None]], None] | None = None,
) -> LoadBalancer:
    """The balancer for this version of the cluster and its endpoints.

    previous: the one before, of which what is still right is taken over. pause: called between slices of long work.
    defer: runs a task on the publishing thread a little later, None where there is none.
    """
    if isinstance(cluster.lb_policy, HashingConfig):
        return HashingLoadBalancer(
            cluster, assignment, state, random, previous=previous, pause=pause, defer=defer
        )
    return LoadBalancer(cluster, assignment, state, random, pause=pause)
