"""Runs one call of asyncio: events of inner calls, timers and wake-ups go to the engine, its actions are carried out at once.

Everything happens in callbacks of the event loop; there is no task for a call. An attempt is an inner call of grpc.aio on an
endpoint's `InnerChannel`. Its done callback is the event that ends it. What the application's call object waits for is
`settled` (an attempt is accepted, or the call is over) and `over`. Subclasses say how an attempt begins, and how an attempt of
theirs is read while it runs (`aio_stream`).

Until a driver is over, its channel, its inner calls and its timer refer to it; afterwards nothing does but the application.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib.engine.actions import Accept, Action, CancelAttempt, Connect, Fail, Park, Reply, Start
from meshlib.engine.call import Call, CallInfo
from meshlib.engine.events import (
    BEGIN,
    CANCELLED,
    TIMER,
    WOKEN,
    Cancelled,
    Connected,
    End,
    Event,
    Failed,
    Headers,
    NeedConnection,
)
from meshlib.errors import MeshError, UnknownHost
from meshlib.identity.refusal import explained
from meshlib.policy.failure import FailureKind
from meshlib.routing.request import Headers as HeaderList
from meshlib.transport.grpc.aio_attempt import Attempt, Stage
from meshlib.transport.grpc.aio_deadlines import Wake
from meshlib.transport.grpc.aio_endpoint import InnerChannel, Lane
from meshlib.transport.grpc.aio_errors import aio_error, aio_reply
from meshlib.transport.grpc.aio_home import Home
from meshlib.transport.grpc.aio_inner import ending, is_ok
from meshlib.transport.grpc.aio_lean import LeanCall
from meshlib.transport.grpc.judge import PREFIX, end_of_stream, judge
from meshlib.transport.grpc.metadata import LazyHeaders
from meshlib.transport.grpc.request import known_headers, outgoing_metadata, with_extra
from meshlib.transport.grpc.status import UnsupportedActionError
from meshlib.transport.grpc.turns import ask_others

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_channel import Method

__all__ = ["BEGIN", "Driver"]


class Driver:
    """One call.

    deadline: the caller's, monotonic seconds. metadata: the application's own object, sent as it is unless a route edits
    headers. options: what else inner calls are given. direct: the inner call as long as there is only one; who awaits the call
    awaits this without a detour. accepted: the attempt whose response is the answer. edited: its headers after the route's
    edits, None as they came. error: what the call raises when nothing was accepted, or when the accepted response was cut;
    `asyncio.CancelledError` when the application cancelled it. refused: what broke the TLS of the last connection that could
    not be opened. sent, received: messages of the application, and their size. one_response: the response is no stream.
    """

    # Defaults of the class: a call sets what differs, and a call that goes well sets few of them.
    _attempts: Sequence[Attempt] = ()
    _callbacks: Sequence[Callable[[], None]] = ()
    _waiters: Sequence[asyncio.Future[None]] = ()
    _timer: asyncio.TimerHandle | None = None
    _timed_until = inf
    direct: Any = None
    accepted: Attempt | None = None
    edited: list[tuple[str, str]] | None = None
    error: BaseException | None = None
    refused: BaseException | None = None
    sent = sent_bytes = 0
    received = received_bytes = 0
    settled = False
    over = False
    one_response = True

    def __init__(
        self,
        home: Home,
        method: Method,
        metadata: Any,
        timeout: float | None,
        wait_for_ready: bool | None,
        options: dict[str, Any],
        replayable: Callable[[], bool] | None = None,
    ) -> None:
        channel = method.channel
        self.home = home
        self.method = method
        self.metadata = metadata
        self.options = options
        self._wake = wake = Wake(self)
        self.call: Call = home.engine.rpc(
            channel.target,
            channel.authority,
            method.path,
            known_headers(metadata),
            channel.channel_id,
            None if metadata else method.likeness,
            wake,
            timeout,
            bool(wait_for_ready),
            home.dialect,
            replayable,
        )
        self.deadline = self.call.caller_deadline
        home.active.add(self)

    @property
    def info(self) -> CallInfo:
        return self.call.info

    # --- events ------------------------------------------------------------------------------------------------------

    def run(self, event: Event | None, now: float | None = None) -> None:
        """Report the event, carry out what follows, and go on until there is nothing to do at once.

        now: when it happened, if that is not this moment.
        """
        monotonic = self.home.monotonic
        handle = self.call.handle
        if self.call.observed:
            self._account()
        while event is not None:
            actions = handle(event, monotonic() if now is None else now)
            now = None
            following = self._carry_out(actions) if actions else None
            if following is None and type(event) is Connected:
                attempt = self._find(event.attempt)
                following = None if attempt is None else self._send(attempt)
            event = following
        if not self.over:
            self._arm()

    def _account(self, trailers: HeaderList | Callable[[], HeaderList] | None = None) -> None:
        """Tell those who observe the call what went over the wire."""
        sent, received = self.sent, self.received
        self.call.account(
            self.sent_bytes + PREFIX * sent,
            self.received_bytes + PREFIX * received,
            messages=(sent, received),
            trailers=trailers,
        )

    def woken(self) -> None:
        if not self.over:
            self.run(WOKEN)

    def ended(self, attempt: Attempt) -> None:
        """The inner call of an attempt that counts has its status."""
        self.detach(attempt)
        if attempt is self.accepted:
            self._end_of_stream(attempt)
        elif is_ok(attempt.inner):
            if self.call.observed:
                self._account(ending(attempt.inner).trailers())
            self.run(Headers(attempt.number, 200, LazyHeaders(attempt.response_headers), end=True))
            if attempt is self.accepted:
                self._finish(None)
        else:
            self._failed(attempt)

    def _failed(self, attempt: Attempt) -> None:
        """An attempt that is not accepted ended with another status than OK."""
        now = self.home.monotonic()
        status = ending(attempt.inner)
        event, at = judge(
            attempt.number, status, answered=attempt.answered, now=now, wake_at=self.call.wake_at
        )
        if isinstance(event, Cancelled):
            self.home.leaving.cut(attempt.inner)
            self.give_up()
            return
        attempt.lane.told(event)
        self.run(event, at)
        if attempt is self.accepted:
            if isinstance(event, Headers) and event.end:
                self._finish(None)
            else:
                self._end_of_stream(attempt)

    def _end_of_stream(self, attempt: Attempt) -> None:
        """The inner call of the accepted attempt is over, and so is the call."""
        now = self.home.monotonic()
        status = ending(attempt.inner)
        event, at = end_of_stream(attempt.number, status, now=now, wake_at=self.call.wake_at)
        if isinstance(event, Cancelled):
            self.home.leaving.cut(attempt.inner)
            self.give_up()
            return
        attempt.lane.told(event)
        self.run(event, at)
        if not self.over:
            if not isinstance(event, End):  # a timer that did not end the call
                self.run(End(attempt.number, status.trailers()))
            self._finish(None)

    # --- time --------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have `due` called at `wake_at`, or earlier: then it looks again."""
        at = self.call.wake_at
        if at < self._timed_until:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._timed_until = at
            home = self.home
            if not home.deadlines.add(self._wake, at):
                self._timer = home.loop.call_later(at - home.monotonic(), self.due)

    def due(self) -> None:
        """The time that was armed has come, or nearly."""
        self._timer, self._timed_until = None, inf
        if self.over:
            return
        if self.home.monotonic() >= self.call.wake_at:
            self.run(TIMER)
        else:
            self._arm()

    # --- actions -----------------------------------------------------------------------------------------------------

    def _carry_out(self, actions: Sequence[Action]) -> Event | None:
        """Carry out the actions in order. The event that follows at once, None when it must be waited for."""
        event: Event | None = None
        for action in actions:
            if event is not None:  # two attempts of one call are served at once: tell of the first now
                self.run(event)
                event = None
            if isinstance(action, Start):
                event = self._start(action)
            elif isinstance(action, Accept):
                self._accept(action)
            elif isinstance(action, CancelAttempt):
                self._cancel_attempt(action.attempt)
            elif isinstance(action, Connect):
                event = self._connect(action)
            elif isinstance(action, Park):
                self._park(action)
            elif isinstance(action, Fail):
                self._fail(action.error)
            elif isinstance(action, Reply):
                self._finish(aio_reply(action.reply, self.info))
            else:
                raise UnsupportedActionError(action)
        return event

    def _start(self, action: Start) -> Event | None:
        lane = self.home.inner(action)
        attempt = self._new_attempt(action.attempt, action.path, lane)
        attempt.start = action
        self._attempts = [*self._attempts, attempt]
        if not lane.ready():
            return NeedConnection(attempt.number, self.home)
        return self._send(attempt) if action.permitted else Connected(attempt.number)

    def _new_attempt(self, number: int, path: str, lane: Lane) -> Attempt:
        return Attempt(self, number, path, lane)

    def _without_mesh(self) -> None:
        """No Listener knows the host, and the Mesh lets such calls through: one attempt on a plain channel to the target."""
        attempt = self._new_attempt(1, self.call.request.path, self.home.plain())
        self._attempts = [attempt]
        self.accepted = attempt
        self._send(attempt)
        self._settle()

    def _park(self, action: Park) -> None:
        if action.waiter is None:
            return
        attempt = self._find(action.attempt)
        assert attempt is not None and isinstance(attempt.lane, InnerChannel)
        if attempt.lane.ready():
            attempt.lane.hand_over()
        if not action.waiter.served:
            ask_others(self.home, attempt.lane.endpoint)

    def _connect(self, action: Connect) -> Event | None:
        attempt = self._find(action.attempt)
        assert attempt is not None and attempt.start is not None
        attempt.stage = Stage.CONNECTING
        given = action.connection
        if isinstance(given, InnerChannel):
            attempt.lane = given
            if given.ready() or given.leaving:
                return self.connected(attempt)
            given.join(attempt.start, attempt.opened)
        else:
            attempt.lane = lane = self.home.inner(attempt.start)
            lane.connect(attempt.start, attempt.opened)
        return None

    def connected(self, attempt: Attempt) -> Event:
        """Its inner channel is open. It gets in line for another one if others have used that up meanwhile."""
        attempt.stage = Stage.PARKED
        lane = attempt.lane
        assert attempt.start is not None and isinstance(lane, InnerChannel)
        if not lane.leaving:
            return Connected(attempt.number)
        attempt.lane = self.home.inner(attempt.start)
        return NeedConnection(attempt.number, self.home)

    def _send(self, attempt: Attempt) -> Event | None:
        lane = attempt.lane
        lane.used()
        attempt.stage = Stage.SENT
        start = attempt.start
        if start is None:
            metadata = with_extra(self.metadata, self.call.headers_to_add)
        else:
            metadata = outgoing_metadata(start, self.metadata)
        try:
            inner = self._begin(attempt, metadata)
        except grpc.aio.UsageError as error:
            self.detach(attempt)
            if lane.tunnel is None and "credentials" in self.options:  # plaintext does not carry them
                self._break(error)
                return None
            # the inner channel has been closed under us
            return Failed(attempt.number, FailureKind.CONNECT_FAILED, False, str(error))
        except (grpc.aio.BaseError, TypeError) as error:  # C-core does not take the application's metadata
            self.detach(attempt)
            self._break(error)
            return None
        attempt.inner = inner
        self.direct = inner if attempt.number == 1 else None
        late = self.one_response and self.call.observed and type(inner) is not LeanCall
        inner.add_done_callback(attempt.ended_late if late else attempt.ended)
        self._tell()
        return None

    def _begin(self, attempt: Attempt, metadata: Any) -> Any:
        """Make the inner call."""
        raise NotImplementedError

    def _accept(self, action: Accept) -> None:
        self.edited = action.headers
        for attempt in self._attempts:
            if attempt.number == action.attempt:
                self.accepted = attempt
        self._settle()

    def _fail(self, error: MeshError) -> None:
        if isinstance(error, UnknownHost) and self.home.passthrough:
            self._without_mesh()
        else:
            if self.refused is not None:
                error = explained(error, self.refused)
            self._finish(aio_error(error, self.info))

    def _cancel_attempt(self, number: int) -> None:
        attempt = self._find(number)
        if attempt is None:
            return
        stage = attempt.stage
        self.detach(attempt)
        if stage is Stage.SENT:
            attempt.inner.cancel()
            self.home.leaving.cut(attempt.inner)

    def detach(self, attempt: Attempt) -> None:
        """The attempt no longer counts: whatever its inner call does is ignored."""
        attempt.driver = None
        if attempt.stage is Stage.SENT:
            attempt.lane.released()
        attempt.stage = Stage.OVER

    def _find(self, number: int | None) -> Attempt | None:
        """The attempt if it still counts."""
        for attempt in self._attempts:
            if attempt.number == number and attempt.driver is not None:
                return attempt
        return None

    # --- the end -----------------------------------------------------------------------------------------------------

    def give_up(self) -> bool:
        """The application gives the call up. False: it was over already."""
        if self.over:
            return False
        self._break(asyncio.CancelledError())
        return True

    def _break(self, error: BaseException) -> None:
        """The call ends on the application's side: nobody waits for an answer any more."""
        if self.call.observed:
            self._account()
            self.call.error = error
        for action in self.call.handle(CANCELLED, self.home.monotonic()):
            if isinstance(action, CancelAttempt):
                self._cancel_attempt(action.attempt)
        self._finish(error)

    def lose(self) -> None:
        """Its event loop was closed, so nobody waits: give back what it holds."""
        self.call.handle(CANCELLED, self.home.monotonic())
        self.error = asyncio.CancelledError()
        self.over = self.settled = True
        self._wake.driver = None
        self.home.active.discard(self)

    def abandon(self) -> None:
        """Nobody holds the call any more. From a finalizer, so in any thread."""
        try:
            self.home.loop.call_soon_threadsafe(self.give_up)
        except RuntimeError:
            return  # the loop is closed

    def _finish(self, error: BaseException | None) -> None:
        """The call is over: by its accepted response, or with this error."""
        if self.over:
            return
        self.error = error
        self.over = True
        self._wake.driver = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for attempt in self._attempts:
            if attempt.driver is not None:
                self._cancel_attempt(attempt.number)
        self.home.active.discard(self)
        self._settle()
        if self._callbacks:
            callbacks, self._callbacks = self._callbacks, ()
            for callback in callbacks:
                callback()

    def _settle(self) -> None:
        """An attempt is accepted, or the call is over."""
        self.settled = True
        if self._waiters:
            self._tell()

    def _tell(self) -> None:
        """Something has changed: whoever waits looks again."""
        if self._waiters:
            waiters, self._waiters = self._waiters, ()
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    # --- for the application's call object ---------------------------------------------------------------------------

    def time_left(self) -> float | None:
        """Seconds until the caller's deadline, None without one."""
        return None if self.deadline is None else max(self.deadline - self.home.monotonic(), 0.0)

    def when_over(self, callback: Callable[[], None]) -> None:
        if self.over:
            callback()
        else:
            self._callbacks = [*self._callbacks, callback]

    async def wait_settled(self) -> None:
        """Until an attempt is accepted or the call is over."""
        while not self.settled:
            await self._next()

    async def wait_over(self) -> None:
        while not self.over:
            await self._next()

    def _next(self) -> asyncio.Future[None]:
        waiter = self.home.loop.create_future()
        self._waiters = [*self._waiters, waiter]
        return waiter
