"""Whether, and when, a failed attempt is tried again: Envoy's RetryPolicy as a pure state machine.

`RetryRules` is what a policy means, compiled once: which kinds of response and which kinds of reset ask for another attempt.
`RetryState` is made for a call whose first attempt failed; it counts what is left and knows the next wait. Neither knows
permits, deadlines or whether the body can be sent again: those are the engine's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from random import Random

from meshlib.policy.failure import FailureKind
from meshlib.policy.schedule import Schedule
from meshlib.resources.route import BackOff, RateLimitedBackOff, RetryPolicy
from meshlib.routing.matchers.header import HeaderPredicate, compile_header
from meshlib.routing.numbers import parse_unsigned
from meshlib.routing.request import ResponseView
from meshlib.runtime.memo import Memo

__all__ = [
    "SAFE",
    "RetryRules",
    "RetryState",
    "exponential_wait",
    "push_back",
    "rate_limited_wait",
    "rules_of",
]

ResponseHeaders = Sequence[tuple[str, str]]

SAFE = RetryPolicy(retry_on=frozenset({"connect-failure", "refused-stream", "reset-before-request"}))
"""The policy of a call that asks for retries on a route that has none: only when no byte of the request was processed."""

_GRPC_CODES = {
    "cancelled": "1",
    "deadline-exceeded": "4",
    "resource-exhausted": "8",
    "internal": "13",
    "unavailable": "14",
}
_STATUSES = {
    "5xx": frozenset(range(500, 600)),
    "gateway-error": frozenset({502, 503, 504}),
    "retriable-4xx": frozenset({409}),
}
_EVERY_RESET = frozenset(FailureKind) - {FailureKind.OVERFLOW}
_RESETS: dict[str, frozenset[FailureKind]] = {
    "5xx": _EVERY_RESET,
    "gateway-error": _EVERY_RESET,
    "reset": _EVERY_RESET,
    "connect-failure": frozenset({FailureKind.CONNECT_FAILED, FailureKind.CONNECT_TIMEOUT}),
    "refused-stream": frozenset({FailureKind.REFUSED_STREAM}),
}


class RetryRules:
    """What a RetryPolicy asks for. Get one with `rules_of`."""

    __slots__ = (
        "_before_request",
        "_grpc",
        "_headers",
        "_rate_limited",
        "_resets",
        "_statuses",
        "policy",
    )

    def __init__(self, policy: RetryPolicy) -> None:
        on = policy.retry_on
        self.policy = policy
        self._statuses = frozenset().union(*(_STATUSES[name] for name in on if name in _STATUSES))
        if "retriable-status-codes" in on:
            self._statuses |= policy.retriable_status_codes
        self._headers: tuple[HeaderPredicate, ...] = ()
        if "retriable-headers" in on:
            self._headers = tuple(compile_header(match) for match in policy.retriable_headers)
        self._grpc = frozenset(_GRPC_CODES[name] for name in on if name in _GRPC_CODES)
        self._rate_limited = "envoy-ratelimited" in on
        self._resets = frozenset().union(*(_RESETS[name] for name in on if name in _RESETS))
        self._before_request = "reset-before-request" in on

    def wants_response(self, status: int, headers: ResponseHeaders) -> bool:
        """Whether response headers ask for a retry. headers: lower-case names; a gRPC status counts only here.

        x-envoy-ratelimited blocks every condition but `envoy-ratelimited`.
        """
        if any(name == "x-envoy-ratelimited" for name, _ in headers):
            return self._rate_limited
        if status in self._statuses:
            return True
        if self._headers:
            response = ResponseView(status, headers)
            if any(matches(response) for matches in self._headers):
                return True
        if self._grpc:
            for name, value in headers:
                if name == "grpc-status":
                    return value in self._grpc
        return False

    def wants_reset(self, kind: FailureKind, bytes_sent: bool) -> bool:
        """Whether an attempt without a response asks for a retry. LOCAL_RESET is a per-try timeout.

        bytes_sent: a byte of the request may have reached the endpoint. An overflow is never retried.
        """
        if kind in self._resets:
            return True
        return self._before_request and not bytes_sent and kind is not FailureKind.OVERFLOW


rules_of: Memo[RetryPolicy, RetryRules] = Memo(RetryRules)
"""The rules of a policy object, compiled once."""


class RetryState:
    """The retries of one call.

    remaining: how many may still follow; inf while only the schedule knows. retries: replaces the policy's num_retries.
    schedule: the application's own, of which a stop replaces the number and a wait the back-off. rate_limited: a response asked
    for the last wait of the policy.
    """

    __slots__ = ("_exponential", "_schedule", "rate_limited", "remaining", "rules")

    def __init__(
        self, policy: RetryPolicy, *, retries: int | None = None, schedule: Schedule | None = None
    ) -> None:
        self.rules = rules_of(policy)
        self.remaining: float = float(policy.num_retries)
        if retries is not None:
            self.remaining = float(retries)
        elif schedule is not None and schedule.stop is not None:
            self.remaining = inf
        self._schedule = schedule
        self._exponential = 0
        self.rate_limited = False

    def wants_response(self, status: int, headers: ResponseHeaders) -> bool:
        """See RetryRules."""
        return self.rules.wants_response(status, headers)

    def wants_reset(self, kind: FailureKind, bytes_sent: bool) -> bool:
        """See RetryRules."""
        return self.rules.wants_reset(kind, bytes_sent)

    def take(
        self,
        attempt: int,
        random: Random,
        headers: ResponseHeaders = (),
        *,
        epoch: float = 0.0,
        elapsed: float = 0.0,
        asked: float | None = None,
    ) -> float | None:
        """Use up one retry after attempt number `attempt` (from 1): seconds to wait, None when none is left.

        headers: of the response that is retried. epoch: now, seconds since 1970. elapsed: seconds since the call began.
        asked: the wait that a gRPC server asked for; it is obeyed, and the back-off begins anew after it.
        """
        if self.remaining <= 0:
            return None
        schedule = self._schedule
        if schedule is None:
            self.remaining -= 1
            if asked is None:
                return self.back_off(random, headers, epoch)
            self._exponential = 0
            return asked
        own = asked or 0.0
        if asked is None and schedule.wait is None:
            own = self.back_off(random, headers, epoch)
        pause = schedule.next(attempt, elapsed, own)
        self.remaining = 0 if pause is None else self.remaining - 1
        return pause if asked is None or pause is None else asked

    def back_off(self, random: Random, headers: ResponseHeaders = (), epoch: float = 0.0) -> float:
        """Seconds that the policy waits before the next retry.

        A wait that a response header asked for (rate_limited_retry_back_off) does not advance the exponential one.
        """
        limited = self.rules.policy.rate_limited_back_off
        if limited is not None:
            asked = rate_limited_wait(limited, headers, epoch)
            self.rate_limited = asked is not None
            if asked is not None:
                return asked + random.random() * asked / 2
        self._exponential += 1
        return exponential_wait(self.rules.policy.back_off, self._exponential, random)


def push_back(headers: ResponseHeaders) -> float | None:
    """What a gRPC server says about the next attempt (grpc-retry-pushback-ms, gRFC A6): seconds to wait before it.

    -1: there must be none, which is what a negative number means, or no number at all. None: it says nothing.
    """
    text = next((value for name, value in headers if name == "grpc-retry-pushback-ms"), None)
    if text is None:
        return None
    number = parse_unsigned(text)
    return -1.0 if number is None or number >= 2**31 else number / 1000


def exponential_wait(back_off: BackOff, retry: int, random: Random) -> float:
    """Uniform in [0, min(base * 2**(retry - 1), max)); retry counts from 1."""
    # 2**63 is beyond any limit; a larger exponent would only cost.
    return random.random() * min(back_off.base_interval * 2.0 ** min(retry - 1, 63), back_off.max_interval)


def rate_limited_wait(limited: RateLimitedBackOff, headers: ResponseHeaders, epoch: float) -> float | None:
    """What the first usable reset header asks for: whole seconds, or the time until a moment in Unix seconds.

    None when there is none, or what there is is no unsigned number, in the past, or beyond max_interval.
    """
    for reset in limited.reset_headers:
        number = parse_unsigned(next((value for name, value in headers if name == reset.name), ""))
        if number is None:
            continue
        wait = number - int(epoch) if reset.unix_timestamp else number
        if (wait > 0 or not reset.unix_timestamp) and wait <= limited.max_interval:
            return float(wait)
    return None
