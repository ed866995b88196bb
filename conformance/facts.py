"""What is compared of an outcome: named values, the volatile ones left out or masked."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from conformance.upstream.record import REQUEST_ID

if TYPE_CHECKING:
    from conformance.case import Compare
    from conformance.outcome import Outcome
    from conformance.upstream.record import Hit

Facts = dict[str, Any]

DROPPED = frozenset({"date", "server", "connection", "keep-alive", "content-length", "transfer-encoding"})
"""Response headers that say nothing about the mesh: framing is compared by the body."""

SERVICE_TIME = "x-envoy-upstream-service-time"

MASKED = frozenset({SERVICE_TIME, "x-request-id"})
"""Headers whose presence is compared, not their value."""

MADE_COOKIE = re.compile(r'="[0-9a-f]{16}"')
"""The value that a hash policy gives to a cookie: Envoy makes it from the addresses of the connection."""

UPSTREAM_DROPPED = frozenset(
    {
        REQUEST_ID, "host", "connection", "x-forwarded-for", "x-envoy-internal", "x-envoy-external-address",
        "grpc-timeout",
    }
)  # fmt: skip
"""Request headers that belong to the hop before Envoy, which meshlib does not have; ``host`` is a fact of its own.

grpcio writes ``grpc-timeout`` for each attempt's deadline, Envoy passes on the caller's: compared where a case names it.
"""

_REASON = re.compile(r"\|[^}]*}$")
"""In the details of a gRPC call: why a connection failed, in the words of the system. grpcio does not say."""

_ASYNCIO = re.compile(r"^grpc-python-asyncio/")
"""In user-agent: grpcio says by which of its halves a call was made."""

WHAT_IS_LEFT = "x-envoy-expected-rq-timeout-ms"
"""On a retry: the milliseconds that are left of the route's timeout, so never twice the same."""


def facts(outcome: Outcome, compare: Compare) -> Facts:
    """The facts of ``outcome`` as ``compare`` wants them."""
    found: Facts = {
        **(_rpc(outcome) if outcome.code else _exchange(outcome)),
        "flags": outcome.flags,
        "details": _REASON.sub("}", outcome.details) if outcome.code else outcome.details,
        "attempts": outcome.attempts,
        "cluster": outcome.cluster,
        "route": outcome.route,
    }
    dropped = DROPPED | {SERVICE_TIME} if outcome.code else DROPPED
    for name, value in _headers(outcome.headers, compare.headers, dropped).items():
        found[f"headers.{name}"] = value
    for name, value in _headers(outcome.trailers, compare.headers, dropped).items():
        found[f"trailers.{name}"] = value
    found["upstream.requests"] = len(outcome.hits)
    for index, hit in enumerate(outcome.hits):
        for name, value in _hit(hit, compare).items():
            if index and name == f"headers.{WHAT_IS_LEFT}":
                value = [_coarse(text) for text in value]
            found[f"upstream[{index}].{name}"] = value
    return {name: value for name, value in found.items() if _top(name) not in compare.ignore}


def _exchange(outcome: Outcome) -> Facts:
    return {
        "status": outcome.status,
        "body": outcome.body.decode("latin-1"),
        "complete": outcome.complete,
    }


def _rpc(outcome: Outcome) -> Facts:
    return {
        "code": outcome.code,
        "message": outcome.message,
        "messages": [message.decode("latin-1") for message in outcome.messages],
        # grpcio does not say whether an answer without metadata had headers of its own, so it may stand in either.
        "metadata": [
            SERVICE_TIME for name, _ in (*outcome.headers, *outcome.trailers) if name == SERVICE_TIME
        ],
    }


def _hit(hit: Hit, compare: Compare) -> Facts:
    found: Facts = {
        "name": hit.upstream,
        "method": hit.method,
        "target": hit.target,
        "version": hit.version,
        "host": dict(hit.headers).get("host", ""),
        "body": hit.body.decode("latin-1"),
        "cancelled": hit.cancelled,
    }
    for name, value in _headers(hit.headers, compare.upstream_headers, UPSTREAM_DROPPED).items():
        found[f"headers.{name}"] = value
    return found


def _headers(
    pairs: tuple[tuple[str, str], ...], wanted: tuple[str, ...] | None, dropped: frozenset[str]
) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        if (name in wanted) if wanted is not None else (name not in dropped):
            if name == "set-cookie":
                value = MADE_COOKIE.sub('="*"', value)
            found.setdefault(name, []).append("*" if name in MASKED else _ASYNCIO.sub("grpc-python/", value))
    return found


def _coarse(milliseconds: str) -> str:
    """On a retry, what is left of the route timeout: how long the attempts before took is this machine's affair.

    Values below a second are per-try timeouts and stay exact; the engine's tests hold the arithmetic to the fake clock.
    """
    if not milliseconds.isdecimal() or int(milliseconds) < 1000:
        return milliseconds
    return "what is left"


def _top(name: str) -> str:
    return name.partition(".")[0].partition("[")[0]
