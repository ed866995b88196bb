"""RetryPolicy and HedgePolicy of routes and virtual hosts."""

from __future__ import annotations

from meshlib.resources.decode_matching import header_match
from meshlib.resources.reader import Reader
from meshlib.resources.route import BackOff, HedgePolicy, RateLimitedBackOff, ResetHeader, RetryPolicy

__all__ = ["hedge_policy", "retry_policy"]

CONDITIONS = frozenset(
    {
        *("5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "envoy-ratelimited"),
        *("retriable-4xx", "refused-stream", "retriable-status-codes", "retriable-headers"),
        *("http3-post-connect-failure", "cancelled", "deadline-exceeded", "internal", "resource-exhausted"),
        "unavailable",
    }
)
"""What `retry_on` may name; Envoy ignores everything else."""

_RETRY_POLICY = "envoy.config.route.v3.RetryPolicy"
_LEAST_INTERVAL = 0.001


def retry_policy(reader: Reader) -> RetryPolicy | None:
    """The `retry_policy` (or `retry_policy_typed_config`) of a route action or virtual host. Raises ResourceError."""
    typed = reader.child("retry_policy_typed_config")
    policy = reader.child("retry_policy")
    if policy is None and typed is not None:
        policy = typed.unpacked()
        if policy.type_name != _RETRY_POLICY:
            raise reader.fail(
                "retry_policy_typed_config", f"expected {_RETRY_POLICY}, got {policy.type_name}"
            )
    elif typed is not None:
        typed.leave("type_url", "value")
        reader.unsupported("retry_policy_typed_config")
    return None if policy is None else _policy(policy)


def hedge_policy(reader: Reader) -> HedgePolicy | None:
    """The `hedge_policy` of a route action or virtual host. Envoy implements only hedge_on_per_try_timeout."""
    policy = reader.child("hedge_policy")
    if policy is None:
        return None
    if policy.boxed("initial_requests") == 1:
        policy.leave("initial_requests")  # one is what is sent anyway
    elif policy.has("initial_requests"):
        policy.unsupported("initial_requests")
    chance = policy.child("additional_request_chance")
    if chance is not None and chance.number("numerator"):
        policy.unsupported("additional_request_chance")
    if chance is not None:
        chance.leave("denominator")
    return HedgePolicy(hedge_on_per_try_timeout=policy.flag("hedge_on_per_try_timeout"))


def _policy(reader: Reader) -> RetryPolicy:
    number = reader.boxed("num_retries")
    if not reader.message.retry_host_predicate:
        reader.leave("host_selection_retry_max_attempts")
    return RetryPolicy(
        retry_on=_conditions(reader),
        num_retries=1 if number is None else number,
        per_try_timeout=reader.duration("per_try_timeout"),
        back_off=_back_off(reader.child("retry_back_off")),
        rate_limited_back_off=_rate_limited(reader.child("rate_limited_retry_back_off")),
        retriable_status_codes=frozenset(reader.values("retriable_status_codes")),
        retriable_headers=tuple(header_match(entry) for entry in reader.each("retriable_headers")),
        retriable_request_headers=tuple(
            header_match(entry) for entry in reader.each("retriable_request_headers")
        ),
    )


def _conditions(reader: Reader) -> frozenset[str]:
    names = {name.strip() for name in reader.text("retry_on").split(",")} - {""}
    for name in sorted(names - CONDITIONS):
        reader.reading.warnings.append(
            f"{reader.at('retry_on')}: {name!r} is not a condition that Envoy knows"
        )
    return frozenset(names & CONDITIONS)


def _back_off(reader: Reader | None) -> BackOff:
    if reader is None:
        return BackOff()
    base = max(reader.duration("base_interval") or 0.0, _LEAST_INTERVAL)
    longest = reader.duration("max_interval")
    if longest is None:
        return BackOff(base_interval=base, max_interval=10 * base)
    longest = max(longest, _LEAST_INTERVAL)
    if longest < base:
        raise reader.fail("max_interval", f"must not be smaller than base_interval ({base:g} s)")
    return BackOff(base_interval=base, max_interval=longest)


def _rate_limited(reader: Reader | None) -> RateLimitedBackOff | None:
    if reader is None:
        return None
    headers = tuple(
        ResetHeader(
            name=entry.text("name").lower(),
            unix_timestamp=entry.enum("format", {0: False, 1: True}),
        )
        for entry in reader.each("reset_headers")
    )
    longest = reader.duration("max_interval")
    return RateLimitedBackOff(reset_headers=headers, max_interval=300.0 if longest is None else longest)
