"""The operators of access logs: those of header values, and what is known only when a call is over."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from meshlib.observe.access_log import connections, metadata
from meshlib.observe.access_log.addresses import address_operators, endpoint_id, without_port
from meshlib.observe.access_log.facts import PSEUDO, LogFacts, size_of
from meshlib.resources.format import Operator
from meshlib.resources.operator_arguments import COMMON_DURATION_UNITS
from meshlib.routing import format as base
from meshlib.routing.format import Factory, Read, Value, plain
from meshlib.routing.matchers.grpc import is_grpc
from meshlib.routing.start_time import compile_time

__all__ = ["OPERATORS", "TEXT_OPERATORS", "grpc_status_number"]

_GRPC_CAMEL = (
    "OK", "Canceled", "Unknown", "InvalidArgument", "DeadlineExceeded", "NotFound", "AlreadyExists", "PermissionDenied",
    "ResourceExhausted", "FailedPrecondition", "Aborted", "OutOfRange", "Unimplemented", "Internal", "Unavailable",
    "DataLoss", "Unauthenticated",
)  # fmt: skip
_GRPC_SNAKE = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
_FROM_HTTP = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
"""What a response without a grpc-status counts as, by its HTTP status; UNKNOWN (2) for all others."""


def grpc_status_number(facts: LogFacts) -> int | None:
    """The status of a response, also of one that is not gRPC's; None when there is no response."""
    text = facts.grpc_status
    if text is not None:
        return int(text) if text.isdecimal() else 2
    status = facts.status
    return _FROM_HTTP.get(status, 2) if status else None


def _grpc_status(form: str) -> Read:
    names = {"SNAKE_STRING": _GRPC_SNAKE, "NUMBER": ()}.get(form, _GRPC_CAMEL)

    def read(facts: LogFacts) -> Value:
        if not is_grpc(facts.request):
            return None
        number = grpc_status_number(facts)
        if number is None or form == "NUMBER":
            return number
        return names[number] if number < len(names) else str(number)

    return read


def _request_header(operator: Operator) -> Read:
    """As that of header values, from a dictionary: these are what most of a line is made of."""
    name, other = operator.argument, operator.alternative
    if other:
        main, alternative = _header(name), _header(other)

        def read_either(facts: LogFacts) -> Value:
            value = main(facts)
            return alternative(facts) if value is None else value

        return read_either
    return _header(name)


def _header(name: str) -> Read:
    if name in PSEUDO:
        return attrgetter(PSEUDO[name])
    return lambda facts: facts.headers.get(name)


def _response_header(operator: Operator) -> Read:
    name, other = operator.argument, operator.alternative

    def read(facts: LogFacts) -> Value:
        found = None
        for key, value in facts.response_headers:
            if key == name:
                return value
            if found is None and key == other:
                found = value
        return found

    return read


def _response_trailer(operator: Operator) -> Read:
    name, other = operator.argument, operator.alternative

    def read(facts: LogFacts) -> Value:
        trailers = facts.trailers
        return None if trailers is None else base.first(trailers, name, other)

    return read


def _without_query(operator: Operator) -> Read:
    name, other = operator.argument, operator.alternative

    def read(facts: LogFacts) -> Value:
        value = base.first(facts.request, name, other)
        return None if value is None else value.partition("?")[0]

    return read


def _emitted(operator: Operator, *, local: bool) -> Read:
    render = compile_time(operator.argument, local=local)
    return lambda facts: render(facts.ended)


def _response_duration(facts: LogFacts) -> Value:
    first = facts.first_byte
    return None if first is None else int((first - facts.started) * 1000)


def _response_tx_duration(facts: LogFacts) -> Value:
    first = facts.first_byte
    return None if first is None else int((facts.ended - first) * 1000)


_MOMENTS: dict[str, Any] = {
    "DS_RX_BEG": lambda facts: facts.started,
    "US_CX_BEG": lambda facts: facts.connecting_at[0],
    "US_CX_END": lambda facts: facts.connecting_at[1],
    "US_HS_END": lambda facts: facts.connecting_at[2],
    "US_TX_BEG": lambda facts: facts.sent_at,
    "US_TX_END": lambda facts: facts.all_sent_at,
    "US_RX_BEG": lambda facts: facts.first_byte,
    "US_RX_END": lambda facts: None if facts.first_byte is None else facts.ended,
    "DS_TX_BEG": lambda facts: facts.first_byte,
    "DS_TX_END": lambda facts: facts.ended,
}
"""The time points of %COMMON_DURATION% that are known. A name of any other kind is one that nobody has recorded."""


def _never(facts: LogFacts) -> None:
    return None


def _common_duration(operator: Operator) -> Read:
    start, end, *unit = operator.argument.split(":")
    scale = COMMON_DURATION_UNITS[unit[0] if unit else "ms"]
    begin, finish = _MOMENTS.get(start, _never), _MOMENTS.get(end, _never)

    def read(facts: LogFacts) -> Value:
        first, last = begin(facts), finish(facts)
        return None if first is None or last is None or last < first else int((last - first) * scale)

    return read


def _upstream(facts: LogFacts) -> str | None:
    return facts.endpoint if facts.connected else None


def _attempted(index: int, *, port: bool) -> Factory:
    def read(facts: LogFacts) -> Value:
        names = [pair[index] for pair in facts.attempted]
        return ",".join(names if port else map(without_port, names)) or None

    return plain(read)


