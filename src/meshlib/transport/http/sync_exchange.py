"""One call in blocking code.

While one attempt is alive, which is nearly always, the loop blocks in its socket with the time that is left as the limit.
While several are (hedging), it polls all their sockets. While none is (a back-off, a place in a queue, configuration that
is awaited), it waits on an event that any thread may set.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable, Sequence
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
    FailureKind,
    Headers,
    Message,
    NeedConnection,
    RequestComplete,
)
from meshlib.resources.cluster import HttpProtocol
from meshlib.transport.http.body import SyncUpload
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
from meshlib.transport.http.h1 import H1Codec
from meshlib.transport.http.h2_single import H2Single
from meshlib.transport.http.pools import PoolSet
from meshlib.transport.http.sync_connection import SyncConnection

__all__ = ["SyncExchange"]

MIXED_POLL = 0.02
"""Seconds between two looks at the event while sockets are polled too: a parked hedge beside a live attempt."""


class SyncExchange:
    """Runs one call. `run` gives the answer; afterwards the answer's stream calls `read` and `close`."""

    __slots__ = (
        "__weakref__",
        "_accepted",
        "_answer",
        "_attempts",
        "_event",
        "_monotonic",
        "_moved",
        "_parked",
        "_pool",
        "_pools",
        "_request",
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
        upload: SyncUpload | None,
        monotonic: Callable[[], float],
    ) -> None:
        self._pools = pools
        self._pool = pools.sync
        self._request = request
        self._upload = upload
        self._monotonic = monotonic
        self._attempts: list[Attempt] = []
        self._event: threading.Event | None = None
        self._woken = False
        self._parked = False
        self._moved = False
        self._told_complete = upload is None
        self._accepted: Attempt | None = None
        self._answer: Answer | None = None
        self.call: Call = engine.call(
            request.view, wake=self._wake, replayable=None if upload is None else self._replayable
        )

    def run(self) -> Answer:
        """Until there is an answer. Raises MeshError, ImpatienceError, and what the application's body raises."""
        monotonic, handle = self._monotonic, self.call.handle
        try:
            actions = handle(BEGIN if self._upload is None else BEGIN_STREAMED, monotonic())
            first = actions[0] if len(actions) == 1 else None
            if type(first) is Start and first.permitted and self._upload is None:
                actions = self._at_once(first)
            while True:
                event = self._carry_out(actions)
                if self._answer is not None:
                    if self._accepted is None:
                        del self.call  # it refers back to us through `wake`
                    answer, self._answer = self._answer, None
                    return answer
                actions = handle(event or self._wait(), monotonic())
        except BaseException:
            self._abandon()
            raise

    def _at_once(self, start: Start) -> Sequence[Action]:
        """The common case in one piece: an idle connection, one send, one receive. What is left to carry out."""
        handle, monotonic = self.call.handle, self._monotonic
        attempt = Attempt(start)
        self._attempts.append(attempt)
        connection = self._idle_connection(start)
        if connection is None:
            attempt.stage = Stage.PARKED
            return handle(NeedConnection(start.attempt, self._pool), monotonic())
        attempt.connection = connection
        attempt.stage = Stage.SENT
        request = self._request
        limit = self.call.wake_at - monotonic()
        read = request.timeout.get("read")
        if read is not None and read < limit:
            limit = read
        try:
            connection.round_trip(request.outgoing(start), limit)
        except TransportFailure as failure:
            return handle(self._failed(attempt, failure), monotonic())
        response = connection.codec.response
        if not response.status:
            return ()
        attempt.stage = Stage.ANSWERED
        event = Headers(start.attempt, response.status, LazyHeaders(response.headers), response.complete)
        return handle(event, monotonic())

    def _idle_connection(self, start: Start) -> SyncConnection | None:
        protocol = start.cluster.protocol
        while (connection := self._pool.pop_idle(start.endpoint)) is not None:
            if connection.protocol is protocol:
                assert isinstance(connection, SyncConnection)
                return connection
            connection.close()
        return None

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
        connection = self._idle_connection(action)
        if connection is None:
            attempt.stage = Stage.PARKED
            return NeedConnection(action.attempt, self._pool)
        attempt.connection = connection
        return None if action.permitted else Connected(action.attempt)

    def _park(self, action: Park) -> None:
        self._parked = True
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
        self._parked = False
        if action.connection is not None:
            attempt.waiter = None
            attempt.connection = action.connection
            attempt.stage = Stage.READY
            return Connected(attempt.number)
        start = attempt.start
        codec = H2Single() if start.cluster.protocol is HttpProtocol.HTTP2 else H1Codec()
        try:
            connection = SyncConnection(
                self._pool, start.endpoint, start.cluster, start.state, start.permits, codec
            )
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
        headers = response.headers if action.headers is None else encode_headers(action.headers)
        if response.complete:
            content = response.take()
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
        waiter = attempt.waiter
        if waiter is not None and isinstance(waiter.connection, SyncConnection):
            waiter.connection.give_back()
        connection: SyncConnection | None = attempt.connection
        if connection is None:
            return
        if attempt.stage is Stage.READY or (
            attempt.stage is Stage.ANSWERED and connection.codec.response.complete and connection.finished()
        ):
            connection.give_back()
        else:
            connection.close()

    def _abandon(self) -> None:
        """Something was raised: the engine hears that the call is over, and nothing stays open."""
        for action in self.call.handle(CANCELLED, self._monotonic()):
            if isinstance(action, CancelAttempt):
                self._cancel(action.attempt)
        for attempt in list(self._attempts):
            self._release(attempt)

    # --- events ------------------------------------------------------------------------------------------------------

    def _wait(self) -> Event:
        """The next event, waited for as long as the engine and the application's patience allow."""
        call, monotonic = self.call, self._monotonic
        wait_from = monotonic()
        attempts = self._attempts
        while True:
            event = self._ready_event(attempts)
            if event is not None:
                return event
            now = monotonic()
            if now >= call.wake_at:
                return TIMER
            if self._parked or not attempts:
                moved = self._wait_parked(wait_from, now)
                if moved is not None:
                    return moved
                continue
            phase, until = self._patience(attempts, wait_from)
            if now >= until:
                expired = self._expired(attempts, phase, now)
                if expired is not None:
                    return expired
            failed = self._move(attempts, min(call.wake_at, until) - now)
            if failed is not None:
                return failed
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

    def _headers_event(self, attempt: Attempt) -> Event | None:
        response = attempt.connection.codec.response
        if not response.status or attempt.stage is not Stage.SENT:
            return None
        attempt.stage = Stage.ANSWERED
        return Headers(attempt.number, response.status, LazyHeaders(response.headers), response.complete)

    def _send(self, attempt: Attempt) -> Event | None:
        upload = self._upload
        if upload is not None:
            upload.buffer.limit = self.call.buffer_limit
            upload.restart()
        attempt.stage = Stage.SENT
        try:
            attempt.connection.begin(self._request.outgoing(attempt.start), upload)
        except TransportFailure as failure:
            return self._failed(attempt, failure)
        return None

    def _move(self, attempts: list[Attempt], limit: float) -> Event | None:
        """Let bytes move on the attempts' connections for at most `limit` seconds."""
        if len(attempts) == 1:
            return self._advance(attempts[0], limit)
        poller = select.poll()
        live = {
            attempt.connection.fileno(): attempt for attempt in attempts if attempt.connection is not None
        }
        for number, attempt in live.items():
            poller.register(number, attempt.connection.interest())
        for number, _ in poller.poll(min(limit, 86_400.0) * 1000):
            event = self._advance(live[number], 0.0)
            if event is not None:
                return event
        return None

    def _advance(self, attempt: Attempt, limit: float) -> Event | None:
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
        self._attempts.remove(attempt)
        if connection is not None:
            connection.close()
        return Failed(attempt.number, failure.kind, sent, failure.reason)

    def _patience(self, attempts: list[Attempt], wait_from: float) -> tuple[Phase, float]:
        """Which of the application's own timeouts applies now, and until when."""
        attempt = attempts[0]
        patience = self._request.patience
        if attempt.stage is Stage.CONNECTING:
            return Phase.READ, min(other.connect_by for other in attempts)
        if attempt.connection is not None and attempt.connection.sending:
            return Phase.WRITE, wait_from + patience.write
        return Phase.READ, wait_from + patience.read

    def _expired(self, attempts: list[Attempt], phase: Phase, now: float) -> Event | None:
        for attempt in attempts:
            if attempt.stage is Stage.CONNECTING and now >= attempt.connect_by:
                return self._failed(attempt, TransportFailure(FailureKind.CONNECT_TIMEOUT))
        patience = self._request.patience
        raise ImpatienceError(
            phase, patience.write if phase is Phase.WRITE else patience.read, self.call.info
        )

    def _wait_parked(self, wait_from: float, now: float) -> Event | None:
        """No socket to wait for, or not only: a back-off, a queue, configuration."""
        until = self.call.wake_at
        live = [attempt for attempt in self._attempts if attempt.connection is not None]
        queued = any(attempt.waiter is not None for attempt in self._attempts)
        pool_until = wait_from + self._request.patience.pool if queued else inf
        if self._woken:
            self._woken = self._parked = False
            if self._event is not None:
                self._event.clear()
            return WOKEN
        if now >= pool_until:
            raise ImpatienceError(Phase.POOL, self._request.patience.pool, self.call.info)
        limit = min(until, pool_until) - now
        if live:
            return self._move(live, min(limit, MIXED_POLL))
        if self._event is None:
            self._event = (
                threading.Event()
            )  # a wake-up from now on sets it; one before is seen in the next round
            return None
        self._event.wait(None if limit == inf else min(limit, threading.TIMEOUT_MAX))
        return None

    def _wake(self) -> None:
        """Called by the engine or by a pool, from any thread."""
        self._woken = True
        event = self._event
        if event is not None:
            event.set()

    def _replayable(self) -> bool:
        return self._upload is None or self._upload.buffer.replayable

    def _find(self, number: int | None) -> Attempt | None:
        for attempt in self._attempts:
            if attempt.number == number:
                return attempt
        return None

    # --- the response body -------------------------------------------------------------------------------------------

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
        except BaseException:
            self._accepted = None
            self._abandon()
            raise
        data = response.take()
        connection.codec.consumed(len(data))
        return data

    def _read_more(self, attempt: Attempt, wait_from: float) -> float:
        """Let bytes of the accepted response move once; the moment from which patience counts next."""
        call, now = self.call, self._monotonic()
        phase, until = self._patience([attempt], wait_from)
        event: Event | None = None
        if now >= call.wake_at:
            event = TIMER
        elif now >= until:
            self._expired([attempt], phase, now)
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
        trailers = decode_headers(attempt.connection.codec.response.trailers)
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
