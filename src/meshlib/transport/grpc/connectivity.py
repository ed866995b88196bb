"""What `grpc.ChannelConnectivity` says of a mesh channel: whether the configuration has a place for its calls.

| state | when |
|---|---|
| IDLE | nothing has been asked of the control plane yet |
| CONNECTING | the Listener, its routes, its clusters or their endpoints are awaited |
| READY | one of the clusters that its routes name has an endpoint |
| TRANSIENT_FAILURE | the Listener does not exist, or no cluster has an endpoint |
| SHUTDOWN | the channel, or the Mesh, is closed |

Connections are opened by calls; a channel that is READY may have none yet.
"""

from __future__ import annotations

import grpc

from meshlib.engine.engine import Engine
from meshlib.engine.program import Program
from meshlib.snapshot import Kind

__all__ = ["state_of"]

States = grpc.ChannelConnectivity


def state_of(engine: Engine, target: str, program: Program, *, connect: bool) -> grpc.ChannelConnectivity:
    """connect: ask the control plane for what is missing."""
    if engine.closed:
        return States.SHUTDOWN
    if connect:
        engine.start()
    name = engine.listener_name(target)
    listener = program.find(name)
    if listener is None:
        awaited = program.snapshot.pending(Kind.LISTENER, name)
        if not awaited:
            return States.TRANSIENT_FAILURE
        if connect:
            engine.awaits_listener(name)
        return States.CONNECTING if connect else States.IDLE
    if listener.config is None:
        return States.CONNECTING if listener.awaited else States.TRANSIENT_FAILURE
    awaited = False
    for cluster_name in listener.config.cluster_names:
        cluster = program.clusters.get(cluster_name)
        if cluster is None:
            awaited = awaited or program.snapshot.pending(Kind.CLUSTER, cluster_name)
        elif cluster.awaited:
            awaited = True
        elif cluster.balancer.size:
            return States.READY
    return States.CONNECTING if awaited else States.TRANSIENT_FAILURE
