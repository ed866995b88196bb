"""Make before break: the connection that takes the place of one whose certificate was renewed.

It is opened while calls go on over its predecessor, and exchanged for it once it is open, so no call waits for a handshake. It
counts as a connection of its own from its beginning, as one of Envoy's that drains and its heir do. Where that is one too many,
and where nobody uses the predecessor, there is none: the predecessor takes no new calls, and the next one opens a connection
and waits for it. One that can't be opened is given up, and its predecessor goes on for as long as it may.

The transports decide when a connection is to be exchanged (`meshlib.policy.rotation`), and open its successor.
"""

from __future__ import annotations

from meshlib.engine.actions import Start
from meshlib.engine.program import Program
from meshlib.state import ClusterState, EndpointState, Permits

__all__ = ["successor_of"]


def successor_of(
    program: Program, state: ClusterState, endpoint: EndpointState, permits: Permits, authority: str
) -> Start | None:
    """What opens it, by the configuration of now. None: the cluster or the endpoint has left, or `max_connections` is reached.

    permits: where the predecessor is counted. The permit is taken, as for an attempt that was admitted.
    """
    cluster = program.clusters.get(state.name)
    if cluster is None or cluster.state is not state or endpoint.departed:
        return None
    if not state.connect_beside(endpoint, permits):
        return None
    return Start(0, endpoint, cluster.cluster, state, permits, authority, "", None, permitted=True)
