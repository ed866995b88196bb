"""A unary call in blocking code.

The engine is asked for an attempt; if the endpoint's channel is READY, the attempt is a blocking call of grpcio on it, whose
deadline is the earliest of the call's timers. That is all there is to a call that goes well (`sync_lane`). Otherwise the loop
here carries out what the engine says, one attempt at a time, and blocks in C-core (while it connects) or on an event (in a
queue, during a back-off, while configuration is awaited).

A call whose route hedges has several attempts at once: it is handed to the driver of futures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.engine.actions import Accept, Action, CancelAttempt, Connect, Fail, Park, Reply, Start
from meshlib.engine.call import Call
from meshlib.engine.events import (
    CANCELLED,
    TIMER,
    WOKEN,
    Cancelled,
    Connected,
    Event,
    Failed,
    FailureKind,
    Headers,
    NeedConnection,
    Succeeded,
)
from meshlib.errors import MeshError
from meshlib.identity.refusal import explained
from meshlib.routing.request import Headers as HeaderList
from meshlib.state import Waiter
from meshlib.transport.grpc.endpoint import InnerChannel
from meshlib.transport.grpc.errors import RpcFailed, reply_failed, rpc_error
from meshlib.transport.grpc.judge import PREFIX, Ended, end_of_stream, judge
from meshlib.transport.grpc.lean import Receipt
from meshlib.transport.grpc.metadata import LazyHeaders, Metadata, to_metadata, trailers_of
from meshlib.transport.grpc.request import outgoing_metadata
from meshlib.transport.grpc.status import UnsupportedActionError, ended_of, status_of
from meshlib.transport.grpc.sync_call import SucceededCall
from meshlib.transport.grpc.sync_flight import Flight
from meshlib.transport.grpc.sync_rpc import MeshRpc
from meshlib.transport.grpc.tally import Tally
from meshlib.transport.grpc.waker import Waker

if TYPE_CHECKING:
    from meshlib.transport.grpc.endpoints import EndpointChannels
    from meshlib.transport.grpc.sync_channel import Method

__all__ = ["BlockingCall"]


class Stage(Enum):
    """Where the attempt is."""

    PARKED = "in its endpoint's queue"
    CONNECTING = "its channel connects"
    READY = "it may be sent"
    SENT = "it is over, the engine decides"


class Ahead:
    """The attempt that a blocking call has under way."""

    # Defaults of the class: an attempt that goes well sets few of them.
    stage = Stage.PARKED
    inner: InnerChannel | None = None
    waiter: Waiter | None = None
    response: Any = None
    succeeded: Any = None
    ended: Ended | None = None
    apart = False

    def __init__(self, start: Start) -> None:
        self.number = start.attempt
        self.start = start


class BlockingCall:
    """Runs one call, from where `sync_lane` leaves it. metadata, credentials, compression: as the application gave them."""

    __slots__ = (
        "_accept",
        "_ahead",
        "_broken",
        "_call",
        "_channels",
        "_compression",
        "_credentials",
        "_deadline",
        "_initial",
        "_metadata",
        "_method",
        "_monotonic",
        "_request",
        "_waker",
    )

    def __init__(
        self,
        method: Method,
        channels: EndpointChannels,
        monotonic: Callable[[], float],
        call: Call,
        waker: Waker,
        request: Any,
        metadata: Metadata | None,
        credentials: grpc.CallCredentials | None,
        compression: grpc.Compression | None,
        deadline: float | None,
    ) -> None:
        """call: it has begun. deadline: the caller's own, monotonic seconds."""
        self._channels = channels
        self._monotonic = monotonic
        self._method = method
        self._request = request
        self._metadata = metadata
        self._credentials = credentials
        self._compression = compression
        self._waker = waker
        self._ahead: Ahead | None = None
        self._accept: Accept | None = None
        self._initial: Metadata = ()
        self._deadline = deadline
        self._call = call

    def go_on(self, actions: Sequence[Action]) -> tuple[Any, grpc.Call]:
        """From these actions to the end: the response and its call object. Raises what a blocking call of grpcio raises."""
        try:
            return self._go_on(actions)
        except BaseException as error:
            self._abandon(error)
            raise

    def go_on_after(
        self, start: Start, inner: InnerChannel, receipt: Receipt, wake_at: float, actions: Sequence[Action]
    ) -> tuple[Any, grpc.Call]:
        """The same when the first attempt is over. actions: what came of it, if it succeeded; wake_at: when it had to end."""
        ahead = self._ahead = Ahead(start)
        ahead.inner = inner
        ahead.stage = Stage.SENT
        try:
            if receipt.number == 0:
                ahead.response, ahead.succeeded = receipt.response, receipt
            else:
                ahead.ended = receipt.ended()
                actions = self._call.handle(*self._outcome(ahead, receipt, None, wake_at))
            return self._go_on(actions)
        except BaseException as error:
            self._abandon(error)
            raise

    def _go_on(self, actions: Sequence[Action]) -> tuple[Any, grpc.Call]:
        """From these actions to the end of the call."""
        call, monotonic = self._call, self._monotonic
        while True:
            if self._ahead is None and actions and type(actions[0]) is Start and call.hedges:
                return self._hedged(actions)
            event = self._carry_out(actions)
            if self._accept is not None:
                return self._finish(self._accept)
            actions = call.handle(event, monotonic()) if event is not None else call.handle(*self._next())

    def _hedged(self, actions: Sequence[Action]) -> tuple[Any, grpc.Call]:
        """Several attempts may be alive at once: let events drive the call, and wait."""
        flight = Flight(
            self._method,
            self._request,
            None,
            streamed=False,
            timeout=None if self._deadline is None else self._deadline - self._monotonic(),
            metadata=self._metadata,
            credentials=self._credentials,
            wait_for_ready=None,
            compression=self._compression,
            call=self._call,
        )
        self._waker.forward = flight.wake
        flight.go_on(actions)
        if self._waker.take():
            flight.wake()
        rpc = MeshRpc(flight)
        try:
            return rpc.outcome(), rpc
        except grpc.RpcError:
            raise
        except BaseException:
            rpc.cancel()
            raise

    # --- the attempt -------------------------------------------------------------------------------------------------

    def _send(self, ahead: Ahead) -> tuple[Event, float]:
        """The call on the inner channel, which has been entered; how it ended, and when."""
        inner, start = ahead.inner, ahead.start
        assert inner is not None
        call, monotonic = self._call, self._monotonic
        ahead.stage = Stage.SENT
        wake_at = call.wake_at
        timeout = None if wake_at == inf else wake_at - monotonic()
        alone = self._deadline is None  # no timer is the caller's: no deadline is sent
        metadata = outgoing_metadata(start, self._metadata)
        method, compression = self._method, self._compression
        receipt = tally = None
        try:
            lean = method.lean(inner, start.path) if compression is None else None
            if lean is not None:
                limit, until = (None, wake_at) if alone else (timeout, inf)
                receipt = lean(self._request, limit, metadata, self._credentials, until)
            if receipt is None:
                if call.observed:
                    multicallable, tally = method.counted(inner, start.path)
                else:
                    multicallable = method.on(inner, start.path)
                ahead.response, ahead.succeeded = multicallable.with_call(
                    self._request, timeout, metadata, self._credentials, None, compression
                )
            elif receipt.number == 0:
                ahead.response, ahead.succeeded = receipt.response, receipt
            else:
                ahead.ended = receipt.ended()
        except grpc.RpcError as error:
            ahead.ended = ended_of(error)
        finally:
            inner.leave()
        return self._outcome(ahead, receipt, tally, wake_at)

    def _outcome(
        self, ahead: Ahead, receipt: Receipt | None, tally: Tally | None, wake_at: float
    ) -> tuple[Event, float]:
        """The attempt is over: what the engine is told of it, and as of when."""
        call, monotonic, start, inner = self._call, self._monotonic, ahead.start, ahead.inner
        assert inner is not None
        ended = ahead.ended
        if call.observed:
            self._account(ahead, receipt, tally)
        if ended is None:
            headers = LazyHeaders(ahead.succeeded.initial_metadata) if receipt is None else receipt
            return Succeeded(start.attempt, 200, headers, True), monotonic()
        event, now = judge(start.attempt, ended, answered=False, now=monotonic(), wake_at=wake_at)
        if isinstance(event, Cancelled):
            call.handle(event, now)
            raise self._status(ended)
        self._channels.told(inner, event)
        ahead.apart = isinstance(event, Headers) and not event.end
        return event, now

    def _account(self, ahead: Ahead, receipt: Receipt | None, tally: Tally | None) -> None:
        """For those who observe the call: what went over the wire."""
        trailers = None
        if ahead.ended is None:
            trailers = partial(trailers_of, ahead.succeeded.trailing_metadata)
        sent = received = 0
        messages = 0, 0
        if receipt is not None:
            if receipt.received is not None:
                received = len(receipt.received) + PREFIX
                messages = 1, 1
            elif receipt.sent is not None:
                messages = 1, 0
            if receipt.sent is not None:
                sent = len(receipt.sent) + PREFIX
        elif tally is not None and tally.sent is not None:
            sent, received = tally.sent.size, tally.received.size
            messages = tally.sent.count, tally.received.count
        self._call.account(sent, received, messages=messages, trailers=trailers)

    def _finish(self, accept: Accept) -> tuple[Any, SucceededCall]:
        ahead = self._ahead
        assert ahead is not None
        headers, ended = accept.headers, ahead.ended
        if ended is None:
            initial = None if headers is None else to_metadata(headers)
            return ahead.response, SucceededCall(ahead.succeeded, self._call.info, initial)
        if ahead.apart:
            call = self._call
            self._initial = ended.initial if headers is None else to_metadata(headers)
            event, now = end_of_stream(ahead.number, ended, now=self._monotonic(), wake_at=call.wake_at)
            assert ahead.inner is not None
            self._channels.told(ahead.inner, event)
            self._carry_out(call.handle(event, now))
        raise self._status(ended, headers, apart=ahead.apart)

    def _status(self, ended: Ended, headers: HeaderList | None = None, *, apart: bool = False) -> RpcFailed:
        return status_of(ended, headers, self._call.info, apart=apart)

    # --- the engine's actions ----------------------------------------------------------------------------------------

    def _carry_out(self, actions: Sequence[Action]) -> Event | None:
        """The event that follows at once, None when it must be waited for."""
        event: Event | None = None
        for action in actions:
            if isinstance(action, Start):
                event = self._start(action)
            elif isinstance(action, Accept):
                self._accept = action
            elif isinstance(action, CancelAttempt):
                self._cancel(action.attempt)
            elif isinstance(action, Connect):
                event = self._connect(action)
            elif isinstance(action, Park):
                self._park(action)
            elif isinstance(action, Fail):
                raise rpc_error(self._explained(action.error), self._call.info, self._initial)
            elif isinstance(action, Reply):
                raise reply_failed(action.reply, self._call.info)
            else:
                raise UnsupportedActionError(action)
        return event

    def _start(self, start: Start) -> Event | None:
        ahead = self._ahead = Ahead(start)
        inner = self._channels.ready(start.endpoint, start.authority)
        if inner is None or not inner.enter():
            return NeedConnection(start.attempt, self._channels)
        ahead.inner = inner
        ahead.stage = Stage.READY
        return None if start.permitted else Connected(start.attempt)

    def _park(self, action: Park) -> None:
        ahead = self._ahead
        if action.waiter is not None and ahead is not None:
            ahead.waiter = action.waiter
            self._channels.rescue(ahead.start)

    def _connect(self, action: Connect) -> Event | None:
        ahead = self._ahead
        assert ahead is not None
        ahead.waiter = None
        if action.connection is None:
            ahead.inner = self._channels.connect(ahead.start)
            ahead.stage = Stage.CONNECTING
            return None
        assert isinstance(action.connection, InnerChannel)
        return self._use(ahead, action.connection)

    def _use(self, ahead: Ahead, inner: InnerChannel) -> Event:
        """The channel is READY, or was a moment ago."""
        if not inner.enter():
            ahead.inner = None
            ahead.stage = Stage.PARKED
            return NeedConnection(ahead.number, self._channels)
        ahead.inner = inner
        ahead.stage = Stage.READY
        return Connected(ahead.number)

    def _cancel(self, number: int) -> None:
        ahead = self._ahead
        if ahead is None or ahead.number != number:
            return
        self._ahead = None
        inner = ahead.inner
        if inner is not None:
            if ahead.stage is Stage.READY:
                inner.leave()
            elif ahead.stage is Stage.CONNECTING:
                self._channels.abandoned(inner)

    def _abandon(self, error: BaseException | None = None) -> None:
        """Something was raised: the engine hears that the call is over."""
        if self._call.observed and error is not None:
            self._call.error = error
        self._call.handle(CANCELLED, self._monotonic())
        if self._ahead is not None:
            self._cancel(self._ahead.number)

    def _explained(self, error: MeshError) -> MeshError:
        """The error with what broke the TLS of the last connection, if something did (a call that goes well sets nothing)."""
        broken = getattr(self, "_broken", None)
        if broken is None:
            return error
        return explained(error, broken)

    # --- waiting -----------------------------------------------------------------------------------------------------

    def _next(self) -> tuple[Event, float]:
        """The next event, waited for as long as the engine allows."""
        call, monotonic, waker = self._call, self._monotonic, self._waker
        while True:
            now = monotonic()
            if now >= call.wake_at:
                return TIMER, now
            ahead = self._ahead
            if ahead is not None and ahead.inner is not None:
                event = self._advance(ahead)
                if event is not None:
                    return event
            elif waker.take():
                return WOKEN, now
            else:
                with self._method.channel.parked(waker):
                    waker.wait(call.wake_at - now)

    def _advance(self, ahead: Ahead) -> tuple[Event, float] | None:
        """Send what may be sent; let the channel connect for a while otherwise."""
        inner = ahead.inner
        assert inner is not None
        if ahead.stage is Stage.READY:
            return self._send(ahead)
        if ahead.stage is Stage.SENT:  # its deadline passed, but none of the call's timers was due
            assert ahead.ended is not None
            return Failed(
                ahead.number, FailureKind.REMOTE_RESET, True, ahead.ended.details
            ), self._monotonic()
        connected = inner.look()
        if connected is None:
            inner.await_change(self._call.wake_at)
            return None
        if connected:
            self._channels.connected(inner)
            return self._use(ahead, inner), self._monotonic()
        self._ahead = None
        self._channels.failed(inner)
        self._broken = inner.error
        return inner.failed(ahead.number), self._monotonic()
