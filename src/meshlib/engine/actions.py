"""What the engine tells a transport to do. A transport carries actions out in order and decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

from meshlib.errors import LocalReply, MeshError
from meshlib.resources.cluster import Cluster
from meshlib.routing.request import Headers
from meshlib.state import ClusterState, EndpointState, Permits, Waiter

__all__ = [
    "Accept",
    "Action",
    "CancelAttempt",
    "Connect",
    "Fail",
    "Mirror",
    "Park",
    "Reply",
    "SideCall",
    "Start",
]


class Start:
    """Send the request to `endpoint` as attempt number `attempt` (1, 2, ...).

    authority, path: what to send (rewritten where the route says so). headers: the complete request headers, lower-case
    names, without Host; None: the application's own, unchanged. If the pool has a free connection and `permitted` is true,
    use it at once; if `permitted` is false report Connected first; without a free connection report NeedConnection.
    extra: headers to send after those (trace context); lower-case names that are not among them.
    state, permits: whom the pool tells that a connection is gone (`state.connection_closed(endpoint, permits)`).
    """

    __slots__ = (
        "attempt",
        "authority",
        "cluster",
        "endpoint",
        "extra",
        "headers",
        "path",
        "permits",
        "permitted",
        "state",
    )

    def __init__(
        self,
        attempt: int,
        endpoint: EndpointState,
        cluster: Cluster,
        state: ClusterState,
        permits: Permits,
        authority: str,
        path: str,
        headers: Headers | None,
        permitted: bool,
        extra: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.attempt = attempt
        self.endpoint = endpoint
        self.cluster = cluster
        self.state = state
        self.permits = permits
        self.authority = authority
        self.path = path
        self.headers = headers
        self.permitted = permitted
        self.extra = extra


class Connect:
    """Open a connection for the attempt within the cluster's connect_timeout, or use the one that the waiter was handed.

    The new connection is counted already: the pool reports `connection_closed` when it ends, also when it never opened.
    """

    __slots__ = ("attempt", "connection")

    def __init__(self, attempt: int, connection: object | None = None) -> None:
        self.attempt = attempt
        self.connection = connection


class CancelAttempt:
    """Give the attempt up: reset its stream or close its connection. No event follows.

    A connection with nothing sent on it, or with a complete response, goes back to the pool; so does the one that a parked
    attempt's waiter was handed.
    """

    __slots__ = ("attempt",)

    def __init__(self, attempt: int) -> None:
        self.attempt = attempt


class Accept:
    """The response of this attempt is the answer. headers: the edited response headers; None: as they came."""

    __slots__ = ("attempt", "headers")

    def __init__(self, attempt: int, headers: Headers | None = None) -> None:
        self.attempt = attempt
        self.headers = headers


class Park:
    """Wait for `wake` or for `wake_at`. waiter: the place in an endpoint's queue, None when configuration is awaited."""

    __slots__ = ("attempt", "waiter")

    def __init__(self, attempt: int | None = None, waiter: Waiter | None = None) -> None:
        self.attempt = attempt
        self.waiter = waiter


class SideCall:
    """A filter needs an answer from elsewhere (rate limit service, external authorization) before the call goes on."""

    __slots__ = ("request", "service", "side")

    def __init__(self, side: int, service: str, request: object) -> None:
        self.side = side
        self.service = service
        self.request = request


class Mirror:
    """Send a copy of the request to `endpoint` and forget it: no event comes back but End or Failed for `attempt`."""

    __slots__ = ("start",)

    def __init__(self, start: Start) -> None:
        self.start = start


class Reply:
    """The configuration answers by itself: a direct response or a redirect."""

    __slots__ = ("reply",)

    def __init__(self, reply: LocalReply) -> None:
        self.reply = reply


class Fail:
    """The call is over without an upstream's answer. error.local_reply is what Envoy would have answered.

    After Accept: the response body is cut here.
    """

    __slots__ = ("error",)

    def __init__(self, error: MeshError) -> None:
        self.error = error


Action = Start | Connect | CancelAttempt | Accept | Park | SideCall | Mirror | Reply | Fail
