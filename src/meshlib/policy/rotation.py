"""When connections are exchanged after a certificate was renewed.

What is trusted decides who may be talked to: when an authority goes, connections to those whom it vouched for take no more
calls, and all others are as good as new ones. A renewed certificate says the same for longer: new connections show
it at once; those of before are exchanged one after the other, since a handshake takes a thousand times as long as what a call
needs of the processor, and calls would wait for all of them.

Clients go first: they open another connection before they leave one, so that no call waits. A server can only end it, and the
next call waits for a handshake. Where both ends were renewed together, as after a root was exchanged, there is nothing left for
servers to end when their time begins, which is as long and follows upon that of clients.
"""

from __future__ import annotations

from random import Random

__all__ = ["delays", "draw", "within"]

WITHIN = 30.0
"""Seconds at most."""

draw = Random().random
"""What is not to happen everywhere at once is a matter of chance; nothing else depends on it."""


def within(left: float) -> float:
    """Seconds within which all are exchanged: at most a quarter of what is left of the earlier certificate's life."""
    return min(WITHIN, max(left, 0.0) / 4)


def delays(count: int, left: float) -> list[float]:
    """Seconds from now, ascending: one in each of `count` equal parts of the time. left: as in `within`."""
    return [within(left) * (index + draw()) / count for index in range(count)]
