"""A call that is driven by events: futures, streams, and hedged calls.

Nothing here blocks. What happens (an inner call is over, a timer is due, the engine wakes the call, the application cancels it)
is put into an inbox by whichever thread knows of it; the thread that finds nobody at work carries everything out, so that the
engine's call sees one event at a time. Messages of a response stream are not events: the thread that reads the stream
takes them from the inner call itself, and tells only of the first one, which commits the call to that attempt.

    LIVE     attempts without a verdict, by number
    accepted the attempt whose response is the application's; the messages are read from it
    over     status, metadata and, for a future, the response are there

grpcio tells when an inner call is over, but not when its headers arrive. They count when the application reads, when the inner
call is over, or when a timer of the call is due: then they are looked for first. Beside a live attempt of a stream (hedging)
nobody might ever read the second one: a short-lived thread waits for its headers.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.engine.actions import Accept, Action, CancelAttempt, Connect, Fail, Park, Reply, Start
from meshlib.engine.call import Call, CallInfo
from meshlib.engine.events import (
    Begin,
    Cancelled,
    Connected,
    End,
    Event,
    Failed,
    FailureKind,
    Headers,
    Message,
    NeedConnection,
    RequestComplete,
    Timer,
    Woken,
)
from meshlib.errors import MeshError, UnknownHost
from meshlib.transport.grpc.endpoint import InnerChannel
from meshlib.transport.grpc.errors import FinishedRpc, RpcFailed, reply_failed, rpc_error
from meshlib.transport.grpc.judge import Ended, end_of_stream, judge
from meshlib.transport.grpc.metadata import Metadata, to_headers, to_metadata
from meshlib.transport.grpc.replay import OverrunError, Requests, SerializeError
from meshlib.transport.grpc.request import outgoing_metadata, view
from meshlib.transport.grpc.status import UnsupportedActionError, arrived, ended_of, status_of
from meshlib.transport.grpc.timers import Alarm, timers

if TYPE_CHECKING:
    from meshlib.transport.grpc.sync_channel import Method

__all__ = ["Flight", "Shot"]

_COMPRESSION_KEY = "grpc-internal-encoding-request"
_ENCODINGS = {
    grpc.Compression.NoCompression: "identity",
    grpc.Compression.Deflate: "deflate",
    grpc.Compression.Gzip: "gzip",
}

CANCELLED = Cancelled()
COMPLETE = RequestComplete()
TIMER = Timer()
WOKEN = Woken()

FIRST_LOOK, LAST_LOOK = 0.0005, 0.01
"""Seconds between two looks at a channel that connects: at first, and at most."""


class Shot:
    """One attempt. rpc: the inner call once it is sent. answered: its headers were reported.

    reading: a thread of the application is inside `next(rpc)`; an ending is then left to that thread (`ended`), which may
    hold a message that came before. plain: it is on a channel without the mesh, of which the engine knows nothing.
    """

    __slots__ = (
        "answered",
        "connecting",
        "ended",
        "entered",
        "inner",
        "number",
        "over",
        "plain",
        "reading",
        "rpc",
        "start",
    )

    def __init__(self, number: int, start: Start | None) -> None:
        self.number = number
        self.start = start
        self.inner: InnerChannel | None = None
        self.connecting = False
        self.entered = False
        self.rpc: Any = None
        self.answered = False
        self.reading = False
        self.ended = False
        self.over = False
        self.plain = start is None


class _Wake:
    """The engine's way to wake a flight, which ends with it: the call would refer back to it otherwise."""

    __slots__ = ("flight",)

    def __init__(self, flight: Flight) -> None:
        self.flight: Flight | None = flight

    def __call__(self) -> None:
        flight = self.flight
        if flight is not None:
            flight.post(WOKEN)


