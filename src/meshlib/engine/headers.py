"""The headers that Envoy adds and removes by itself, apart from what the configuration asks for.

`headers="none"` skips all of this but the attempt count, which a virtual host asks for. `headers="envoy"` does what Envoy's
connection manager and router do, so that a service behind it sees the same request.
"""

from __future__ import annotations

from random import Random

from meshlib.resources.listener import HttpConnectionManager
from meshlib.routing.request import Headers, RequestView

__all__ = [
    "ALT_RESPONSE",
    "ATTEMPT_COUNT",
    "CONSUMED",
    "EXPECTED_TIMEOUT",
    "HEDGE",
    "HOP_BY_HOP",
    "IS_TIMEOUT_RETRY",
    "REQUEST_ID",
    "SERVICE_TIME",
    "STEERING",
    "arriving",
    "echoed",
    "new_request_id",
    "set_header",
    "shadow_host",
]

STEERING = frozenset(
    "x-envoy-" + name
    for name in (
        "expected-rq-timeout-ms",
        "force-trace",
        "hedge-on-per-try-timeout",
        "internal",
        "ip-tags",
        "max-retries",
        "original-url",
        "retriable-header-names",
        "retriable-status-codes",
        "retry-grpc-on",
        "retry-on",
        "upstream-alt-stat-name",
        "upstream-rq-per-try-timeout-ms",
        "upstream-rq-timeout-alt-response",
        "upstream-rq-timeout-ms",
        "upstream-stream-duration-ms",
    )
)
"""Request headers that steer the mesh. From a caller that is not trusted Envoy removes them before it looks at anything."""

CONSUMED = frozenset(
    "x-envoy-" + name
    for name in (
        "hedge-on-per-try-timeout",
        "max-retries",
        "retriable-header-names",
        "retriable-status-codes",
        "retry-grpc-on",
        "retry-on",
        "upstream-rq-per-try-timeout-ms",
        "upstream-rq-timeout-alt-response",
        "upstream-rq-timeout-ms",
        "upstream-stream-duration-ms",
    )
)
"""Steering headers of a trusted caller that Envoy's router reads and does not pass on."""

HOP_BY_HOP = frozenset(("connection", "keep-alive", "proxy-connection", "upgrade"))

BODILESS = frozenset(("GET", "HEAD", "DELETE", "CONNECT", "TRACE"))
"""Methods whose requests without a body go out without `content-length: 0`."""

ALT_RESPONSE = "x-envoy-upstream-rq-timeout-alt-response"
ATTEMPT_COUNT = "x-envoy-attempt-count"
EXPECTED_TIMEOUT = "x-envoy-expected-rq-timeout-ms"
HEDGE = "x-envoy-hedge-on-per-try-timeout"
IS_TIMEOUT_RETRY = "x-envoy-is-timeout-retry"
REQUEST_ID = "x-request-id"
SERVICE_TIME = "x-envoy-upstream-service-time"


def arriving(
    request: RequestView, manager: HttpConnectionManager, random: Random, *, trusted: bool
) -> RequestView:
    """The request as Envoy's connection manager hands it to routing: steering removed, scheme and request id added."""
    dropped = HOP_BY_HOP if trusted else HOP_BY_HOP | STEERING
    headers = [
        pair
        for pair in request.headers
        if pair[0] not in dropped and (pair[0] != "te" or pair[1] == "trailers")
    ]
    names = {name for name, _ in headers}
    if request.method not in BODILESS and not names & {"content-length", "transfer-encoding"}:
        headers.append(("content-length", "0"))
    if trusted and "x-envoy-internal" not in names:
        headers.append(("x-envoy-internal", "true"))
    if "x-forwarded-proto" not in names:
        headers.append(("x-forwarded-proto", request.scheme))
    if manager.generate_request_id and REQUEST_ID not in names:
        headers.append((REQUEST_ID, new_request_id(random)))
    return RequestView(
        method=request.method,
        scheme=request.scheme,
        authority=request.authority,
        path=request.path,
        headers=headers,
        target=request.target,
        channel_id=request.channel_id,
    )


def echoed(request: RequestView, manager: HttpConnectionManager) -> Headers:
    """The headers that every response of this listener gets: the request's id, with always_set_request_id_in_response."""
    identity = request.first(REQUEST_ID) if manager.always_set_request_id_in_response else None
    return [] if identity is None else [(REQUEST_ID, identity)]


def set_header(headers: Headers, name: str, value: str) -> None:
    """Replace the header in place, or add it at the end."""
    for index, (key, _) in enumerate(headers):
        if key == name:
            headers[index] = (name, value)
            return
    headers.append((name, value))


def shadow_host(authority: str) -> str:
    """The Host of a mirrored request: `-shadow` before the port."""
    host, colon, port = authority.rpartition(":")
    if colon and port.isdigit() and not host.endswith(":"):
        return f"{host}-shadow:{port}"
    return authority + "-shadow"


def new_request_id(random: Random) -> str:
    """A UUID of version 4."""
    bits = random.getrandbits(128) & ~(0xF << 76) & ~(0x3 << 62) | (4 << 76) | (2 << 62)
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