def _trace(index: int) -> Factory:
    def read(facts: LogFacts) -> Value:
        trace = facts.trace
        return None if trace is None else trace[index]

    return plain(read)


def _hostname_without_port(facts: LogFacts) -> Value:
    name = facts.hostname
    return None if name is None else without_port(name)


def _request_headers_bytes(facts: LogFacts) -> Value:
    if facts.rpc:
        return None
    pseudo = [(name, getattr(facts, kept)) for name, kept in PSEUDO.items() if name.startswith(":")]
    return size_of(pseudo) + size_of(facts.pairs)


def _response_headers_bytes(facts: LogFacts) -> Value:
    if facts.rpc:
        return None
    return size_of(facts.response_headers) + (len(":status200") if facts.status else 0)


def _response_trailers_bytes(facts: LogFacts) -> Value:
    return None if facts.rpc else size_of(facts.response_trailers)


def _request_tx_duration(facts: LogFacts) -> Value:
    sent = facts.all_sent_at
    return None if sent is None else int((sent - facts.started) * 1000)


def _pool_ready(facts: LogFacts) -> Value:
    ready = facts.pool_ready
    return None if ready is None else int(ready * 1000)


def _failure(facts: LogFacts) -> Value:
    reason = facts.failure
    return "_".join(reason.split(" ")) if reason else None


_missing = plain(_never)

OPERATORS: dict[str, Factory] = {
    **base.OPERATORS,
    **connections.OPERATORS,
    **metadata.VALUES,
    **address_operators("UPSTREAM_REMOTE", _upstream),
    "ACCESS_LOG_TYPE": plain(lambda facts: "DownstreamEnd"),
    # Of QUIC, which nothing here speaks.
    "BYTES_RETRANSMITTED": plain(lambda facts: 0),
    "PACKETS_RETRANSMITTED": plain(lambda facts: 0),
    "ROUNDTRIP_DURATION": _missing,
    "BYTES_RECEIVED": plain(attrgetter("received")),
    "BYTES_SENT": plain(attrgetter("sent")),
    "COMMON_DURATION": _common_duration,
    "CONNECTION_TERMINATION_DETAILS": _missing,
    "CUSTOM_FLAGS": plain(lambda facts: ""),
    "DOWNSTREAM_TRANSPORT_FAILURE_REASON": _missing,
    "DYNAMIC_METADATA": _missing,
    "EMIT_TIME": lambda operator: _emitted(operator, local=False),
    "EMIT_TIME_LOCAL": lambda operator: _emitted(operator, local=True),
    "FILTER_CHAIN_NAME": plain(attrgetter("filter_chain")),
    "FILTER_STATE": _missing,
    "GRPC_STATUS": lambda operator: _grpc_status(operator.argument),
    "GRPC_STATUS_NUMBER": plain(_grpc_status("NUMBER")),
    "LISTENER_NAME": plain(attrgetter("listener")),
    "LOCAL_REPLY_BODY": plain(lambda facts: ""),
    "REQUEST_HEADER": _request_header,
    "REQUEST_HEADERS_BYTES": plain(_request_headers_bytes),
    "RESPONSE_HEADER": _response_header,
    "RESPONSE_HEADERS_BYTES": plain(_response_headers_bytes),
    "REQUEST_TX_DURATION": plain(_request_tx_duration),
    "REQ_WITHOUT_QUERY": _without_query,
    "RESPONSE_DURATION": plain(_response_duration),
    "RESPONSE_TRAILER": _response_trailer,
    "RESPONSE_TRAILERS_BYTES": plain(_response_trailers_bytes),
    "RESPONSE_TX_DURATION": plain(_response_tx_duration),
    "ROUTE_RESOLUTION_COUNT": plain(attrgetter("route_searches")),
    "SPAN_ID": _trace(1),
    "TRACE_ID": _trace(0),
    "UPSTREAM_CONNECTION_IDS_ATTEMPTED": plain(lambda facts: ",".join(map(str, facts.connections)) or None),
    "UPSTREAM_CONNECTION_POOL_READY_DURATION": plain(_pool_ready),
    "UPSTREAM_FILTER_STATE": _missing,
    "UPSTREAM_HOSTS_ATTEMPTED": _attempted(0, port=True),
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT": _attempted(0, port=False),
    "UPSTREAM_HOST_NAME": plain(attrgetter("hostname")),
    "UPSTREAM_HOST_NAMES_ATTEMPTED": _attempted(1, port=True),
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT": _attempted(1, port=False),
    "UPSTREAM_HOST_NAME_WITHOUT_PORT": plain(_hostname_without_port),
    "UPSTREAM_PROTOCOL": plain(attrgetter("upstream_protocol")),
    "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID": endpoint_id(_upstream),
    "UPSTREAM_TRANSPORT_FAILURE_REASON": plain(_failure),
    "VIRTUAL_CLUSTER_NAME": plain(attrgetter("virtual_cluster")),
}
"""By Envoy's names. An operator that is not here is missing, and was reported when the configuration came."""

TEXT_OPERATORS: dict[str, Factory] = {**OPERATORS, **metadata.TEXTS}
"""The same where the value becomes part of a text: all of them give texts and whole numbers."""
