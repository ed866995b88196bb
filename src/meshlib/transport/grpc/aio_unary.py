"""The driver of a call with one message each way, and the straight line through it of a call that goes well."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import grpc.aio

from meshlib.engine.actions import Accept, Start
from meshlib.engine.loop import ACCEPTED
from meshlib.routing.request import Headers as HeaderList
from meshlib.transport.grpc.aio_attempt import Attempt, Stage
from meshlib.transport.grpc.aio_driver import Driver
from meshlib.transport.grpc.aio_endpoint import InnerChannel
from meshlib.transport.grpc.aio_inner import is_ok, message_of, result_of
from meshlib.transport.grpc.aio_lean import LeanCall, lean_call
from meshlib.transport.grpc.judge import PREFIX
from meshlib.transport.grpc.metadata import LazyHeaders, trailers_of
from meshlib.transport.grpc.request import with_extra

__all__ = ["UnaryDriver"]


class UnaryDriver(Driver):
    """request: the serialized message."""

    request: bytes

    def begin(self) -> None:
        home = self.home
        actions = self.call.begin(home.monotonic())
        start = actions[0] if len(actions) == 1 else None
        if type(start) is Start and start.permitted and start.headers is None:
            lane = home.inner(start)
            if lane.ready() and self._send_lean(start, lane):
                return
        self.run(self._carry_out(actions))

    def _send_lean(self, start: Start, lane: InnerChannel) -> bool:
        """The first attempt, as `_send` has it. False: nothing was done, it needs more than that."""
        if self.options:
            return False
        time_left = None if self.deadline is None else self.time_left()
        metadata = with_extra(self.metadata, start.extra) if start.extra else self.metadata
        method = self._method
        path = method.encoded if start.path == method.path else start.path.encode()
        try:
            inner = lean_call(lane.channel, path, self.request, time_left, metadata)
        except (grpc.aio.BaseError, TypeError):
            return False  # to be said there
        if inner is None:
            return False
        lane.used()
        attempt = Attempt(self, 1, start.path, lane)
        attempt.start = start
        attempt.stage = Stage.SENT
        attempt.inner = self.direct = inner
        self._attempts = (attempt,)
        inner.add_done_callback(attempt.ended)
        if self.call.wake_at < inf:
            self._arm()
        return True

    def _begin(self, attempt: Attempt, metadata: Any) -> Any:
        time_left = None if self.deadline is None else self.time_left()
        lane, path = attempt.lane, attempt.path
        if not self.options:
            lean = lean_call(lane.channel, path.encode(), self.request, time_left, metadata)
            if lean is not None:
                return lean
        return lane.multicallable("unary_unary", path)(
            self.request, timeout=time_left, metadata=metadata, **self.options
        )

    def _account(self, trailers: HeaderList | Callable[[], HeaderList] | None = None) -> None:
        if trailers is not None or any(attempt.inner is not None for attempt in self._attempts):
            self.sent, self.sent_bytes = 1, len(self.request)
        super()._account(trailers)

    def _trailers(self, inner: Any) -> Callable[[], HeaderList]:
        """Of an inner call that went well."""
        self.received = 1
        message = inner.message if type(inner) is LeanCall else message_of(inner)
        self.received_bytes = len(message or b"")
        return lambda: trailers_of(lambda: result_of(inner.trailing_metadata()))

    def ended(self, attempt: Attempt) -> None:
        inner = attempt.inner
        message = inner.message if type(inner) is LeanCall else None
        if message is not None:
            attempt.driver = None
            attempt.stage = Stage.OVER
            attempt.lane.released()
            call = self.call
            if call.observed:
                self.sent, self.sent_bytes = 1, len(self.request)
                self.received, self.received_bytes = 1, len(message)
                call.account(
                    len(self.request) + PREFIX,
                    len(message) + PREFIX,
                    messages=(1, 1),
                    trailers=inner.trailers,
                )
            self._succeeded(attempt)
            return
        if not (inner.ok if type(inner) is LeanCall else is_ok(inner)):
            super().ended(attempt)
            return
        attempt.driver = None
        attempt.stage = Stage.OVER
        attempt.lane.released()
        if self.call.observed:
            self._account(self._trailers(inner))
        self._succeeded(attempt)

    def _succeeded(self, attempt: Attempt) -> None:
        """Its response is complete, and OK."""
        headers = LazyHeaders(attempt.response_headers)
        actions = self.call.succeed(attempt.number, headers, self.home.monotonic())
        if actions is ACCEPTED and attempt.number == 1:
            self.accepted = attempt
            self._finish(None)
            return
        accept = actions[0] if len(actions) == 1 else None
        if type(accept) is Accept:
            self.edited = accept.headers
            self.accepted = attempt
            self._finish(None)
        else:
            self.run(self._carry_out(actions))
            if attempt is self.accepted:
                self._finish(None)
