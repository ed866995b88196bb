"""Header edits of a message: what one level does, and how levels follow each other.

Inside one level all removals come first, then every value is evaluated against the headers as they are after that, then
overwrites are made, then additions. Levels are run in the order that they are given in; the last one wins an overwrite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshlib.resources.headers import AppendAction, HeaderEdits
from meshlib.routing.format import OPERATORS, FormatContext, compile_format
from meshlib.routing.request import Headers

__all__ = [
    "JOINED_IN_REQUEST",
    "JOINED_IN_RESPONSE",
    "LevelEdits",
    "append_header",
    "compile_levels",
    "set_header",
]

Refresh = Callable[[FormatContext, Headers], None]
"""Makes the context show these headers."""

Evaluate = Callable[[FormatContext], str]

_REQUEST_AND_RESPONSE = """
    cache-control connection content-encoding content-length content-type keep-alive proxy-connection proxy-status
    transfer-encoding upgrade via x-envoy-attempt-count x-envoy-decorator-operation x-request-id
"""
JOINED_IN_REQUEST = frozenset(
    f"""
    {_REQUEST_AND_RESPONSE} accept accept-encoding access-control-request-headers access-control-request-method
    authorization expect grpc-accept-encoding grpc-timeout if-match if-modified-since if-none-match if-range
    if-unmodified-since origin pragma referer te user-agent x-client-trace-id x-envoy-downstream-service-cluster
    x-envoy-downstream-service-node x-envoy-expected-rq-timeout-ms x-envoy-external-address x-envoy-force-trace
    x-envoy-hedge-on-per-try-timeout x-envoy-internal x-envoy-ip-tags x-envoy-is-timeout-retry x-envoy-max-retries
    x-envoy-original-host x-envoy-original-path x-envoy-original-url x-envoy-retriable-header-names
    x-envoy-retriable-status-codes x-envoy-retry-grpc-on x-envoy-retry-on x-envoy-upstream-alt-stat-name
    x-envoy-upstream-rq-per-try-timeout-ms x-envoy-upstream-rq-timeout-alt-response x-envoy-upstream-rq-timeout-ms
    x-envoy-upstream-stream-duration-ms x-forwarded-client-cert x-forwarded-for x-forwarded-host x-forwarded-port
    x-forwarded-proto
    """.split()
)
JOINED_IN_RESPONSE = frozenset(
    f"""
    {_REQUEST_AND_RESPONSE} access-control-allow-credentials access-control-allow-headers access-control-allow-methods
    access-control-allow-origin access-control-expose-headers access-control-max-age age date etag expires grpc-message
    grpc-status last-modified location server vary x-envoy-degraded x-envoy-immediate-health-check-fail
    x-envoy-ratelimited x-envoy-upstream-canary x-envoy-upstream-healthchecked-cluster x-envoy-upstream-service-time
    """.split()
)
"""Headers that Envoy keeps as one line: a value that is appended is joined to it with a comma (seen on 1.40.0)."""


def set_header(headers: Headers, name: str, value: str) -> None:
    """Replace every value of the header, or add it."""
    headers[:] = [pair for pair in headers if pair[0] != name]
    headers.append((name, value))


def append_header(headers: Headers, name: str, value: str, joined: frozenset[str]) -> None:
    """Add one value of the header. joined: the names that have one line only."""
    if name in joined:
        for index, (key, present) in enumerate(headers):
            if key == name:
                headers[index] = (name, f"{present},{value}" if present and value else present or value)
                return
    headers.append((name, value))


class LevelEdits:
    """The edits of one level, ready to run."""

    __slots__ = ("_add", "_dynamic", "_joined", "_remove")

    def __init__(self, edits: HeaderEdits, joined: frozenset[str]) -> None:
        self._joined = joined
        self._remove = frozenset(edits.remove)
        self._add: tuple[tuple[str, Evaluate, AppendAction, bool], ...] = tuple(
            (option.name, compile_format(option.value, OPERATORS), option.action, option.keep_empty_value)
            for option in edits.add
        )
        self._dynamic = any(option.value.literal is None for option in edits.add)

    def apply(self, headers: Headers, context: FormatContext, refresh: Refresh) -> None:
        """Edit headers in place. refresh(context, headers) is called before values that depend on the call are made."""
        if self._remove:
            headers[:] = [pair for pair in headers if pair[0] not in self._remove]
        if not self._add:
            return
        if self._dynamic:
            refresh(context, headers)
        present = {name for name, _ in headers}
        overwrites: list[tuple[str, str]] = []
        additions: list[tuple[str, str]] = []
        for name, evaluate, action, keep_empty in self._add:
            value = evaluate(context)
            if not (value or keep_empty):
                continue
            if action is AppendAction.APPEND_IF_EXISTS_OR_ADD:
                additions.append((name, value))
            elif action is AppendAction.ADD_IF_ABSENT:
                if name not in present:
                    additions.append((name, value))
            elif action is AppendAction.OVERWRITE_IF_EXISTS_OR_ADD or name in present:
                overwrites.append((name, value))
        for name, value in overwrites:
            set_header(headers, name, value)
        for name, value in additions:
            append_header(headers, name, value, self._joined)


def compile_levels(levels: Iterable[HeaderEdits], joined: frozenset[str]) -> tuple[LevelEdits, ...]:
    """The levels that have something to do, in the order given. joined: JOINED_IN_REQUEST or JOINED_IN_RESPONSE."""
    return tuple(LevelEdits(edits, joined) for edits in levels if edits)
