"""The state of one endpoint of one cluster."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from meshlib.resources.metadata import NO_METADATA, Scalar
from meshlib.state.waiter import Waiter
from meshlib.state.way import HTTP1, Way

__all__ = ["EndpointState"]


class EndpointState:
    """What is known of an endpoint beyond its configuration. Changed only under the lock of its ClusterState, but for `active`.

    key: `ip:port`. active: requests in flight, of every transport of the process. connections: open ones, idle ones
    included. waiters: calls that wait for one of them, first come first served.
    consecutive_5xx, ejected, ejected_at (monotonic seconds), ejection_multiplier belong to outlier detection.
    metadata: of the transport socket (`tls.select_tls`), as the latest assignment gives it. way: how a connection to it is made
    now. workload: who it is, as the latest assignment gives it (`Endpoint.workload`).
    departed: the endpoint has left the assignment; its idle connections are to be closed.
    """

    __slots__ = (
        "active",
        "address",
        "connections",
        "consecutive_5xx",
        "departed",
        "ejected",
        "ejected_at",
        "ejection_jitter",
        "ejection_multiplier",
        "hostname",
        "key",
        "metadata",
        "port",
        "waiters",
        "way",
        "workload",
    )

    def __init__(self, key: str, address: str, port: int, hostname: str = "") -> None:
        self.key = key
        self.address = address
        self.port = port
        self.hostname = hostname
        self.active = 0
        self.connections = 0
        self.waiters: deque[Waiter] = deque()
        self.consecutive_5xx = 0
        self.ejected = False
        self.ejected_at = 0.0
        self.ejection_jitter = 0.0
        self.ejection_multiplier = 0
        self.departed = False
        self.metadata: Mapping[str, Scalar] = NO_METADATA
        self.way: Way = HTTP1
        self.workload = ""

    @property
    def in_use(self) -> bool:
        """Whether a request, a connection or a waiting call has it."""
        return bool(self.active or self.connections or self.waiters)

    def __repr__(self) -> str:
        return f"<EndpointState {self.key} active={self.active} ejected={self.ejected}>"
