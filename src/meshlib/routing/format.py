"""Access-log formats, compiled: of header values, bodies and access logs.

A format becomes a function of *facts*: what is known of a request, its response and what was done with it. Each operator is a
factory in a table, which makes of the operator's argument a function from facts to a value: a text, a number, or None for what
is missing. Header values and bodies have the table `OPERATORS`; access logs know more about a call and have a longer one
(`meshlib.observe.access_log.operators`). The text for missing values is the caller's: nothing in a header value, `-` in a body
and in a log (Envoy's omit_empty_values).

What belongs to a proxy's downstream connection does not exist where there is no proxy and is missing, see
docs/differences.md.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Protocol

from meshlib.resources.format import Format, Operator
from meshlib.routing.flags import LONG_NAMES
from meshlib.routing.matchers.header import HasHeaders
from meshlib.routing.query import decoded_query, parameter, query_of
from meshlib.routing.start_time import compile_time

if TYPE_CHECKING:
    from meshlib.routing.request import RequestView

__all__ = [
    "OPERATORS",
    "Factory",
    "Facts",
    "FormatContext",
    "Read",
    "Value",
    "compile_format",
    "compile_operator",
    "compile_reads",
    "first",
    "plain",
]

Value = str | int | None

Read = Callable[[Any], Value]
"""From facts to a value."""

Factory = Callable[[Operator], Read]


class Facts(Protocol):
    """What the operators of `OPERATORS` ask for.

    status: 0 when there is none. flags: Envoy's response flags, comma-joined, `-` for none. endpoint: `ip:port`. started: seconds
    since the epoch; duration: seconds since then. protocol: of the request, `HTTP/1.1`, `HTTP/2`. attempts: from 1; 0 for none.
    cluster_raw: the cluster's name, where its statistics have another one.
    """

    @property
    def request(self) -> HasHeaders: ...
    @property
    def response(self) -> HasHeaders | None: ...
    @property
    def started(self) -> float: ...
    @property
    def duration(self) -> float: ...
    @property
    def cluster(self) -> str | None: ...
    @property
    def cluster_raw(self) -> str | None: ...
    @property
    def route_name(self) -> str | None: ...
    @property
    def endpoint(self) -> str | None: ...
    @property
    def protocol(self) -> str | None: ...
    @property
    def attempts(self) -> int: ...
    @property
    def status(self) -> int: ...
    @property
    def flags(self) -> str: ...
    @property
    def details(self) -> str | None: ...
    @property
    def stream_id(self) -> str | None: ...
    @property
    def body(self) -> str | None: ...


class FormatContext:
    """The facts of header edits and bodies. Fill in what is known; the rest stays missing.

    local_reply: the response is not an upstream's; body: of that. suppress_envoy_headers: the router's option, which keeps
    x-envoy-original-path and x-envoy-original-host out of the request. The others: see Facts.
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
        flags: str = "-",
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

    @property
    def cluster_raw(self) -> str | None:
        return self.cluster

    @property
    def status(self) -> int:
        # Envoy edits its own replies before it notes their status.
        if self.response is None or self.local_reply:
            return 0
        return int(self.response.values(":status")[0])


def compile_reads(fmt: Format, table: Mapping[str, Factory]) -> tuple[str | Read, ...]:
    """The segments of fmt in order: literal texts, and functions in the place of operators. One that table lacks is missing."""
    return tuple(
        segment if isinstance(segment, str) else compile_operator(segment, table) for segment in fmt.segments
    )


def compile_operator(operator: Operator, table: Mapping[str, Factory]) -> Read:
    factory = table.get(operator.name)
    if factory is None:
        return _missing
    read = factory(operator)
    length = operator.max_length
    return read if length is None else _cut(read, length)


def compile_format(fmt: Format, table: Mapping[str, Factory], *, missing: str = "") -> Callable[[Any], str]:
    """A function from facts to the text of fmt."""
    if fmt.literal is not None:
        literal = fmt.literal
        return lambda facts: literal
    segments = compile_reads(fmt, table)
    reads = tuple(segment for segment in segments if not isinstance(segment, str))
    template = "".join(
        segment.replace("%", "%%") if isinstance(segment, str) else "%s" for segment in segments
    )

    def text(facts: Any) -> str:
        values = [read(facts) for read in reads]
        if None in values:
            return template % tuple([missing if value is None else value for value in values])
        return template % tuple(values)

    return text


def _missing(facts: Any) -> Value:
    return None


