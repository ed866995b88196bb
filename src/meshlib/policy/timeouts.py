"""Which timeouts a call has (RouteAction, RetryPolicy, and what may override them for one call)."""

from __future__ import annotations

import re
from typing import Protocol

from meshlib.resources.route import MaxStreamDuration
from meshlib.routing.matchers.grpc import is_grpc
from meshlib.routing.numbers import parse_unsigned
from meshlib.routing.plan import ForwardPlan, Timeouts
from meshlib.routing.request import RequestView

__all__ = ["TimeoutOptions", "Timeouts", "effective", "parse_grpc_timeout"]


class TimeoutOptions(Protocol):
    """What of the application's call options is decided here (meshlib.engine.options.CallOptions)."""

    @property
    def per_try_timeout(self) -> float | None: ...


def effective(
    plan: ForwardPlan, request: RequestView, options: TimeoutOptions | None, *, trust: bool
) -> Timeouts:
    """The timeouts of this call. The application's own timeout for the whole call is not among them.

    trust: x-envoy-upstream-rq-timeout-ms and x-envoy-upstream-rq-per-try-timeout-ms of the request replace the configured
    ones; what is no number is ignored, 0 is none. The application's per_try_timeout goes before both. A per-try timeout as
    long as the route's is ignored. A grpc-timeout counts where max_grpc_timeout or grpc_timeout_header_max says so.
    """
    if options is None and not trust and not plan.reads_grpc_timeout:
        return plan.timeouts
    stream = plan.max_stream_duration
    route: float = plan.timeout
    if plan.max_grpc_timeout is not None and is_grpc(request):
        route = _of_request(plan.max_grpc_timeout, plan.grpc_timeout_offset, request)
    per_try = (plan.retry.per_try_timeout if plan.retry is not None else None) or 0.0
    if trust:
        route = _milliseconds(request, "x-envoy-upstream-rq-timeout-ms", route)
        per_try = _milliseconds(request, "x-envoy-upstream-rq-per-try-timeout-ms", per_try)
    if options is not None and options.per_try_timeout is not None:
        per_try = options.per_try_timeout
    if route and per_try >= route:
        per_try = 0.0
    return Timeouts(
        route or None,
        per_try or None,
        plan.timeouts.max_stream if stream is None else _stream(plan, stream, request),
    )


def _of_request(longest: float, offset: float, request: RequestView) -> float:
    """RouteAction.max_grpc_timeout: the route timeout of a gRPC request, 0 is none; one without grpc-timeout asks for none.

    The offset is taken off only where something is left, since 0 would be no timeout at all.
    """
    asked = parse_grpc_timeout(request.first("grpc-timeout") or "") or 0.0
    timeout = asked - offset if offset < asked else asked
    return longest if longest and (not timeout or timeout > longest) else timeout


def _milliseconds(request: RequestView, name: str, otherwise: float) -> float:
    text = request.first(name)
    number = None if text is None else parse_unsigned(text)
    return otherwise if number is None else number / 1000


def _stream(plan: ForwardPlan, stream: MaxStreamDuration, request: RequestView) -> float | None:
    """max_stream_duration, or the caller's grpc-timeout where grpc_timeout_header_max lets it decide; then 0 is 0."""
    longest = stream.grpc_timeout_header_max
    asked = None if longest is None else parse_grpc_timeout(request.first("grpc-timeout") or "")
    if longest is None or asked is None:
        return plan.longest_stream()
    timeout = min(asked, longest) if longest else asked
    return max(timeout - (stream.grpc_timeout_header_offset or 0.0), 0.0)


_GRPC_TIMEOUT = re.compile("([0-9]{1,8})([HMSmun])")
_UNITS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def parse_grpc_timeout(text: str) -> float | None:
    """Seconds of a grpc-timeout header: up to eight digits and a unit (H M S m u n). None for anything else."""
    match = _GRPC_TIMEOUT.fullmatch(text)
    return None if match is None else int(match[1]) * _UNITS[match[2]]
