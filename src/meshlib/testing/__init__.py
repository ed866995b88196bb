"""For tests of applications that use meshlib: a control plane in the process and upstreams that do as they are told.

upstream = Upstream([Reply(status=503)], default=Reply(body=b"hello"))
with upstream, serve(service("reviews", upstream.address)) as control_plane:
    with meshlib.Mesh(bootstrap=control_plane.bootstrap()) as mesh:
        ...
"""

from __future__ import annotations

from meshlib.controlplane import Answer, ControlPlane, ResourceStore
from meshlib.testing.config import messages, serve, service
from meshlib.testing.upstream import Behaviour, Close, Drip, Hang, Reply, Request, Reset, Upstream

__all__ = [
    "Answer",
    "Behaviour",
    "Close",
    "ControlPlane",
    "Drip",
    "Hang",
    "Reply",
    "Request",
    "Reset",
    "ResourceStore",
    "Upstream",
    "messages",
    "serve",
    "service",
]
