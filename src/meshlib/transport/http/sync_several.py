"""Waiting for several attempts of one call in blocking code, which only hedging has.

All but the newest attempt have sent their request: an attempt is followed by another one beside it only when its per-try
timeout passes, which begins to run with the complete request. The newest may still connect, or stand in its endpoint's queue,
where another thread wakes it: its `Bell` is polled together with the others' sockets.
"""

from __future__ import annotations

import select
from math import ceil

from meshlib.engine.events import Event, FailureKind
from meshlib.transport.http.exchange import WOKEN, Attempt, ImpatienceError, Phase, Stage
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.sync_attempts import SyncAttempts
from meshlib.transport.http.sync_bell import Bell
from meshlib.transport.http.sync_connection import LONGEST

__all__ = ["SeveralAttempts"]


class SeveralAttempts(SyncAttempts):
    """How long one attempt is waited for, and how several are."""

    def _patience(self, attempt: Attempt, wait_from: float) -> tuple[Phase, float]:
        """Which of the application's own timeouts applies to it now, and until when."""
        if attempt.stage is Stage.CONNECTING:
            return Phase.READ, attempt.connect_by
        patience = self._request.patience
        if attempt.connection.sending:
            return Phase.WRITE, wait_from + patience.write
        return Phase.READ, wait_from + patience.read

    def _expired(self, attempt: Attempt, phase: Phase) -> Event:
        """The event that an attempt took too long to connect. Raises ImpatienceError when it is the application's patience."""
        if attempt.stage is Stage.CONNECTING:
            return self._failed(attempt, TransportFailure(FailureKind.CONNECT_TIMEOUT))
        patience = self._request.patience
        raise ImpatienceError(
            phase, patience.write if phase is Phase.WRITE else patience.read, self.call.info
        )

    def _wait_for_several(self, wait_from: float, now: float) -> Event | None:
        """Until bytes have moved on some connection, the newest attempt is served, or somebody's time is over.

        The application's patience is counted from the last byte on any of them; that with a queue does not apply while
        another attempt may answer.
        """
        oldest, newest = self._attempts[0], self._attempts[-1]
        phase, until = self._patience(oldest, wait_from)
        if now >= until:
            return self._expired(oldest, phase)
        if newest.stage is Stage.CONNECTING:
            if now >= newest.connect_by:
                return self._expired(newest, phase)
            until = min(until, newest.connect_by)
        limit = min(self.call.wake_at, until) - now
        if newest.connection is not None:
            return self._poll(limit, None)
        with Bell() as bell:
            self._event = bell
            # A wake-up from now on rings; one that came before is seen here.
            event = None if self._woken else self._poll(limit, bell)
            self._event = None
        if event is None and self._woken:
            self._woken = False
            return WOKEN
        return event

    def _poll(self, limit: float, bell: Bell | None) -> Event | None:
        """Wait for the bell and all connections; let bytes move where they can. The first event that comes of it."""
        poller = select.poll()
        live: dict[int, Attempt] = {}
        for attempt in self._attempts:
            if attempt.connection is not None:
                live[attempt.connection.fileno()] = attempt
                poller.register(attempt.connection.fileno(), attempt.connection.interest())
        if bell is not None:
            poller.register(bell.fileno(), select.POLLIN)
        for number, _ in poller.poll(ceil(min(limit, LONGEST) * 1000)):
            if number in live:
                event = self._advance(live[number], 0.0)
                if event is not None:
                    return event
        return None
