"""Which RetryPolicy a call has: the route's, as changed by trusted request headers and by the application's own words.

Envoy's steering headers (x-envoy-retry-on and its kin) add to the route's conditions; x-envoy-max-retries replaces the
number. They are obeyed only where the Mesh trusts request headers, as Envoy obeys them from internal callers only.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Protocol

from meshlib.policy.retry import SAFE
from meshlib.resources.matching import HeaderMatch
from meshlib.resources.route import RetryPolicy
from meshlib.routing.matchers.header import HeaderPredicate, compile_header
from meshlib.routing.numbers import parse_unsigned
from meshlib.routing.request import RequestView

__all__ = ["RetryOptions", "retry_policy"]

_RETRY_ON = frozenset(
    {
        "5xx",
        "connect-failure",
        "envoy-ratelimited",
        "gateway-error",
        "http3-post-connect-failure",
        "refused-stream",
        "reset",
        "reset-before-request",
        "retriable-4xx",
        "retriable-headers",
        "retriable-status-codes",
    }
)
_RETRY_GRPC_ON = frozenset(
    {"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}
)
_NO_RETRIES = RetryPolicy()


class RetryOptions(Protocol):
    """What of the application's call options is about retries (meshlib.engine.options.CallOptions)."""

    @property
    def retries(self) -> int | None: ...
    @property
    def retry_on(self) -> str | None: ...
    @property
    def stop(self) -> object: ...


def retry_policy(
    policy: RetryPolicy | None, request: RequestView, options: RetryOptions | None, *, trust: bool
) -> RetryPolicy | None:
    """The policy in force for this call; None when nothing is ever retried.

    policy: the plan's. trust: whether x-envoy-* request headers are obeyed. The application's retry_on replaces the
    conditions; its number of retries (or tenacity stop) on a route without conditions gives it those of SAFE. A policy with
    retriable_request_headers is in force only for a request that matches one of them.
    """
    if trust:
        policy = _steered(policy, request)
    if options is not None:
        if options.retry_on is not None:
            policy = _with_conditions(
                policy or _NO_RETRIES, _names(options.retry_on, _RETRY_ON | _RETRY_GRPC_ON)
            )
        elif (options.retries or options.stop is not None) and not (policy is not None and policy.retry_on):
            policy = SAFE
    if policy is None or not policy.retry_on:
        return None
    if policy.retriable_request_headers:
        predicates = _predicates(policy.retriable_request_headers)
        if not any(matches(request) for matches in predicates):
            return None
    return policy


def _steered(policy: RetryPolicy | None, request: RequestView) -> RetryPolicy | None:
    first = request.first
    conditions = _names(first("x-envoy-retry-on") or "", _RETRY_ON)
    conditions |= _names(first("x-envoy-retry-grpc-on") or "", _RETRY_GRPC_ON)
    number = parse_unsigned(first("x-envoy-max-retries") or "")
    statuses = first("x-envoy-retriable-status-codes") or ""
    headers = first("x-envoy-retriable-header-names") or ""
    if not (conditions or number is not None or statuses or headers):
        return policy
    return _merged(policy or _NO_RETRIES, conditions, number, statuses, headers)


@lru_cache(maxsize=1024)
def _merged(
    policy: RetryPolicy, conditions: frozenset[str], number: int | None, statuses: str, headers: str
) -> RetryPolicy:
    codes = (parse_unsigned(code) for code in statuses.split(","))
    names = (name.strip().lower() for name in headers.split(","))
    return replace(
        policy,
        retry_on=policy.retry_on | conditions,
        num_retries=policy.num_retries if number is None else number,
        retriable_status_codes=policy.retriable_status_codes | {code for code in codes if code is not None},
        retriable_headers=(*policy.retriable_headers, *(HeaderMatch(name=name) for name in names if name)),
    )


@lru_cache(maxsize=256)
def _with_conditions(policy: RetryPolicy, conditions: frozenset[str]) -> RetryPolicy:
    return replace(policy, retry_on=conditions)


@lru_cache(maxsize=256)
def _predicates(matches: tuple[HeaderMatch, ...]) -> tuple[HeaderPredicate, ...]:
    return tuple(compile_header(match) for match in matches)


def _names(text: str, known: frozenset[str]) -> frozenset[str]:
    """The condition names in a comma-separated list; unknown ones mean nothing, as in Envoy."""
    return frozenset(name.strip() for name in text.split(",")) & known if text else frozenset()
