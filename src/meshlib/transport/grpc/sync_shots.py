"""What an event-driven call has under way: an inbox of what happened, and the attempts.

Whatever happens is put into the inbox by whichever thread knows of it; the thread that finds nobody at work carries everything
out, so that the engine's call sees one event at a time and nobody waits for a lock. `sync_flight` adds what comes of it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.engine.actions import Accept, Action, CancelAttempt, Connect, Fail, Park, Reply, Start
from meshlib.engine.call import Call, CallInfo
from meshlib.engine.events import (
    CANCELLED,
    WOKEN,
    Connected,
    Event,
    Failed,
    FailureKind,
    NeedConnection,
    RequestComplete,
)
from meshlib.engine.options import deadline_of
from meshlib.errors import MeshError
from meshlib.runtime.timers import timers
from meshlib.transport.grpc.endpoint import InnerChannel, grpc_thread
from meshlib.transport.grpc.errors import FinishedRpc, RpcFailed, reply_failed
from meshlib.transport.grpc.metadata import Metadata
from meshlib.transport.grpc.replay import OverrunError, Requests, SerializeError
from meshlib.transport.grpc.request import outgoing_metadata, view
from meshlib.transport.grpc.status import UnsupportedActionError
from meshlib.transport.grpc.tally import Outgoing, Tally

if TYPE_CHECKING:
    from meshlib.transport.grpc.sync_channel import Method

__all__ = ["CANCELLED", "Shot", "Shots"]

COMPLETE = RequestComplete()

_COMPRESSION_KEY = "grpc-internal-encoding-request"
_ENCODINGS = {
    grpc.Compression.NoCompression: "identity",
    grpc.Compression.Deflate: "deflate",
    grpc.Compression.Gzip: "gzip",
}

FIRST_LOOK, LAST_LOOK = 0.0005, 0.01
"""Seconds between two looks at a channel that connects: at first, and at most."""


class Shot:
    """One attempt. rpc: the inner call once it is sent. answered: its headers were reported.

    reading: a thread of the application is inside `next(rpc)`; an ending is then left to that thread (`ended`), which may
    hold a message that came before. plain: it is on a channel without the mesh, of which the engine knows nothing. tally: of its
    messages, where somebody observes the call.
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
        "tally",
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
        self.tally: Tally | None = None


class _Wake:
    """The engine's way to wake a flight, which ends with it: the call would refer back to it otherwise."""

    __slots__ = ("flight",)

    def __init__(self, flight: Shots) -> None:
        self.flight: Shots | None = flight

    def __call__(self) -> None:
        flight = self.flight
        if flight is not None:
            flight.post(WOKEN)


class Shots:
    """Times are monotonic seconds. deadline: the caller's, None without. streamed: the response is a stream.

    call: one that has begun already; its `wake` has to lead to `wake`. changed: guards and announces what other threads wait
    for: `accepted`, `over`, the set of attempts.
    """

    _refused: BaseException | None = (
        None  # what broke the TLS of the last connection that could not be opened
    )
    _outgoing: Outgoing | None = None  # of a single request, as the last attempt has sent it

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
        self.deadline = deadline_of(timeout, monotonic)
        self.changed = threading.Condition()
        self.accepted: Shot | None = None
        self.over = False
        self._live: dict[int, Shot] = {}
        self._inbox: deque[Callable[[], None]] = deque()
        self._busy = threading.Lock()
        self._after: list[Callable[[], None]] = []
        self._crash: BaseException | None = None
        self.wake = _Wake(self)
        self._call: Call = call or engine.call(
            view(channel.target, channel.authority, method.path, metadata, channel.channel_id),
            wake=self.wake,
            replayable=None if self._requests is None else self._replayable,
            deadline=self.deadline,
            wait_for_ready=bool(wait_for_ready),
            dialect=channel.dialect,
        )

    @property
    def info(self) -> CallInfo:
        return self._call.info

    def _replayable(self) -> bool:
        return self._requests is None or self._requests.replayable

    # --- what comes of it ----------------------------------------------------------------------------------------------

    def _arm(self) -> None:
        """Have a timer for `wake_at`."""
        raise NotImplementedError

    def _accept(self, action: Accept) -> None:
        """This attempt's response is the application's."""
        raise NotImplementedError

    def _fail(self, error: MeshError) -> None:
        """The engine ends the call."""
        raise NotImplementedError

    def _ended(self, shot: Shot) -> None:
        """The inner call is over."""
        raise NotImplementedError

    def _give_up(self, code: grpc.StatusCode, details: str) -> None:
        """The application's side ends the call."""
        raise NotImplementedError

    def _finish(self, error: FinishedRpc | None) -> None:
        """The call is over."""
        raise NotImplementedError

    def _await_headers(self, shot: Shot) -> None:
        """A thread of its own: wait for the headers of an attempt that nobody might read."""
        raise NotImplementedError

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
                self._arm()
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

    def _tell(self, event: Event, now: float | None, shot: Shot | None = None) -> None:
        """Report to the engine and carry out what it says. shot: whose response it is, if the event may be its acceptance."""
        if not self.over:
            if self._call.observed:
                self._account(shot)
            self._carry_out(self._call.handle(event, self.monotonic() if now is None else now))

    def _account(self, shot: Shot | None = None) -> None:
        """Tell those who observe the call what went over the wire. shot: of an attempt that answers, though none is accepted."""
        raise NotImplementedError

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
            return NeedConnection(shot.number, self._channels)
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
        self._refused = inner.error
        del self._live[shot.number]
        self._tell(inner.failed(shot.number), None)

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
        try:
            if self._call.observed:
                multicallable, shot.tally = self._method.counted(inner, start.path)
                self._outgoing = shot.tally.sent
            else:
                multicallable = self._method.on(inner, start.path)
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
        if not shot.rpc.add_callback(partial(self._told_over, shot)):
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

    def _told_over(self, shot: Shot) -> None:
        """grpcio's thread: the inner call is over."""
        grpc_thread.here = True
        try:
            self._rpc_over(shot)
        finally:
            grpc_thread.here = False

    def _rpc_over(self, shot: Shot) -> None:
        with self.changed:
            if shot.over:
                return
            shot.over = True
            shot.ended = shot.reading
        if shot.inner is not None:
            shot.inner.leave()
        if not shot.ended:
            self._do(partial(self._ended, shot))
