"""The attempts of one call in asyncio: the engine's actions carried out on connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable

from meshlib.engine.actions import Accept, Connect, Park, Start
from meshlib.engine.engine import Engine
from meshlib.engine.events import (
    Connected,
    Event,
    Failed,
    NeedConnection,
)
from meshlib.transport.http.async_connection import AsyncConnection
from meshlib.transport.http.async_h2 import H2Lane
from meshlib.transport.http.async_pool import Lane
from meshlib.transport.http.attempts import CallAttempts
from meshlib.transport.http.body import AsyncUpload
from meshlib.transport.http.exchange import (
    Answer,
    Attempt,
    OriginalRequest,
    Stage,
    encode_fields,
)
from meshlib.transport.http.failure import TransportFailure, connect_failure
from meshlib.transport.http.pools import PoolSet

__all__ = ["AsyncAttempts"]


class AsyncAttempts(CallAttempts):
    """What a call has under way, and how each action of the engine is carried out. `AsyncExchange` adds the waiting."""

    _sleeper: asyncio.Future[None] | None = None
    _alarm: asyncio.TimerHandle | None = None
    _before = 0

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
        self._attempts = []
        self._engine = engine
        if source is not None:
            self._told_complete = False
        self.call = engine.call(
            request.view, wake=self._wake, replayable=None if source is None else self._replayable
        )

    def _start(self, action: Start) -> Event | None:
        attempt = Attempt(action)
        self._attempts.append(attempt)
        endpoint = action.endpoint
        way = endpoint.way
        lane = self._pool.acquire(self._shelf(action) if way.named else endpoint, way)
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
        attempt.waiter = None
        start = attempt.start
        lane = action.connection
        if isinstance(lane, AsyncConnection | H2Lane):
            if lane.way is not start.endpoint.way:
                lane.close()
                return NeedConnection(attempt.number, self._pool)
            self._use(attempt, lane)
            return Connected(attempt.number)
        limit = min(start.cluster.connect_timeout, self._request.patience.connect)
        try:
            lane = self._pool.connect(start, self._authority(start), limit)
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
        fields = response.fields if action.headers is None else encode_fields(action.headers)
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
            fields,
            self.call.info,
            content=content,
            stream=stream,
            reason=response.reason,
            version=response.version,
        )

    def _release(self, attempt: Attempt) -> None:
        """The attempt is over: its connection goes back to the pool if it can serve another call, else it is closed."""
        self._attempts.remove(attempt)
        if self._upload is not None:
            self._upload.detach(attempt.connection)
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

    def _abandon(self, error: BaseException | None = None) -> None:
        self._end_upload()
        super()._abandon(error)

    def _end_upload(self) -> None:
        if self._upload is not None:
            self._upload.cancel()

    def _send(self, attempt: Attempt, lane: Lane) -> Event | None:
        attempt.stage = Stage.SENT
        if self._engine.shows_connections:
            self._describe(attempt.number, lane)
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
        self._broken = failure
        self._attempts.remove(attempt)
        if self._upload is not None:
            self._upload.detach(lane)
        if lane is not None:
            lane.close()
        return Failed(attempt.number, failure.kind, sent, failure.reason)

    def _uploaded(self) -> int:
        upload = self._upload
        return len(self._request.body or b"") if upload is None else upload.buffer.size

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
