"""Whether the configuration wants a call traced: Envoy's decision from the `tracing` of HttpConnectionManager and route.

Envoy takes it once, at the first proxy that a request meets, and writes the reason into character 14 of x-request-id, where the
next ones find it. The number that is compared with `random_sampling` and `overall_sampling` is made of the first eight digits of
that id, so that all of them agree; a request without an id gets a random one.
"""

from __future__ import annotations

from enum import Enum
from random import Random
from typing import TYPE_CHECKING

from meshlib.resources.tracing import RouteTracing, Tracing

if TYPE_CHECKING:
    from meshlib.resources.matching import FractionalPercent
    from meshlib.routing.request import RequestView

__all__ = ["Reason", "decided", "packed", "reason_of", "wanted"]

_PLACE = 14
_LENGTH = 36


class Reason(Enum):
    """Why a call is traced; the value is the digit in x-request-id."""

    NONE = "4"
    SAMPLED = "9"
    FORCED = "a"
    CLIENT = "b"


_REASONS = {reason.value: reason for reason in Reason}


def reason_of(identity: str | None) -> Reason:
    """What the x-request-id says."""
    if identity is None or len(identity) != _LENGTH:
        return Reason.NONE
    return _REASONS.get(identity[_PLACE], Reason.NONE)


def packed(identity: str, reason: Reason) -> str:
    """The x-request-id with this reason; one that is no UUID stays as it is."""
    if len(identity) != _LENGTH:
        return identity
    return identity[:_PLACE] + reason.value + identity[_PLACE + 1 :]


def wanted(
    tracing: Tracing,
    route: RouteTracing | None,
    request: RequestView,
    random: Random,
    *,
    trusted: bool,
    forced: bool = False,
) -> Reason:
    """Envoy's decision. trusted: x-envoy-force-trace counts. forced: the request that is being answered was forced."""
    return decided(tracing, route, request, random, trusted=trusted, forced=forced)[0]


def decided(
    tracing: Tracing,
    route: RouteTracing | None,
    request: RequestView,
    random: Random,
    *,
    trusted: bool,
    forced: bool = False,
) -> tuple[Reason, bool]:
    """The same, and whether it goes into x-request-id: where nothing speaks for a trace, Envoy leaves that as it is."""
    shares = tracing if route is None else route
    identity = request.first("x-request-id")
    number = _number(identity, random)
    if number is None:
        return Reason.NONE, False
    reason = reason_of(identity)
    if reason is Reason.NONE:
        if request.first("x-client-trace-id") is not None and _drawn(
            shares.client_sampling, random.getrandbits(32)
        ):
            reason = Reason.CLIENT
        elif forced or (trusted and request.first("x-envoy-force-trace") is not None):
            reason = Reason.FORCED
        elif _drawn(shares.random_sampling, number):
            reason = Reason.SAMPLED
    if reason is Reason.NONE:
        return reason, False
    if not _drawn(shares.overall_sampling, number):
        return Reason.NONE, True
    return reason, True


def _drawn(share: FractionalPercent, number: int) -> bool:
    return number % share.denominator < share.numerator


def _number(identity: str | None, random: Random) -> int | None:
    """What the shares are compared with; None for an id that no number can be read from, which is never sampled."""
    if identity is None:
        return random.getrandbits(32) % 10_000
    try:
        return int(identity[:8], 16) % 10_000 if len(identity) >= 8 else None
    except ValueError:
        return None
