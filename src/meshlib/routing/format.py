"""Evaluates access-log formats, as header values and direct-response bodies use them.

One function for each operator, in a table; a value that is not known is None and comes out as the caller's text for missing
values: nothing in a header value, `-` in a body (Envoy's omit_empty_values). What belongs to a proxy's downstream connection
(its addresses, its server name) does not exist where there is no proxy and is missing, see docs/differences.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from meshlib.resources.format import Format, Operator
from meshlib.routing.matchers.header import HasHeaders
from meshlib.routing.start_time import format_time

if TYPE_CHECKING:
    from meshlib.routing.request import RequestView

__all__ = ["EVALUATED", "FormatContext", "evaluate"]


class FormatContext:
    """What operators may ask for. Fill in what is known; the rest stays missing.

    started: seconds since the epoch at which the call began; duration: seconds since then. endpoint: `ip:port` of the
    attempt, whose number is attempts, from 1. protocol: of the request, `HTTP/1.1`, `HTTP/2`. flags: Envoy's response flags.
    local_reply: the response is not an upstream's; body: of that. suppress_envoy_headers: the router's option, which keeps
    x-envoy-original-path and x-envoy-original-host out of the request.
    """

    __slots__ = (
        "attempts",
        "body",
        "cluster",
        "details",
        "duration",
        "endpoint",
        "flags",
        "local_reply",
        "protocol",
        "request",
        "response",
        "route_name",
        "started",
        "stream_id",
        "suppress_envoy_headers",
    )

    def __init__(
        self,
        request: RequestView,
        *,
        response: HasHeaders | None = None,
        started: float = 0.0,
        duration: float = 0.0,
        cluster: str | None = None,
        route_name: str | None = None,
        endpoint: str | None = None,
        protocol: str = "HTTP/1.1",
        attempts: int = 1,
        flags: str | None = None,
        details: str | None = None,
        stream_id: str | None = None,
        body: str | None = None,
        local_reply: bool = False,
        suppress_envoy_headers: bool = False,
    ) -> None:
        self.request = request
        self.response = response
        self.started = started
        self.duration = duration
        self.cluster = cluster
        self.route_name = route_name
        self.endpoint = endpoint
        self.protocol = protocol
        self.attempts = attempts
        self.flags = flags
        self.details = details
        self.stream_id = stream_id
        self.body = body
        self.local_reply = local_reply
        self.suppress_envoy_headers = suppress_envoy_headers


def evaluate(fmt: Format, context: FormatContext, *, missing: str = "") -> str:
    """The text of fmt for this call."""
    if fmt.literal is not None:
        return fmt.literal
    return "".join(_segment(segment, context, missing) for segment in fmt.segments)


def _segment(segment: str | Operator, context: FormatContext, missing: str) -> str:
    if isinstance(segment, str):
        return segment
    evaluator = _OPERATORS.get(segment.name)
    value = None if evaluator is None else evaluator(segment, context)
    if value is None:
        return missing
    if segment.max_length is None:
        return value
    if value.isascii():
        return value[: segment.max_length]
    return value.encode("utf-8", "surrogateescape")[: segment.max_length].decode("utf-8", "surrogateescape")


def _first(message: HasHeaders | None, operator: Operator) -> str | None:
    if message is None:
        return None
    for name in (operator.argument, operator.alternative):
        if name:
            values = message.values(name)
            if values:
                return values[0]
    return None


def _request_header(operator: Operator, context: FormatContext) -> str | None:
    return _first(context.request, operator)


def _response_header(operator: Operator, context: FormatContext) -> str | None:
    return _first(context.response, operator)


def _response_code(operator: Operator, context: FormatContext) -> str | None:
    # Envoy edits its own replies before it notes their status.
    if context.response is None or context.local_reply:
        return "0"
    return context.response.values(":status")[0]


def _stream_id(operator: Operator, context: FormatContext) -> str | None:
    values = context.request.values("x-request-id")
    return values[0] if values else context.stream_id


Evaluator = Callable[[Operator, FormatContext], str | None]

_OPERATORS: dict[str, Evaluator] = {
    "REQUEST_HEADER": _request_header,
    "RESPONSE_HEADER": _response_header,
    "RESPONSE_CODE": _response_code,
    "RESPONSE_CODE_DETAILS": lambda operator, context: context.details or None,
    "RESPONSE_FLAGS": lambda operator, context: context.flags or "-",
    "PROTOCOL": lambda operator, context: context.protocol,
    "LOCAL_REPLY_BODY": lambda operator, context: context.body,
    "UPSTREAM_HOST": lambda operator, context: context.endpoint,
    "UPSTREAM_REMOTE_ADDRESS": lambda operator, context: context.endpoint,
    "UPSTREAM_CLUSTER": lambda operator, context: context.cluster,
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": lambda operator, context: str(context.attempts),
    "ROUTE_NAME": lambda operator, context: context.route_name or None,
    "START_TIME": lambda operator, context: format_time(operator.argument, context.started),
    "DURATION": lambda operator, context: str(int(context.duration * 1000)),
    "HOSTNAME": lambda operator, context: os.uname().nodename,
    "ENVIRONMENT": lambda operator, context: os.environ.get(operator.argument),
    "STREAM_ID": _stream_id,
}

EVALUATED = frozenset(_OPERATORS)
"""Names of the operators that have a value here; every other one is missing."""
