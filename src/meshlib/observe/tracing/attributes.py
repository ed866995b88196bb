"""What spans say of a call and of its attempts: OpenTelemetry's HTTP and RPC conventions, Envoy's tags, and meshlib's own words.

HTTP (stable) and RPC (release candidate, with `rpc.response.status_code`) in the form of semantic conventions 1.44. `server.*` is
the logical name that the application asked for, `network.peer.*` the endpoint that was picked. Envoy's tags are on the call's
span under Envoy's own names, so that dashboards made for a sidecar find them.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Status, StatusCode

from meshlib.errors import MeshError
from meshlib.resources.route import PathKind

if TYPE_CHECKING:
    from meshlib.engine.attempt import Attempt
    from meshlib.engine.call import Call
    from meshlib.routing.compiled import CompiledRoute
    from meshlib.routing.request import RequestView
    from meshlib.snapshot import Snapshot

__all__ = [
    "GRPC_CODES",
    "SCHEMA",
    "asked",
    "attempt_attributes",
    "attempt_ended",
    "call_attributes",
    "call_ended",
    "name_of",
    "redacted",
    "server_of",
    "sound",
]

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"

Attributes = dict[str, Any]

ERROR = Status(StatusCode.ERROR)

METHODS = frozenset(
    os.environ.get(
        "OTEL_INSTRUMENTATION_HTTP_KNOWN_METHODS",
        "CONNECT,DELETE,GET,HEAD,OPTIONS,PATCH,POST,PUT,QUERY,TRACE",
    ).split(",")
)
"""Those that are named; any other is `_OTHER`."""

_CODES = (
    "OK CANCELLED UNKNOWN INVALID_ARGUMENT DEADLINE_EXCEEDED NOT_FOUND ALREADY_EXISTS PERMISSION_DENIED RESOURCE_EXHAUSTED"
    " FAILED_PRECONDITION ABORTED OUT_OF_RANGE UNIMPLEMENTED INTERNAL UNAVAILABLE DATA_LOSS UNAUTHENTICATED"
)
GRPC_CODES = tuple(_CODES.split())

_SECRET = re.compile(
    r"([?&](?:X-Amz-Signature|X-Amz-Credential|X-Amz-Security-Token|AWSAccessKeyId|Signature|sig|X-Goog-Signature)=)[^&#]*"
)


def name_of(request: RequestView, route: CompiledRoute | None, *, rpc: bool) -> str:
    """`GET`, or `GET /users` where the route names one path; of an RPC its method. A decorator's operation stands instead."""
    if route is not None and route.resource.operation:
        return route.resource.operation
    if rpc:
        return sound(request.path[1:]) or "grpc"
    method = request.method if request.method in METHODS else "HTTP"
    if route is not None:
        path = route.resource.match.path
        if path.kind is PathKind.PATH:
            return f"{method} {path.value}"
    return method


def redacted(path: str) -> str:
    """The path with the query, without the values of parameters that are signatures."""
    path = sound(path)
    return _SECRET.sub(r"\1REDACTED", path) if "?" in path else path


