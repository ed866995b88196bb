"""One call in blocking code.

While one attempt is alive, which is nearly always, the loop blocks in its socket with the time that is left as the limit.
While several are (hedging), `sync_several` waits for all of them. While none is (a back-off, a place in a queue,
configuration that is awaited), it waits on an event that any thread may set.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from math import inf

from meshlib.engine.actions import Accept, Action, Start
from meshlib.engine.events import (
    End,
    Event,
    Headers,
    Message,
    NeedConnection,
    RequestComplete,
)
from meshlib.errors import MeshError
from meshlib.transport.http.exchange import (
    BEGIN,
    BEGIN_STREAMED,
    TIMER,
    WOKEN,
    Answer,
    Attempt,
    ImpatienceError,
    Instead,
    LazyHeaders,
    Leave,
    Phase,
    Stage,
    decode_headers,
    give_up,
)
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.sync_connection import SyncConnection
from meshlib.transport.http.sync_several import SeveralAttempts

__all__ = ["SyncExchange"]


class SyncExchange(SeveralAttempts):
    """Runs one call. `run` gives the answer; afterwards the answer's stream calls `read` and `close`."""

    def run(self, instead: Instead) -> Answer | Leave:
        """Until there is an answer. Raises ImpatienceError, and what the application's body raises.

        instead: what to give, or to raise, for a MeshError.
        """
        monotonic, handle = self._monotonic, self.call.handle
        try:
            if self._upload is None:
                actions = handle(BEGIN, monotonic())
                if len(actions) == 1 and type(start := actions[0]) is Start and start.permitted:
                    actions = self._at_once(start)
            else:
                actions = handle(BEGIN_STREAMED, monotonic())
            while (answer := self._answer) is None:
                event = self._carry_out(actions)
                if self._answer is None:
                    actions = handle(event or self._wait(), monotonic())
        except BaseException as error:
            self._abandon(error)
            if isinstance(error, MeshError):
                return instead(error, self.call.info) or Leave(self.call.headers_to_add)
            raise
        self._answer = None
        if self._accepted is None:
            del self.call  # it refers back to us through `wake`
        return answer

    def _at_once(self, start: Start) -> Sequence[Action]:
        """The common case in one piece: an idle connection, one send, one receive, and the answer is there.

        What is left to carry out, where it is not.
        """
        call, monotonic = self.call, self._monotonic
        connection = self._idle_connection(start)
        if connection is None:
            self._attempts.append(attempt := Attempt(start))
            attempt.stage = Stage.PARKED
            return call.handle(NeedConnection(start.attempt, self._pool), monotonic())
        if self._engine.shows_connections:
            self._describe(start.attempt, connection)
        request = self._request
        limit = call.wake_at - monotonic()
        read = request.timeout.get("read")
        if read is not None and read < limit:
            limit = read
        try:
            connection.round_trip(request.outgoing(start), limit)
        except BaseException as error:
            attempt = self._enlist(start, connection)
            if isinstance(error, TransportFailure):
                return call.handle(self._failed(attempt, error), monotonic())
            if not isinstance(error, TimeoutError):
                raise
            if limit == read:
                raise ImpatienceError(Phase.READ, limit, call.info) from None
            return ()
        response = connection.codec.response
        if not response.complete:
            self._enlist(start, connection)
            return ()
        if call.observed:
            self._account(response)
        event = Headers(start.attempt, response.status, LazyHeaders(response), True)
        actions = call.handle(event, monotonic())
        if len(actions) != 1 or type(accept := actions[0]) is not Accept:
            self._enlist(start, connection).stage = Stage.ANSWERED
            return actions
        self._answer = self._answered(accept, response, response.take(), None)
        connection.give_back()
        return ()

    def _enlist(self, start: Start, connection: SyncConnection) -> Attempt:
        """The request has begun to leave, and it takes more than one turn."""
        attempt = Attempt(start)
        attempt.connection = connection
        attempt.stage = Stage.SENT
        self._attempts.append(attempt)
        return attempt

    def _wait(self) -> Event:
        """The next event, waited for as long as the engine and the application's patience allow."""
        call, monotonic = self.call, self._monotonic
        wait_from = monotonic()
        attempts = self._attempts
        if self._later:
            return self._later.pop(0)
        while True:
            event = self._ready_event(attempts)
            if event is not None:
                return event
            now = monotonic()
            if now >= call.wake_at:
                return TIMER
            if len(attempts) > 1:
                event = self._wait_for_several(wait_from, now)
            elif not attempts or attempts[0].connection is None:
                event = self._wait_parked(wait_from, now)
            else:
                phase, until = self._patience(attempts[0], wait_from)
                if now >= until:
                    return self._expired(attempts[0], phase)
                event = self._advance(attempts[0], min(call.wake_at, until) - now)
            if event is not None:
                return event
            if self._moved:
                self._moved = False
                wait_from = monotonic()

    def _ready_event(self, attempts: list[Attempt]) -> Event | None:
        """What needs no waiting: a request to send, headers that are there, a body that is complete."""
        if not self._told_complete:
            assert self._upload is not None
            if self._upload.buffer.exhausted:
                self._told_complete = True
                return RequestComplete()
        for attempt in attempts:
            stage = attempt.stage
            if stage is Stage.READY:
                failure = self._send(attempt)
                if failure is not None:
                    return failure
                stage = attempt.stage
            if stage is Stage.SENT:
                event = self._headers_event(attempt)
                if event is not None:
                    return event
        return None

    def _parked_patience(self) -> tuple[Phase, float]:
        """Which of the application's own timeouts applies while nothing has been sent, and how long it is."""
        patience = self._request.patience
        if any(attempt.waiter is not None for attempt in self._attempts):
            return Phase.POOL, patience.pool
        return Phase.READ, patience.read if self.call.delayed else inf

    def _wait_parked(self, wait_from: float, now: float) -> Event | None:
        """No socket to wait for: a back-off, a queue, configuration."""
        until = self.call.wake_at
        phase, seconds = self._parked_patience()
        patient_until = wait_from + seconds
        if self._woken:
            self._woken = False
            if isinstance(self._event, threading.Event):
                self._event.clear()
            return WOKEN
        if now >= patient_until:
            raise ImpatienceError(phase, seconds, self.call.info)
        limit = min(until, patient_until) - now
        event = self._event
        if not isinstance(event, threading.Event):
            # A wake-up from now on sets it; one that came before is seen in the next round.
            self._event = threading.Event()
            return None
        event.wait(None if limit == inf else min(limit, threading.TIMEOUT_MAX))
        return None

    def read(self) -> bytes | None:
        """The next piece of the accepted response; None at its end. Raises like `run`."""
        attempt = self._accepted
        if attempt is None:
            return None
        connection: SyncConnection = attempt.connection
        response = connection.codec.response
        try:
            wait_from = self._monotonic()
            while not response.chunks:
                if response.complete:
                    self._finish(attempt)
                    return None
                wait_from = self._read_more(attempt, wait_from)
            self._tell_progress(attempt)
        except BaseException as error:
            self._accepted = None
            self._abandon(error)
            raise
        data = response.take()
        self._received += len(data)
        if self.call.observed:
            self._account(None)
        connection.codec.consumed(len(data))
        return data

    def _read_more(self, attempt: Attempt, wait_from: float) -> float:
        """Let bytes of the accepted response move once; the moment from which patience counts next."""
        call, now = self.call, self._monotonic()
        phase, until = self._patience(attempt, wait_from)
        event: Event | None = None
        if now >= call.wake_at:
            event = TIMER
        elif now >= until:
            self._expired(attempt, phase)
        else:
            event = self._advance(attempt, min(call.wake_at, until) - now)
        if (
            event is None
            and not self._told_complete
            and self._upload is not None
            and self._upload.buffer.exhausted
        ):
            self._told_complete = True
            event = RequestComplete()
        if event is None and self._moved:
            event = Message(attempt.number)
        if event is not None:
            self._carry_out(call.handle(event, self._monotonic()))
        if self._moved:
            self._moved = False
            return self._monotonic()
        return wait_from

    def _tell_progress(self, attempt: Attempt) -> None:
        """A piece of the body goes to the application: the stream is not idle, but its deadline may have passed."""
        call, now = self.call, self._monotonic()
        self._carry_out(call.handle(Message(attempt.number), now))
        if now >= call.wake_at:
            self._carry_out(call.handle(TIMER, now))

    def _finish(self, attempt: Attempt) -> None:
        self._accepted = None
        response = attempt.connection.codec.response
        self._account(response)
        trailers = decode_headers(response.trailers)
        self._carry_out(self.call.handle(End(attempt.number, trailers), self._monotonic()))
        if attempt in self._attempts:
            self._release(attempt)
        del self.call

    def close(self) -> None:
        """The application wants no more of the response. Idempotent."""
        attempt, self._accepted = self._accepted, None
        if attempt is None:
            return
        if attempt.connection.codec.response.complete:
            self._finish(attempt)
        else:
            self._abandon()

    def drop(self) -> None:
        """The response was garbage-collected unread. May run anywhere, so it takes no lock: the next call cleans up."""
        attempt, self._accepted = self._accepted, None
        if attempt is not None:
            attempt.connection.drop()
            attempt.start.state.abandoned.append(partial(give_up, self.call, self._monotonic()))
