"""One call in asyncio.

Connections parse what arrives by themselves and notify; the loop here looks at all its attempts, reports what is new to the
engine and sleeps on one future until the next notification. A cancelled task gives up its attempts before the cancellation
goes on.
"""

from __future__ import annotations

import asyncio
from functools import partial
from math import inf

from meshlib.engine.events import (
    Connected,
    End,
    Event,
    Headers,
    Message,
    RequestComplete,
)
from meshlib.errors import MeshError
from meshlib.transport.http.async_attempts import AsyncAttempts
from meshlib.transport.http.async_pool import Lane
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

__all__ = ["AsyncExchange"]


class AsyncExchange(AsyncAttempts):
    """Runs one call. `run` gives the answer; afterwards the answer's stream calls `read` and `close`."""

    async def run(self, instead: Instead) -> Answer | Leave:
        """Until there is an answer. Raises ImpatienceError, and what the application's body raises.

        instead: what to give, or to raise, for a MeshError.
        """
        monotonic, handle = self._monotonic, self.call.handle
        try:
            actions = handle(BEGIN if self._upload is None else BEGIN_STREAMED, monotonic())
            while True:
                event = self._carry_out(actions)
                if self._answer is not None:
                    if self._accepted is None:
                        self._end_upload()
                        del self.call  # it refers back to us through `wake`
                    answer, self._answer = self._answer, None
                    return answer
                actions = handle(event or await self._wait(), monotonic())
        except BaseException as error:
            self._abandon(error)
            if isinstance(error, MeshError):
                return instead(error, self.call.info) or Leave(self.call.headers_to_add)
            raise

    async def _wait(self) -> Event:
        """The next event, waited for as long as the engine and the application's patience allow."""
        call = self.call
        wait_from = self._monotonic()
        if self._later:
            return self._later.pop(0)
        while True:
            event = self._ready_event()
            if event is not None:
                return event
            now = self._monotonic()
            if now >= call.wake_at:
                return TIMER
            phase, seconds = self._patience()
            until = wait_from + seconds
            if now >= until:
                raise ImpatienceError(phase, seconds, self.call.info)
            sleeper = self._fall_asleep(min(call.wake_at, until), now)
            try:
                await sleeper
            finally:
                moved = self._rise()
            if moved:
                wait_from = self._monotonic()

    def _ready_event(self) -> Event | None:
        """What needs no waiting: a request to send, headers that are there, a failure, a place that was served."""
        event = self._body_event()
        if event is not None:
            return event
        if self._woken:
            self._woken = False
            return WOKEN
        for attempt in self._attempts:
            lane: Lane | None = attempt.connection
            if lane is None:
                continue
            if attempt.stage is Stage.CONNECTING and lane.opened:
                attempt.stage = Stage.READY
                return Connected(attempt.number)
            if attempt.stage is Stage.READY and lane.opened:
                failed = self._send(attempt, lane)
                if failed is not None:
                    return failed
            response = lane.response
            if attempt.stage is Stage.SENT and response.status:
                attempt.stage = Stage.ANSWERED
                self._account(response)
                return Headers(attempt.number, response.status, LazyHeaders(response), response.complete)
            if lane.failure is not None and not (attempt.stage is Stage.ANSWERED and response.complete):
                return self._failed(attempt, lane.failure)
        return None

    def _body_event(self) -> Event | None:
        upload = self._upload
        if upload is None:
            return None
        if upload.error is not None:
            raise upload.error
        if upload.buffer.exhausted and not self._told_complete:
            self._told_complete = True
            return RequestComplete()
        return None

    def _patience(self) -> tuple[Phase, float]:
        """Which of the application's own timeouts applies now, and how long it is."""
        patience = self._request.patience
        if not self._attempts:
            return Phase.READ, patience.read if self.call.delayed else inf
        attempt = self._attempts[0]
        if attempt.stage is Stage.PARKED:
            return (Phase.POOL, patience.pool) if attempt.waiter is not None else (Phase.READ, inf)
        if attempt.stage is Stage.CONNECTING:
            return Phase.READ, inf  # the connection itself gives up after its connect timeout
        lane: Lane = attempt.connection
        if lane.congested:
            return Phase.WRITE, patience.write
        if not self._told_complete:
            return Phase.READ, inf  # the application's own iterator may take as long as it likes
        return Phase.READ, patience.read

    def _fall_asleep(self, until: float, now: float) -> asyncio.Future[None]:
        """What to await: it is done when something happens, or at that moment. `_rise` follows, whatever it ends with."""
        sleeper = self._sleeper = self._loop.create_future()
        self._before = self._activity()
        if until < inf:
            lane: Lane | None = self._attempts[0].connection if self._attempts else None
            if lane is not None:
                lane.watch(until, now)
            else:
                self._alarm = self._loop.call_later(until - now, self._notify)
        return sleeper

    def _rise(self) -> bool:
        """True when bytes have moved in the meantime."""
        self._sleeper = None
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        return self._activity() != self._before

    def _activity(self) -> int:
        """Grows when bytes move on any of the attempts."""
        count = 0 if self._upload is None else self._upload.steps
        for attempt in self._attempts:
            if attempt.connection is not None:
                count += attempt.connection.activity
        return count

    async def read(self) -> bytes | None:
        """The next piece of the accepted response; None at its end. Raises like `run`."""
        attempt = self._accepted
        if attempt is None:
            return None
        lane: Lane = attempt.connection
        response = lane.response
        try:
            wait_from = self._monotonic()
            while not response.chunks:
                if response.complete:
                    self._finish(attempt)
                    return None
                event = self._body_event()
                if event is None and lane.failure is not None:
                    event = self._failed(attempt, lane.failure)
                if event is None:
                    event, wait_from = await self._read_more(attempt, wait_from)
                if event is not None:
                    self._carry_out(self.call.handle(event, self._monotonic()))
            self._tell_progress(attempt)
        except BaseException as error:
            self._accepted = None
            self._abandon(error)
            raise
        data = response.take()
        self._received += len(data)
        if self.call.observed:
            self._account(None)
        lane.consumed(len(data))
        return data

    async def _read_more(self, attempt: Attempt, wait_from: float) -> tuple[Event | None, float]:
        """Sleep until bytes arrive; the event of a timer, and the moment from which patience counts next."""
        now = self._monotonic()
        if now >= self.call.wake_at:
            return TIMER, wait_from
        phase, seconds = self._patience()
        if now >= wait_from + seconds:
            raise ImpatienceError(phase, seconds, self.call.info)
        sleeper = self._fall_asleep(min(self.call.wake_at, wait_from + seconds), now)
        try:
            await sleeper
        finally:
            moved = self._rise()
        return (Message(attempt.number), self._monotonic()) if moved else (None, wait_from)

    def _tell_progress(self, attempt: Attempt) -> None:
        """A piece of the body goes to the application: the stream is not idle, but its deadline may have passed."""
        call, now = self.call, self._monotonic()
        self._carry_out(call.handle(Message(attempt.number), now))
        if now >= call.wake_at:
            self._carry_out(call.handle(TIMER, now))

    def _finish(self, attempt: Attempt) -> None:
        self._accepted = None
        self._end_upload()
        response = attempt.connection.response
        self._account(response)
        trailers = decode_headers(response.trailers)
        self._carry_out(self.call.handle(End(attempt.number, trailers), self._monotonic()))
        if attempt in self._attempts:
            self._release(attempt)
        del self.call

    async def close(self) -> None:
        """The application wants no more of the response. Idempotent."""
        attempt, self._accepted = self._accepted, None
        if attempt is None:
            return
        if attempt.connection.response.complete:
            self._finish(attempt)
        else:
            self._abandon()

    def drop(self) -> None:
        """The response was garbage-collected unread. May run anywhere, so it takes no lock: the next call cleans up."""
        attempt, self._accepted = self._accepted, None
        if attempt is not None:
            attempt.connection.drop()
            attempt.start.state.abandoned.append(partial(give_up, self.call, self._monotonic()))