def sound(text: str) -> str:
    """Without what is no UTF-8: an exporter would drop the whole batch for it."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def server_of(target: str) -> tuple[str, int | None]:
    """`host` and port of `host:port`; the whole target where it is not of that form."""
    host, colon, port = target.rpartition(":")
    if colon and port.isdigit():
        return host.removeprefix("[").removesuffix("]"), int(port)
    return target, None


_servers: dict[str, tuple[str, int | None]] = {}


def _server(attributes: Attributes, target: str) -> None:
    known = _servers.get(target)
    if known is None:
        if len(_servers) >= 4096:
            _servers.clear()
        known = _servers[target] = server_of(target)
    attributes["server.address"], port = known
    if port is not None:
        attributes["server.port"] = port


def asked(call: Call, *, rpc: bool) -> Attributes:
    """What the spans of the call and of its attempts have in common. The configuration may say how long a path may be."""
    request = call.request
    attributes: Attributes
    if rpc:
        attributes = {"rpc.system.name": "grpc", "rpc.method": sound(request.path[1:])}
    else:
        method = request.method
        known = method in METHODS
        attributes = {
            "http.request.method": method if known else "_OTHER",
            "url.full": _url(call, request.authority, request.path),
        }
        if not known:
            attributes["http.request.method_original"] = method
    _server(attributes, request.target)
    return attributes


def _url(call: Call, authority: str, path: str) -> str:
    path, listener = redacted(path), call.listener
    tracing = None if listener is None else listener.listener.http.tracing
    if tracing is not None:
        path = path[: tracing.max_path_tag_length]
    return f"{call.request.scheme}://{sound(authority)}{path}"


def call_attributes(call: Call, common: Attributes) -> Attributes:
    """Known when the call is routed: samplers see these. common: what was `asked`."""
    attributes = common.copy()
    route = call.route
    if route is not None:
        attributes["meshlib.virtual_host"] = route.virtual_host.name
        attributes["meshlib.route_config"] = route.config.name
        if route.index >= 0:
            attributes["meshlib.route"] = route.resource.name or str(route.index)
    return attributes


def attempt_attributes(call: Call, attempt: Attempt, common: Attributes, *, rpc: bool) -> Attributes:
    """Known when its endpoint has been picked. common: what was `asked`."""
    endpoint = attempt.endpoint
    attributes = common.copy()
    attributes["network.peer.address"] = endpoint.address
    if endpoint.port:
        attributes["network.peer.port"] = endpoint.port
    attributes["upstream_cluster"] = attempt.cluster.cluster.name
    if endpoint.way.security is not None:
        attributes["meshlib.tls"] = True
    if attempt.number > 1:
        _resent(attributes, call, attempt, rpc=rpc)
    return attributes


def _resent(attributes: Attributes, call: Call, attempt: Attempt, *, rpc: bool) -> None:
    attributes["previous-rpc-attempts" if rpc else "http.request.resend_count"] = attempt.number - 1
    before = call.attempts[attempt.number - 2]
    if before.over_at is None:
        attributes["meshlib.hedged"] = True
        attributes["meshlib.retry.reason"] = "per try timeout"
    else:
        attributes["meshlib.retry.reason"] = before.failure or str(before.status)


def attempt_ended(call: Call, attempt: Attempt, attributes: Attributes, *, rpc: bool) -> Status | None:
    """Adds what is known of its end. The status of its span, None to leave it unset."""
    if attempt.number == call.accepted:
        attributes["network.protocol.version"] = "2" if call.protocol == "HTTP/2" else "1.1"
        request, path, authority = call.request, call.path_sent, call.authority_sent
        if not rpc and (path != request.path or authority != request.authority):
            attributes["url.full"] = _url(call, authority, path)
        return _outcome(call, attributes, rpc=rpc)
    if attempt.failure is not None:
        if attempt.failure == "cancelled":
            return None
        attributes["error.type"] = attempt.failure.replace(" ", "_")
        return Status(StatusCode.ERROR, attempt.failure)
    status = attempt.status or 0
    if rpc:  # the status of gRPC is not kept of an attempt that is tried again
        if status != 200:
            attributes["http.response.status_code"] = status
        attributes["error.type"] = str(status) if status != 200 else "_OTHER"
        return ERROR
    attributes["http.response.status_code"] = status
    if status >= 400:
        attributes["error.type"] = str(status)
        return ERROR
    return None


def _outcome(call: Call, attributes: Attributes, *, rpc: bool) -> Status | None:
    """Status and error of the call, which are those of the accepted attempt too."""
    error = call.error
    failure = None if error is None else error_type(error)
    if rpc:
        number = call.grpc_status
        if number is not None:
            code = GRPC_CODES[int(number)] if number.isdigit() and int(number) < len(GRPC_CODES) else number
            attributes["rpc.response.status_code"] = code
            if error is None and code != "OK":
                failure = code
        elif failure in GRPC_CODES:
            attributes["rpc.response.status_code"] = failure
    elif call.status:
        attributes["http.response.status_code"] = call.status
        if error is None and call.status >= 400:
            failure = str(call.status)
    if failure is None or failure == _GIVEN_UP:
        return None
    attributes["error.type"] = failure
    return ERROR if error is None else Status(StatusCode.ERROR, sound(str(error)))


_GIVEN_UP = "CANCELLED"


def error_type(error: BaseException) -> str:
    """The class; of one of the host library's own timeouts `read_timeout` and its like, of a status that grpcio made its name.

    CANCELLED: the caller gave up, which is no error.
    """
    if not isinstance(error, MeshError):
        phase = getattr(error, "phase", None)
        if phase is not None:
            return f"{phase.value}_timeout"
        code = getattr(error, "code", None)
        if callable(code):
            return str(code().name)
        if type(error).__name__ in ("CancelledError", "GeneratorExit"):
            return _GIVEN_UP
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


_known: tuple[Snapshot | None, Attributes] = (None, {})


def _versions(snapshot: Snapshot) -> Attributes:
    """Those of the configuration that decided: worked out once for each."""
    global _known
    last, attributes = _known
    if last is not snapshot:
        attributes = {
            f"meshlib.config.{kind.short}.version": version
            for kind, version in snapshot.versions.items()
            if version
        }
        _known = (snapshot, attributes)
    return attributes


def call_ended(call: Call, attributes: Attributes, *, rpc: bool) -> Status | None:
    """Adds what is known of its end, with Envoy's tags. The status of its span, None to leave it unset."""
    attributes["component"] = "proxy"
    attributes["response_flags"] = ",".join(call.flags) or "-"
    attributes["request_size"] = str(call.bytes_sent)
    attributes["response_size"] = str(call.bytes_received)
    attempt = call.counted
    if attempt is not None:
        name = attempt.cluster.cluster.name
        attributes["upstream_cluster"] = attributes["upstream_cluster.name"] = name
        attributes["upstream_address"] = attempt.endpoint.key
    elif call.plan is not None:
        attributes["upstream_cluster"] = attributes["upstream_cluster.name"] = call.plan.cluster
    attributes["meshlib.attempts"] = call.attempt_count
    attributes["meshlib.details"] = call.details
    if call.program is not None:
        attributes.update(_versions(call.program.snapshot))
    identity = call.request.first("x-request-id")
    if identity is not None:
        attributes["guid:x-request-id"] = sound(identity)
    return _outcome(call, attributes, rpc=rpc)