class Flight:
    """See the module. streamed: the response is a stream. Times are monotonic seconds.

    deadline: the caller's, None without. call: one that has begun already; its `wake` has to lead to `wake`. active_at: when
    the application last took a message. changed: guards and announces what other threads wait for: `accepted`, `over`, the
    set of attempts.
    """

    def __init__(
        self,
        method: Method,
        request: Any,
        requests: Iterable[Any] | None,
        *,
        streamed: bool,
        timeout: float | None,
        metadata: Metadata | None,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
        call: Call | None = None,
    ) -> None:
        channel = method.channel
        engine, self._channels = channel.opened()
        self.monotonic: Callable[[], float]
        self.monotonic = monotonic = engine.clock.monotonic
        self._method = method
        self._request = request
        self._requests = None
        if requests is not None:
            self._requests = Requests(requests, method.serializer, partial(self.post, COMPLETE))
        self._metadata = metadata
        self._credentials = credentials
        self._compression = compression
        self.streamed = streamed
        self.deadline = None if timeout is None else monotonic() + timeout
        self.changed = threading.Condition()
        self.active_at = 0.0
        self.accepted: Shot | None = None
        self.over = False
        self.error: FinishedRpc | None = None
        self.response: Any = None
        self.ended: Ended | None = None
        self.cancelled = False
        self._edited: list[tuple[str, str]] | None = None
        self._whole = False  # the response is one block of headers, with the status among them
        self._live: dict[int, Shot] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._busy = threading.Lock()
        self._callbacks: list[Callable[[], None]] | None = []
        self._after: list[Callable[[], None]] = []
        self._alarm: Alarm | None = None
        self._alarm_at = inf
        self._crash: BaseException | None = None
        self.wake = _Wake(self)
        self._call: Call = call or engine.call(
            view(channel.target, channel.authority, method.path, metadata),
            wake=self.wake,
            replayable=None if self._requests is None else self._replayable,
            deadline=self.deadline,
            wait_for_ready=bool(wait_for_ready),
        )

    @property
    def info(self) -> CallInfo:
        return self._call.info

    def begin(self) -> None:
        """Start. Raises what a wrong argument raises at once."""
        self._method.channel.flights.add(self)
        self.post(Begin(complete=self._requests is None))
        if self._crash is not None:
            raise self._crash

    def go_on(self, actions: Sequence[Action]) -> None:
        """The same for a call that has begun: what it wants done next."""
        self._method.channel.flights.add(self)
        self._do(partial(self._carry_out, actions))

    def _replayable(self) -> bool:
        return self._requests is None or self._requests.replayable

    # --- the inbox ---------------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """From any thread, but a finalizer."""
        self._do(partial(self._tell, event, None))

    def _do(self, task: Callable[[], None]) -> None:
        self._inbox.append(task)
        inbox, busy = self._inbox, self._busy
        while inbox and busy.acquire(blocking=False):
            try:
                while inbox:
                    inbox.popleft()()
                self._arm()
            except Exception as error:  # noqa: BLE001 - the call ends with it
                self._broken(error)
            finally:
                after, self._after = self._after, []
                busy.release()
            for callback in after:
                callback()

    def _broken(self, error: Exception) -> None:
        """A task raised: a wrong argument of the application, or a mistake of ours. The call is over either way."""
        self._crash = error
        if not self.over:
            self._let_go(self._call.handle(CANCELLED, self.monotonic()))
            failed = RpcFailed(grpc.StatusCode.UNKNOWN, f"{type(error).__name__}: {error}", info=self.info)
            failed.__cause__ = error
            self._finish(failed)

    def _tell(self, event: Event, now: float | None) -> None:
        """Report to the engine and carry out what it says."""
        if not self.over:
            self._carry_out(self._call.handle(event, self.monotonic() if now is None else now))

    # --- the engine's actions ----------------------------------------------------------------------------------------

    def _carry_out(self, actions: Sequence[Action]) -> None:
        following: list[Event] = []
        for action in actions:
            event: Event | None = None
            if isinstance(action, Start):
                event = self._start(action)
            elif isinstance(action, Accept):
                self._accept(action)
            elif isinstance(action, CancelAttempt):
                self._cancel(action.attempt)
            elif isinstance(action, Connect):
                event = self._connect(action)
            elif isinstance(action, Park):
                self._park(action)
            elif isinstance(action, Fail):
                self._fail(action.error)
            elif isinstance(action, Reply):
                self._finish(reply_failed(action.reply, self.info))
            else:
                raise UnsupportedActionError(action)
            if event is not None:
                following.append(event)
        for event in following:
            self._tell(event, None)
        for shot in list(self._live.values()):
            if shot.entered and shot.rpc is None and not self.over:
                self._launch(shot)

    def _start(self, start: Start) -> Event | None:
        shot = self._live[start.attempt] = Shot(start.attempt, start)
        inner = self._channels.ready(start.endpoint, start.authority)
        if inner is None or not inner.enter():
            return NeedConnection(start.attempt, self._channels)
        shot.inner = inner
        if not start.permitted:
            return self._entered(shot)
        shot.entered = True
        return None

    def _entered(self, shot: Shot) -> Event:
        """It has its channel. The engine may still refuse it: it is sent after that."""
        shot.connecting = False
        self._inbox.appendleft(partial(self._send_connected, shot))
        return Connected(shot.number)

    def _send_connected(self, shot: Shot) -> None:
        if self._live.get(shot.number) is shot and not self.over:
            shot.entered = True
            self._launch(shot)
        elif shot.inner is not None and not shot.entered:
            shot.inner.leave()
            shot.inner = None

    def _connect(self, action: Connect) -> Event | None:
        shot = self._live[action.attempt]
        if action.connection is not None:
            assert isinstance(action.connection, InnerChannel)
            return self._use(shot, action.connection)
        assert shot.start is not None
        shot.inner = self._channels.connect(shot.start)
        shot.connecting = True
        self._inbox.append(partial(self._look, shot, FIRST_LOOK))
        return None

    def _use(self, shot: Shot, inner: InnerChannel) -> Event:
        if not inner.enter():
            del self._live[shot.number]
            return Failed(shot.number, FailureKind.CONNECT_FAILED, False)
        shot.inner = inner
        return self._entered(shot)

    def _look(self, shot: Shot, pause: float) -> None:
        """Whether the channel is READY; look again after the pause while it connects."""
        inner = shot.inner
        if self._live.get(shot.number) is not shot or not shot.connecting or inner is None:
            return
        connected = inner.look()
        if connected is None:
            again = partial(self._look, shot, min(pause * 1.5, LAST_LOOK))
            timers().later(pause, partial(self._do, again))
            return
        shot.connecting = False
        shot.inner = None
        if connected:
            self._channels.connected(inner)
            self._tell(self._use(shot, inner), None)
            return
        self._channels.failed(inner)
        del self._live[shot.number]
        assert inner.failure is not None
        self._tell(Failed(shot.number, inner.failure, False), None)

    def _park(self, action: Park) -> None:
        shot = None if action.attempt is None else self._live.get(action.attempt)
        if action.waiter is not None and shot is not None and shot.start is not None:
            self._channels.rescue(shot.start)

    def _cancel(self, number: int) -> None:
        shot = self._live.pop(number, None)
        if shot is None and self.accepted is not None and self.accepted.number == number:
            shot = self.accepted
        if shot is not None:
            self._abandon(shot)
            with self.changed:
                self.changed.notify_all()

    def _abandon(self, shot: Shot) -> None:
        inner = shot.inner
        if shot.rpc is not None:
            shot.rpc.cancel()  # `_rpc_over` leaves the channel
        elif inner is not None and shot.connecting:
            shot.connecting = False
            self._channels.abandoned(inner)
        elif inner is not None and shot.entered:
            shot.entered = False
            inner.leave()

    def _let_go(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, CancelAttempt):
                self._cancel(action.attempt)
        for shot in list(self._live.values()):
            self._cancel(shot.number)

    # --- an inner call -----------------------------------------------------------------------------------------------

    def _launch(self, shot: Shot) -> None:
        """Send the attempt."""
        start, inner = shot.start, shot.inner
        assert start is not None
        assert inner is not None
        requests = self._requests
        if requests is not None:
            requests.limit = min(requests.limit, self._call.buffer_limit)
        multicallable = self._method.on(inner, start.path)
        try:
            self._send(shot, multicallable, outgoing_metadata(start, self._metadata))
        except BaseException:
            inner.leave()
            shot.inner = None
            shot.entered = False
            raise
        if self.streamed and len(self._live) > 1:
            threading.Thread(
                target=self._await_headers, args=(shot,), name="meshlib-grpc-hedge", daemon=True
            ).start()

    def _send(self, shot: Shot, multicallable: Any, metadata: Metadata | None) -> None:
        requests = self._requests
        begin = multicallable if self.streamed else multicallable.future
        if requests is not None and not self.streamed and self._compression is not None:
            # grpcio's `future` of a client stream takes a compression and forgets it.
            metadata = (*(metadata or ()), (_COMPRESSION_KEY, _ENCODINGS[self._compression]))
        shot.rpc = begin(
            self._request if requests is None else self._messages(requests, shot),
            None if self.deadline is None else self.deadline - self.monotonic(),
            metadata,
            self._credentials,
            None,
            self._compression,
        )
        if not shot.rpc.add_callback(partial(self._rpc_over, shot)):
            self._rpc_over(shot)
        with self.changed:
            self.changed.notify_all()

    def _messages(self, requests: Requests, shot: Shot) -> Iterator[bytes]:
        try:
            yield from requests.messages(shot)
        except SerializeError as error:
            self._do(partial(self._give_up, grpc.StatusCode.INTERNAL, str(error)))
        except OverrunError:
            self._do(partial(self._overrun, shot))

    def _overrun(self, shot: Shot) -> None:
        if self._live.pop(shot.number, None) is shot:
            shot.rpc.cancel()
            self._tell(Failed(shot.number, FailureKind.LOCAL_RESET, True), None)

    def _rpc_over(self, shot: Shot) -> None:
        """grpcio's thread: the inner call is over."""
        with self.changed:
            if shot.over:
                return
            shot.over = True
            shot.ended = shot.reading
        if shot.inner is not None:
            shot.inner.leave()
        if not shot.ended:
            self._do(partial(self._ended, shot))

    def _ended(self, shot: Shot) -> None:
        """Report how the inner call ended, unless it was given up."""
        if self.over:
            return
        ended = ended_of(shot.rpc)
        if shot is self.accepted:
            self._end_accepted(shot, ended)
            return
        if self._live.get(shot.number) is not shot:
            return
        now = self.monotonic()
        if ended.code == 0:
            event: Event = Headers(shot.number, 200, to_headers(ended.initial), True)
        else:
            event, now = judge(
                shot.number, ended, answered=shot.answered, now=now, wake_at=self._call.wake_at
            )
        if isinstance(event, Cancelled):
            self._give_up_with(status_of(ended, None, self.info, apart=False))
            return
        if isinstance(event, Headers):
            self._answered(shot, event, ended, now)
            return
        if isinstance(event, Failed):
            del self._live[shot.number]
        self._tell(event, now)
        if isinstance(event, Timer) and self._live.get(shot.number) is shot and not self.over:
            del self._live[shot.number]  # its deadline passed, but none of the call's timers was due
            self._tell(Failed(shot.number, FailureKind.REMOTE_RESET, True, ended.details), None)

    def _answered(self, shot: Shot, event: Headers, ended: Ended | None, now: float) -> None:
        """Report the headers. ended: the inner call is over already."""
        shot.answered = True
        self._whole = event.end and ended is not None and ended.code != 0
        self._tell(event, now)
        if self.accepted is not shot or ended is None:
            return
        if event.end:
            self._finish_with(shot, ended)
        else:
            self._end_accepted(shot, ended)

    def _accept(self, action: Accept) -> None:
        shot = self._live.pop(action.attempt)
        if action.headers is not None:
            self._edited = action.headers
        self.active_at = self.monotonic()
        if self._requests is not None:
            self._requests.commit(shot)
        with self.changed:
            self.accepted = shot
            self.changed.notify_all()

    def _end_accepted(self, shot: Shot, ended: Ended) -> None:
        if shot.plain:
            self._finish_with(shot, ended)
            return
        event, now = end_of_stream(shot.number, ended, now=self.monotonic(), wake_at=self._call.wake_at)
        self._tell(event, now)
        if not self.over:
            if isinstance(event, Timer):  # none of the call's timers was due
                self._tell(End(shot.number, ended.trailers()), None)
            self._finish_with(shot, ended)

    def _finish_with(self, shot: Shot, ended: Ended) -> None:
        """The response is complete."""
        self.ended = ended
        if ended.code == 0:
            if not self.streamed:
                self.response = shot.rpc.result()
            self._finish(None)
            return
        self._finish(status_of(ended, self._edited, self.info, apart=not self._whole))

    # --- headers of an inner call --------------------------------------------------------------------------------------

    def head(self, shot: Shot, metadata: Metadata) -> None:
        """Report that the headers, or a message, of this attempt are there. From the application's thread."""
        self._do(partial(self._head, shot, metadata))

    def _head(self, shot: Shot, metadata: Metadata) -> None:
        if self._live.get(shot.number) is shot and not shot.answered:
            event = Headers(shot.number, 200, to_headers(metadata), False)
            self._answered(shot, event, None, self.monotonic())

    def _await_headers(self, shot: Shot) -> None:
        metadata = shot.rpc.initial_metadata()
        if shot.rpc.is_active():
            self.head(shot, metadata)

    def _look_for_headers(self) -> None:
        """A timer is due: headers that arrived come first."""
        for shot in list(self._live.values()):
            metadata = arrived(shot.rpc)
            if metadata is not None and shot.rpc.is_active():
                self._head(shot, metadata)

    # --- time --------------------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        wake_at = inf if self.over else self._call.wake_at
        alarm = self._alarm
        if alarm is not None:
            if self._alarm_at <= wake_at < inf:
                return
            alarm.cancel()
            self._alarm = None
        if wake_at < inf:
            delay = max(wake_at - self.monotonic(), 0.0)
            self._alarm = timers().later(delay, partial(self._do, self._due))
            self._alarm_at = wake_at

    def _due(self) -> None:
        self._alarm = None
        if self.over:
            return
        self._look_for_headers()
        accepted = self.accepted
        if accepted is not None and not accepted.plain:
            self._tell(Message(accepted.number), self.active_at)
        now = self.monotonic()
        if now >= self._call.wake_at:
            self._tell(TIMER, now)

    # --- the end -------------------------------------------------------------------------------------------------------

    def _fail(self, error: MeshError) -> None:
        if isinstance(error, UnknownHost):
            plain = self._method.without_mesh()
            if plain is not None:
                shot = Shot(0, None)
                self._send(shot, plain, self._metadata)
                with self.changed:
                    self.accepted = shot
                    self.changed.notify_all()
                return
        self._finish(rpc_error(error, self.info))

    def _give_up(self, code: grpc.StatusCode, details: str) -> None:
        if not self.over:
            self.cancelled = code is grpc.StatusCode.CANCELLED
            self._give_up_with(RpcFailed(code, details, info=self.info))

    def _give_up_with(self, error: FinishedRpc) -> None:
        """The application's side ended the call."""
        accepted = self.accepted
        self._let_go(self._call.handle(CANCELLED, self.monotonic()))
        if accepted is not None and not accepted.over:
            accepted.rpc.cancel()
        self._finish(error)

    def _finish(self, error: FinishedRpc | None) -> None:
        if self.over:
            return
        if self._requests is not None:
            self._requests.stop()
        with self.changed:
            self.error = error
            self.over = True
            callbacks, self._callbacks = self._callbacks, None
            self.changed.notify_all()
        self._after += callbacks or ()
        self.wake.flight = None
        self._requests = None
        self._method.channel.flights.discard(self)
        for shot in list(self._live.values()):
            self._cancel(shot.number)

    # --- for the application's call object ---------------------------------------------------------------------------

    def cancel(self, details: str = "Locally cancelled by application!") -> bool:
        """Whether there was something to cancel."""
        if self.over:
            return False
        self._do(partial(self._give_up, grpc.StatusCode.CANCELLED, details))
        self.await_over()
        return self.cancelled

    def drop(self) -> None:
        """The application let go of it unread. From a finalizer."""
        if not self.over and not sys.is_finalizing():
            timers().from_finalizer(self._dropped)

    def _dropped(self) -> None:
        self.cancel("Cancelled upon garbage collection!")

    def time_remaining(self) -> float | None:
        return None if self.deadline is None else max(self.deadline - self.monotonic(), 0.0)

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """False: it is over already."""
        with self.changed:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def initial_metadata(self) -> Metadata:
        """Waited for."""
        while True:
            with self.changed:
                while not (self.over or self.accepted is not None or self._sent()):
                    self.changed.wait()
                shot = self.accepted or self._sent()
                if self.error is not None and (shot is None or not shot.answered):
                    return self.error.initial_metadata()
            if self._edited is not None and not self._whole:
                return to_metadata(self._edited)
            assert shot is not None
            metadata: Metadata = shot.rpc.initial_metadata()
            if shot is self.accepted:
                return metadata
            self._settle(shot, metadata)

    def _settle(self, shot: Shot, metadata: Metadata) -> None:
        """Its headers are here, or it is over: wait for what the engine makes of it."""
        if shot.rpc.is_active():
            self.head(shot, metadata)
        with self.changed:
            while not self.over and self.accepted is None and self._live.get(shot.number) is shot:
                self.changed.wait()

    def _sent(self) -> Shot | None:
        """An attempt that is under way, the first of several."""
        return next((shot for shot in list(self._live.values()) if shot.rpc is not None), None)

    def await_over(self, timeout: float | None = None) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: self.over, timeout)

    def first(self) -> tuple[Shot, Any] | None:
        """The first message of the response, and the attempt that it is from; None when there is none. Then it is over."""
        while True:
            with self.changed:
                while not (self.over or self.accepted is not None or self._sent()):
                    self.changed.wait()
                shot = self.accepted or self._sent()
                if shot is None or self.error is not None:
                    return None
                shot.reading = True
            try:
                message = next(shot.rpc)
            except (StopIteration, grpc.RpcError):
                message = None
            with self.changed:
                shot.reading = False
                ended, shot.ended = shot.ended, False
            if message is not None and shot is not self.accepted:
                self._settle_message(shot)
            if ended:
                self._do(partial(self._ended, shot))
            if shot is self.accepted and message is not None:
                return shot, message
            with self.changed:
                while not self.over and self._live.get(shot.number) is shot:
                    self.changed.wait()
                if self.accepted is shot or self.over:
                    while not self.over:
                        self.changed.wait()
                    return None

    def _settle_message(self, shot: Shot) -> None:
        self.head(shot, shot.rpc.initial_metadata())
        with self.changed:
            while not self.over and not shot.answered and self._live.get(shot.number) is shot:
                self.changed.wait()
