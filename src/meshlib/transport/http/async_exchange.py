"""One call in asyncio.

Connections parse what arrives by themselves and notify; the loop here looks at all its attempts, reports what is new to the
engine and sleeps on one future until the next notification. A cancelled task gives up its attempts before the cancellation
goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Sequence
from functools import partial
from math import inf

from meshlib.engine.actions import Accept, Action, CancelAttempt, Connect, Fail, Park, Reply, Start
from meshlib.engine.call import Call
from meshlib.engine.engine import Engine
from meshlib.engine.events import (
    Connected,
    End,
    Event,
    Failed,
    Headers,
    Message,
    NeedConnection,
    RequestComplete,
)
from meshlib.transport.http.async_connection import AsyncConnection
from meshlib.transport.http.async_h2 import H2Lane
from meshlib.transport.http.body import AsyncUpload
from meshlib.transport.http.exchange import (
    BEGIN,
    BEGIN_STREAMED,
    CANCELLED,
    TIMER,
    WOKEN,
    Answer,
    Attempt,
    ImpatienceError,
    LazyHeaders,
    OriginalRequest,
    Phase,
    Stage,
    UnsupportedActionError,
    decode_headers,
    encode_headers,
    give_up,
)
from meshlib.transport.http.failure import TransportFailure, connect_failure
from meshlib.transport.http.pools import Lane, PoolSet

__all__ = ["AsyncExchange"]


class AsyncExchange:
    """Runs one call. `run` gives the answer; afterwards the answer's stream calls `read` and `close`."""

    __slots__ = (
        "__weakref__",
        "_accepted",
        "_answer",
        "_attempts",
        "_loop",
        "_monotonic",
        "_parked",
        "_pool",
        "_pools",
        "_request",
        "_sleeper",
        "_told_complete",
        "_upload",
        "_woken",
        "call",
    )

    def __init__(
        self,
        engine: Engine,
        pools: PoolSet,
        request: OriginalRequest,
        source: AsyncIterable[bytes] | None,
        length: int | None,
        monotonic: Callable[[], float],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._pools = pools
        self._pool = pools.for_loop(self._loop)
        self._request = request
        self._upload = None if source is None else AsyncUpload(source, length, self._notify)
        self._monotonic = monotonic
        self._attempts: list[Attempt] = []
        self._sleeper: asyncio.Future[None] | None = None
        self._woken = False
        self._parked = False
        self._told_complete = source is None
        self._accepted: Attempt | None = None
        self._answer: Answer | None = None
        self.call: Call = engine.call(
            request.view, wake=self._wake, replayable=None if source is None else self._replayable
        )

    async def run(self) -> Answer:
        """Until there is an answer. Raises MeshError, ImpatienceError, and what the application's body raises."""
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
        except BaseException:
            self._abandon()
            raise

    # --- actions -----------------------------------------------------------------------------------------------------

    def _carry_out(self, actions: Sequence[Action]) -> Event | None:
        """Carry out the actions in order. The event that follows at once, None when it must be waited for."""
        event: Event | None = None
        for action in actions:
            kind = type(action)
            if kind is Start:
                event = self._start(action) or event  # type: ignore[arg-type]
            elif kind is Accept:
                self._accept(action)  # type: ignore[arg-type]
            elif isinstance(action, CancelAttempt):
                self._cancel(action.attempt)
            elif isinstance(action, Connect):
                event = self._connect(action) or event
            elif isinstance(action, Park):
                self._park(action)
            elif isinstance(action, Fail):
                raise action.error
            elif isinstance(action, Reply):
                self._answer = Answer.local(action.reply, self.call.info)
            else:
                raise UnsupportedActionError(action)
        return event

    def _start(self, action: Start) -> Event | None:
        attempt = Attempt(action)
        self._attempts.append(attempt)
        lane = self._pool.acquire(action.endpoint, action.cluster.protocol)
        if lane is None:
            attempt.stage = Stage.PARKED
            return NeedConnection(action.attempt, self._pool)
        self._use(attempt, lane)
        return None if action.permitted else Connected(action.attempt)

    def _use(self, attempt: Attempt, lane: Lane) -> None:
        attempt.connection = lane
        attempt.stage = Stage.READY
        lane.listener = self._notify

    def _park(self, action: Park) -> None:
        self._parked = True
        if action.waiter is not None:
            attempt = self._find(action.attempt)
            if attempt is not None:
                attempt.waiter = action.waiter
                self._pool.rescue(attempt.start.endpoint)
                if not action.waiter.served:
                    self._pools.spare(attempt.start.endpoint, self._pool)

    def _connect(self, action: Connect) -> Event | None:
        attempt = self._find(action.attempt)
        assert attempt is not None
        self._parked = False
        attempt.waiter = None
        lane = action.connection
        if isinstance(lane, AsyncConnection | H2Lane):
            self._use(attempt, lane)
            return Connected(attempt.number)
        start = attempt.start
        limit = min(start.cluster.connect_timeout, self._request.patience.connect)
        try:
            lane = self._pool.connect(start.endpoint, start.cluster, start.state, start.permits, limit)
        except OSError as error:
            start.state.connection_closed(start.endpoint, start.permits)
            return self._failed(attempt, connect_failure(error))
        self._use(attempt, lane)
        attempt.stage = Stage.CONNECTING
        return None

    def _accept(self, action: Accept) -> None:
        attempt = self._find(action.attempt)
        assert attempt is not None
        response = attempt.connection.response
        headers = response.headers if action.headers is None else encode_headers(action.headers)
        if response.complete:
            content = response.take()
            attempt.connection.consumed(len(content))
            self._release(attempt)
            stream = None
        else:
            content, stream = None, self
            self._accepted = attempt
        self._answer = Answer(
            response.status,
            headers,
            self.call.info,
            content=content,
            stream=stream,
            reason=response.reason,
            version=response.version,
        )

    def _cancel(self, number: int) -> None:
        attempt = self._find(number)
        if attempt is not None:
            self._release(attempt)

    def _release(self, attempt: Attempt) -> None:
        """The attempt is over: its connection goes back to the pool if it can serve another call, else it is closed."""
        self._attempts.remove(attempt)
        if self._upload is not None:
            self._upload.detach()
        waiter = attempt.waiter
        if waiter is not None and isinstance(waiter.connection, AsyncConnection | H2Lane):
            waiter.connection.give_back()
        lane: Lane | None = attempt.connection
        if lane is None:
            return
        if (attempt.stage is Stage.READY and lane.opened) or (
            attempt.stage is Stage.ANSWERED and lane.response.complete and lane.finished()
        ):
            lane.give_back()
        else:
            lane.close()

    def _abandon(self) -> None:
        """Something was raised: the engine hears that the call is over, and nothing stays open."""
        self._end_upload()
        for action in self.call.handle(CANCELLED, self._monotonic()):
            if isinstance(action, CancelAttempt):
                self._cancel(action.attempt)
        for attempt in list(self._attempts):
            self._release(attempt)

    def _end_upload(self) -> None:
        if self._upload is not None:
            self._upload.cancel()

    # --- events ------------------------------------------------------------------------------------------------------

    async def _wait(self) -> Event:
        """The next event, waited for as long as the engine and the application's patience allow."""
        call = self.call
        wait_from = self._monotonic()
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
            if await self._sleep(min(call.wake_at, until), now):
                wait_from = self._monotonic()

    def _ready_event(self) -> Event | None:
        """What needs no waiting: a request to send, headers that are there, a failure, a place that was served."""
        event = self._body_event()
        if event is not None:
            return event
        if self._woken:
            self._woken = self._parked = False
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
                return Headers(
                    attempt.number, response.status, LazyHeaders(response.headers), response.complete
                )
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

    def _send(self, attempt: Attempt, lane: Lane) -> Event | None:
        attempt.stage = Stage.SENT
        try:
            lane.begin(self._request.outgoing(attempt.start))
        except TransportFailure as failure:
            return self._failed(attempt, failure)
        if self._upload is not None:
            self._upload.buffer.limit = self.call.buffer_limit
            self._upload.attach(lane)
        return None

    def _failed(self, attempt: Attempt, failure: TransportFailure) -> Event:
        """Report the failure; the attempt is over."""
        lane: Lane | None = attempt.connection
        sent = lane is not None and attempt.stage in (Stage.SENT, Stage.ANSWERED) and lane.sent
        self._attempts.remove(attempt)
        if self._upload is not None:
            self._upload.detach()
        if lane is not None:
            lane.close()
        return Failed(attempt.number, failure.kind, sent, failure.reason)

    def _patience(self) -> tuple[Phase, float]:
        """Which of the application's own timeouts applies now, and how long it is."""
        patience = self._request.patience
        if not self._attempts:
            return Phase.READ, inf
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

    async def _sleep(self, until: float, now: float) -> bool:
        """Until something happens, or until that moment. True when bytes have moved in the meantime."""
        sleeper = self._sleeper = self._loop.create_future()
        lane: Lane | None = self._attempts[0].connection if self._attempts else None
        before = self._activity(lane)
        timer: asyncio.TimerHandle | None = None
        if until < inf:
            if lane is not None:
                lane.watch(until, now)
            else:
                timer = self._loop.call_later(until - now, self._notify)
        try:
            await sleeper
        finally:
            self._sleeper = None
            if timer is not None:
                timer.cancel()
        return self._activity(lane) != before

    def _activity(self, lane: Lane | None) -> int:
        return (0 if lane is None else lane.activity) + (0 if self._upload is None else self._upload.steps)

    def _notify(self) -> None:
        sleeper = self._sleeper
        if sleeper is not None and not sleeper.done():
            sleeper.set_result(None)

    def _wake(self) -> None:
        """Called by the engine or by a pool, from any thread."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._set_woken)

    def _set_woken(self) -> None:
        self._woken = True
        self._notify()

    def _replayable(self) -> bool:
        return self._upload is None or self._upload.buffer.replayable

    def _find(self, number: int | None) -> Attempt | None:
        for attempt in self._attempts:
            if attempt.number == number:
                return attempt
        return None

    # --- the response body -------------------------------------------------------------------------------------------

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
        except BaseException:
            self._accepted = None
            self._abandon()
            raise
        data = response.take()
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
        happened = await self._sleep(min(self.call.wake_at, wait_from + seconds), now)
        return (Message(attempt.number), self._monotonic()) if happened else (None, wait_from)

    def _tell_progress(self, attempt: Attempt) -> None:
        """A piece of the body goes to the application: the stream is not idle, but its deadline may have passed."""
        call, now = self.call, self._monotonic()
        self._carry_out(call.handle(Message(attempt.number), now))
        if now >= call.wake_at:
            self._carry_out(call.handle(TIMER, now))

    def _finish(self, attempt: Attempt) -> None:
        self._accepted = None
        self._end_upload()
        trailers = decode_headers(attempt.connection.response.trailers)
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