def _cut(read: Callable[[Any], Any], length: int) -> Read:
    """At most so many bytes of the text; what is no text stays as it is, whatever a table's factories give."""

    def cut(facts: Any) -> Any:
        value = read(facts)
        if not isinstance(value, str):
            return value
        if value.isascii():
            return value[:length]
        return value.encode("utf-8", "surrogateescape")[:length].decode("utf-8", "surrogateescape")

    return cut


# --- the operators ---------------------------------------------------------------------------------------------------


def _request_header(operator: Operator) -> Read:
    name, other = operator.argument, operator.alternative

    def read(facts: Facts) -> Value:
        return first(facts.request, name, other)

    return read


def _response_header(operator: Operator) -> Read:
    name, other = operator.argument, operator.alternative

    def read(facts: Facts) -> Value:
        response = facts.response
        return None if response is None else first(response, name, other)

    return read


def first(message: HasHeaders, name: str, other: str) -> str | None:
    """The first value of the header `name`, else of `other`; an empty name is no header."""
    if name:
        values = message.values(name)
        if values:
            return values[0]
    if other:
        values = message.values(other)
        if values:
            return values[0]
    return None


def _details(operator: Operator) -> Read:
    if operator.argument == "ALLOW_WHITESPACES":
        return lambda facts: facts.details or None

    def read(facts: Facts) -> Value:
        details = facts.details
        return "_".join(details.split(" ")) if details else None

    return read


def _path(operator: Operator) -> Read:
    query, _, rest = operator.argument.partition(":")
    which = rest.partition(":")[0] or "ORIG_OR_PATH"
    original, current = which != "PATH", which != "ORIG"

    def read(facts: Facts) -> Value:
        path = first(facts.request, "x-envoy-original-path" if original else "", ":path" if current else "")
        if not path:
            return None
        return path.partition("?")[0] if query == "NQ" else path

    return read


def _query_parameter(operator: Operator) -> Read:
    name = operator.argument

    def read(facts: Facts) -> Value:
        return parameter(first(facts.request, ":path", "") or "", name)

    return read


def _query_parameters(operator: Operator) -> Read:
    decoded = operator.argument == "DECODED"

    def read(facts: Facts) -> Value:
        query = query_of(first(facts.request, "x-envoy-original-path", ":path") or "")
        return decoded_query(query) if decoded and query else query

    return read


def _stream_id(operator: Operator) -> Read:
    return lambda facts: first(facts.request, "x-request-id", "") or facts.stream_id


def _time(operator: Operator, *, local: bool) -> Read:
    render = compile_time(operator.argument, local=local)
    return lambda facts: render(facts.started)


def _environment(operator: Operator) -> Read:
    value = os.environ.get(operator.argument, "-")  # as in Envoy, where it is not even omitted
    return lambda facts: value


def _hostname(operator: Operator) -> Read:
    name = os.uname().nodename
    return lambda facts: name


def _long_flags(facts: Facts) -> Value:
    flags: str = facts.flags
    return flags if flags == "-" else ",".join(LONG_NAMES.get(flag, flag) for flag in flags.split(","))


def plain(read: Read) -> Factory:
    """The factory of an operator without an argument."""
    return lambda operator: read


OPERATORS: dict[str, Factory] = {
    "DURATION": plain(lambda facts: int(facts.duration * 1000)),
    "ENVIRONMENT": _environment,
    "HOSTNAME": _hostname,
    "LOCAL_REPLY_BODY": plain(attrgetter("body")),
    "PATH": _path,
    "PROTOCOL": plain(attrgetter("protocol")),
    "QUERY_PARAM": _query_parameter,
    "QUERY_PARAMS": _query_parameters,
    "REQUEST_HEADER": _request_header,
    "RESPONSE_CODE": plain(attrgetter("status")),
    "RESPONSE_CODE_DETAILS": _details,
    "RESPONSE_FLAGS": plain(attrgetter("flags")),
    "RESPONSE_FLAGS_LONG": plain(_long_flags),
    "RESPONSE_HEADER": _response_header,
    "ROUTE_NAME": plain(lambda facts: facts.route_name or None),
    "START_TIME": lambda operator: _time(operator, local=False),
    "START_TIME_LOCAL": lambda operator: _time(operator, local=True),
    "STREAM_ID": _stream_id,
    "UNIQUE_ID": plain(lambda facts: str(uuid.uuid4())),
    "UPSTREAM_CLUSTER": plain(lambda facts: facts.cluster or None),
    "UPSTREAM_CLUSTER_RAW": plain(lambda facts: facts.cluster_raw or None),
    "UPSTREAM_HOST": plain(attrgetter("endpoint")),
    "UPSTREAM_REMOTE_ADDRESS": plain(attrgetter("endpoint")),
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": plain(attrgetter("attempts")),
}
"""Those of header values and bodies."""
