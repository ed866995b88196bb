"""A call that is driven by events: futures, streams, and hedged calls. `sync_shots` has its attempts.

Messages of a response stream are not events: the thread that reads the stream takes them from the inner call itself, and
tells only of the first one, which commits the call to that attempt.

    _live    attempts without a verdict, by number
    accepted the attempt whose response is the application's; the messages are read from it
    over     status, metadata and, for a future, the response are there

grpcio tells when an inner call is over, but not when its headers arrive. They count when the application reads, when the inner
call is over, or when a timer of the call is due: then they are looked for first. Beside a live attempt of a stream (hedging)
nobody might ever read the second one: a short-lived thread waits for its headers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import Any

import grpc

from meshlib.engine.actions import Accept, Action
from meshlib.engine.events import (
    TIMER,
    Begin,
    Cancelled,
    End,
    Event,
    Failed,
    FailureKind,
    Headers,
    Message,
    Timer,
)
from meshlib.errors import MeshError, UnknownHost
from meshlib.identity.refusal import explained
from meshlib.runtime import threads
from meshlib.runtime.timers import timers
from meshlib.transport.grpc.errors import FinishedRpc, RpcFailed, rpc_error
from meshlib.transport.grpc.judge import PREFIX, Ended, end_of_stream, judge
from meshlib.transport.grpc.metadata import Metadata, to_headers, to_metadata
from meshlib.transport.grpc.request import with_extra
from meshlib.transport.grpc.status import arrived, ended_of, status_of
from meshlib.transport.grpc.sync_shots import CANCELLED, Shot, Shots

__all__ = ["Flight"]


class Flight(Shots):
    """See the module. active_at: when the application last took a message (monotonic seconds).

    Once `over`: error is None when the status is OK; response: of a future; ended: what grpcio said, if an endpoint did.
    """

    active_at = 0.0
    error: FinishedRpc | None = None
    response: Any = None
    ended: Ended | None = None
    cancelled = False
    _edited: list[tuple[str, str]] | None = None
    _whole = False  # the response is one block of headers, with the status among them
    _alarm: threads.Timer | None = None
    _alarm_at = inf
    _trailers: list[tuple[str, str]] | None = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._callbacks: list[Callable[[], None]] | None = []

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

    # --- outcomes ----------------------------------------------------------------------------------------------------

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
            if self._call.observed:
                self._trailers = ended.trailers()
            event: Event = Headers(shot.number, 200, to_headers(ended.initial), True)
        else:
            event, now = judge(
                shot.number, ended, answered=shot.answered, now=now, wake_at=self._call.wake_at
            )
        if isinstance(event, Cancelled):
            self._give_up_with(status_of(ended, None, self.info, apart=False), shot)
            return
        if isinstance(event, Headers):
            self._answered(shot, event, ended, now)
            return
        if isinstance(event, Failed):
            del self._live[shot.number]
            self._told(shot, event)
        self._tell(event, now)
        if isinstance(event, Timer) and self._live.get(shot.number) is shot and not self.over:
            del self._live[shot.number]  # its deadline passed, but none of the call's timers was due
            self._tell(Failed(shot.number, FailureKind.REMOTE_RESET, True, ended.details), None)

    def _answered(self, shot: Shot, event: Headers, ended: Ended | None, now: float) -> None:
        """Report the headers. ended: the inner call is over already."""
        shot.answered = True
        self._whole = event.end and ended is not None and ended.code != 0
        self._tell(event, now, shot)
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
        self._told(shot, event)
        self._tell(event, now)
        if not self.over:
            if isinstance(event, Timer):  # none of the call's timers was due
                self._tell(End(shot.number, ended.trailers()), None)
            self._finish_with(shot, ended)

    def _told(self, shot: Shot, event: Event) -> None:
        if shot.inner is not None:
            self._channels.told(shot.inner, event)

    def _finish_with(self, shot: Shot, ended: Ended) -> None:
        """The response is complete."""
        self.ended = ended
        if ended.code == 0:
            if not self.streamed:
                self.response = shot.rpc.result()
            self._finish(None)
            return
        self._finish(status_of(ended, self._edited, self.info, apart=not self._whole))

    def _account(self, shot: Shot | None = None) -> None:
        requests, outgoing, answers = self._requests, self._outgoing, self.accepted or shot
        sent = size = received = received_size = 0
        if requests is not None:
            sent, size = requests.read, requests.read_bytes + PREFIX * requests.read
        elif outgoing is not None:
            sent, size = outgoing.count, outgoing.size
        if answers is not None and answers.tally is not None:
            received, received_size = answers.tally.received.count, answers.tally.received.size
        self._call.account(size, received_size, messages=(sent, received), trailers=self._trailers)

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
                self._send(shot, plain, with_extra(self._metadata, self._call.headers_to_add))
                with self.changed:
                    self.accepted = shot
                    self.changed.notify_all()
                return
        if self._refused is not None:
            error = explained(error, self._refused)
        self._finish(rpc_error(error, self.info, self._begun()))

    def _begun(self) -> Metadata:
        """The initial metadata of the response, as far as it has begun."""
        accepted = self.accepted
        if accepted is None or self._whole:
            return ()
        if self._edited is not None:
            return to_metadata(self._edited)
        return arrived(accepted.rpc) or ()

    def _give_up(self, code: grpc.StatusCode, details: str) -> None:
        if not self.over:
            self._give_up_with(RpcFailed(code, details, initial=self._begun(), info=self.info))

    def _give_up_with(self, error: FinishedRpc, shot: Shot | None = None) -> None:
        """The application's side ended the call. shot: the attempt by which it did."""
        accepted = self.accepted
        if self._call.observed:
            self._account(shot)
            self._call.error = error
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

    def cancel(self) -> bool:
        """Whether there was something to cancel."""
        if self.over:
            return False
        self._do(self._cancelled)
        self.await_over()
        return self.cancelled

    def end(self, details: str) -> None:
        """Not the application ends the call, but the end of its channel, or of its call object."""
        self._do(partial(self._give_up, grpc.StatusCode.CANCELLED, details))

    def _cancelled(self) -> None:
        if not self.over:
            self.cancelled = True
            self._give_up(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")

    def drop(self) -> None:
        """The application let go of it unread. From a finalizer."""
        if not self.over and not sys.is_finalizing():
            timers().from_finalizer(self._dropped)

    def _dropped(self) -> None:
        self.end("Cancelled upon garbage collection!")

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
