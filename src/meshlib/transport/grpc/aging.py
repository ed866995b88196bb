"""How long a connection may be used, by the certificate that it was opened with.

    stage   the certificate is renewed   its moment comes             the certificate is over
    FRESH   AGED, the moment is drawn    -                            OVER, told
    AGED    OVER, told                   told: it is to be exchanged  OVER, told

The moment is a connection's own (`meshlib.policy.rotation`) and comes long before the earlier certificate is over. The connection
is used until its successor is there, but not when it is more than one rotation old. When it is OVER, no new call takes it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from enum import Enum
from math import inf
from typing import Protocol

from meshlib.policy.rotation import delays
from meshlib.runtime.clock import SystemClock
from meshlib.runtime.threads import Timer
from meshlib.state import Handshake, Security
from meshlib.transport.grpc.tunnel_loop import Loop

__all__ = ["Aging", "Held"]


class Held(Protocol):
    """Who has the connection. Told on a thread that must not wait."""

    def due(self) -> None:
        """The certificate was renewed some time ago: exchange the connection for another one."""

    def expired(self) -> None:
        """The connection is to take no new calls."""


class Stage(Enum):
    """See the module."""

    FRESH = "the certificate is the newest"
    AGED = "it was renewed"
    OVER = "the connection takes no new calls"


class Aging:
    """Of one connection. `outdated` may be read, and `end` called, on any thread; everything else on the loop's own.

    holder: who is told; None: nobody.
    """

    __slots__ = ("_alarm", "_epoch", "_holder", "_loop", "_not_after", "_security", "_stage")

    def __init__(
        self, loop: Loop, security: Security, handshake: Handshake, holder: weakref.ref[Held] | None
    ) -> None:
        self._loop = loop
        self._security = security
        self._epoch = handshake.epoch
        self._not_after = handshake.not_after
        self._holder = holder
        self._stage = Stage.FRESH
        self._alarm: Timer | None = None

    def begin(self) -> None:
        """The connection is open, or is about to be."""
        if self._stage is Stage.FRESH:
            self._wait_for_the_end()
            self.look()

    @property
    def outdated(self) -> bool:
        """Certificates were renewed since the last look."""
        return self._security.epoch != self._epoch

    def look(self) -> None:
        """Certificates may have been renewed."""
        if not self.outdated:
            return
        self._epoch = self._security.epoch
        if self._stage is Stage.FRESH:
            self._stage = Stage.AGED
            (delay,) = delays(1, self._left)
            self._wait(delay, self._come)
        elif self._stage is Stage.AGED:
            self._expire()

    def end(self) -> None:
        """The connection is closed."""
        self._stage = Stage.OVER
        if self._alarm is not None:
            self._alarm.cancel()

    @property
    def _left(self) -> float:
        return self._not_after - SystemClock.time()

    def _come(self) -> None:
        """Its moment."""
        self._wait_for_the_end()
        holder = self._who()
        if holder is not None:
            holder.due()

    def _expire(self) -> None:
        self.end()
        holder = self._who()
        if holder is not None:
            holder.expired()

    def _who(self) -> Held | None:
        return None if self._holder is None else self._holder()

    def _wait_for_the_end(self) -> None:
        if self._not_after < inf:
            self._wait(max(self._left, 0.0), self._expire)

    def _wait(self, delay: float, task: Callable[[], None]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self._loop.later(delay, task)
