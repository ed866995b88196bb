"""The attempts of one call in blocking code: the engine's actions carried out on connections."""

from __future__ import annotations

import threading
from collections.abc import Callable

from meshlib.engine.actions import Accept, Connect, Park, Start
from meshlib.engine.engine import Engine
from meshlib.engine.events import (
    Connected,
    Event,
    Failed,
    Headers,
    NeedConnection,
)
from meshlib.transport.http.attempts import CallAttempts
from meshlib.transport.http.body import SyncUpload
from meshlib.transport.http.exchange import (
    Answer,
    Attempt,
    LazyHeaders,
    OriginalRequest,
    Stage,
    encode_fields,
)
from meshlib.transport.http.failure import TransportFailure, connect_failure
from meshlib.transport.http.message import Response
from meshlib.transport.http.pools import PoolSet
from meshlib.transport.http.sync_bell import Alarm
from meshlib.transport.http.sync_connection import SyncConnection

__all__ = ["SyncAttempts"]


class SyncAttempts(CallAttempts):
    """What a call has under way, and how each action of the engine is carried out. `SyncExchange` adds the waiting."""

    _event: Alarm | None
    _moved = False

    def __init__(
        self,
        engine: Engine,
        pools: PoolSet,
        request: OriginalRequest,
        upload: SyncUpload | None,
        monotonic: Callable[[], float],
    ) -> None:
        self._pools = pools
        self._pool = pools.sync
        self._request = request
        self._upload = upload
        self._monotonic = monotonic
        self._event = None
        self._attempts = []
        self._engine = engine
        if upload is not None:
            self._told_complete = False
        self.call = engine.call(
            request.view, wake=self._wake, replayable=None if upload is None else self._replayable
        )

    def _idle_connection(self, start: Start) -> SyncConnection | None:
        endpoint = start.endpoint
        way = endpoint.way
        connection = self._pool.pop_idle(endpoint, way)
        if connection is None:
            if not way.named:
                return None
            connection = self._pool.pop_idle(self._shelf(start), way)
        assert connection is None or isinstance(connection, SyncConnection)
        return connection

    def _start(self, action: Start) -> Event | None:
        attempt = Attempt(action)
        self._attempts.append(attempt)
        connection = self._idle_connection(action)
        if connection is None:
            attempt.stage = Stage.PARKED
            return NeedConnection(action.attempt, self._pool)
        attempt.connection = connection
        return None if action.permitted else Connected(action.attempt)

    def _park(self, action: Park) -> None:
        if self._event is None:
            self._event = threading.Event()
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
        handed = action.connection
        if isinstance(handed, SyncConnection):
            if handed.way is not start.endpoint.way:
                handed.close()
                return NeedConnection(attempt.number, self._pool)
            attempt.connection = handed
            attempt.stage = Stage.READY
            return Connected(attempt.number)
        try:
            connection = self._pool.make(start, self._authority(start))
        except OSError as error:
            start.state.connection_closed(start.endpoint, start.permits)
            return self._failed(attempt, connect_failure(error))
        attempt.connection = connection
        attempt.stage = Stage.CONNECTING
        attempt.connect_by = self._monotonic() + min(
            start.cluster.connect_timeout, self._request.patience.connect
        )
        try:
            connection.connect()
        except TransportFailure as failure:
            return self._failed(attempt, failure)
        return None if connection.connecting else self._opened(attempt)

    def _opened(self, attempt: Attempt) -> Event:
        attempt.stage = Stage.READY
        return Connected(attempt.number)

    def _accept(self, action: Accept) -> None:
        attempt = self._find(action.attempt)
        assert attempt is not None
        response = attempt.connection.codec.response
        if response.complete:
            self._answer = self._answered(action, response, response.take(), None)
            self._release(attempt)
        else:
            self._answer = self._answered(action, response, None, self)
            self._accepted = attempt

    def _answered(self, accept: Accept, response: Response, content: bytes | None, stream: object) -> Answer:
        return Answer(
            response.status,
            response.fields if accept.headers is None else encode_fields(accept.headers),
            self.call.info,
            content=content,
            stream=stream,
            reason=response.reason,
            version=response.version,
        )

    def _release(self, attempt: Attempt) -> None:
        """The attempt is over: its connection goes back to the pool if it can serve another call, else it is closed."""
        self._attempts.remove(attempt)
        waiter = attempt.waiter
        if waiter is not None and isinstance(waiter.connection, SyncConnection):
            waiter.connection.give_back()
        connection: SyncConnection | None = attempt.connection
        if connection is None:
            return
        stage = attempt.stage
        if stage is Stage.READY or (stage is Stage.ANSWERED and connection.codec.response.complete):
            connection.give_back()
        else:
            connection.close()

    def _headers_event(self, attempt: Attempt) -> Event | None:
        response = attempt.connection.codec.response
        if not response.status or attempt.stage is not Stage.SENT:
            return None
        attempt.stage = Stage.ANSWERED
        self._account(response)
        return Headers(attempt.number, response.status, LazyHeaders(response), response.complete)

    def _send(self, attempt: Attempt) -> Event | None:
        upload = self._upload
        source = None
        if upload is not None:
            upload.buffer.limit = self.call.buffer_limit
            source = upload.reader()
        attempt.stage = Stage.SENT
        if self._engine.shows_connections:
            self._describe(attempt.number, attempt.connection)
        try:
            attempt.connection.begin(self._request.outgoing(attempt.start), source)
        except TransportFailure as failure:
            return self._failed(attempt, failure)
        return None

    def _advance(self, attempt: Attempt, limit: float) -> Event | None:
        """Let bytes move on the attempt's connection, waiting at most `limit` seconds."""
        connection: SyncConnection = attempt.connection
        try:
            connection.advance(limit)
        except TimeoutError:
            return None
        except TransportFailure as failure:
            return self._failed(attempt, failure)
        self._moved = True
        if attempt.stage is Stage.CONNECTING and not connection.connecting:
            return self._opened(attempt)
        return None

    def _failed(self, attempt: Attempt, failure: TransportFailure) -> Event:
        """Report the failure; the attempt is over."""
        connection: SyncConnection | None = attempt.connection
        sent = connection is not None and attempt.stage is not Stage.CONNECTING and connection.sent
        self._broken = failure
        self._attempts.remove(attempt)
        if connection is not None:
            connection.close()
        return Failed(attempt.number, failure.kind, sent, failure.reason)

    def _uploaded(self) -> int:
        upload = self._upload
        return len(self._request.body or b"") if upload is None else upload.buffer.size

    def _wake(self) -> None:
        """Called by the engine or by a pool, from any thread."""
        self._woken = True
        event = self._event
        if event is not None:
            event.set()

    def _replayable(self) -> bool:
        return self._upload is None or self._upload.buffer.replayable
