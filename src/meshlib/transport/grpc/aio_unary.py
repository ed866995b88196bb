"""The driver of a call with one message each way. `aio_lane` is the straight line through it of a call that goes well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from meshlib.engine.actions import Accept, Action
from meshlib.routing.request import Headers as HeaderList
from meshlib.transport.grpc.aio_attempt import Attempt, Stage
from meshlib.transport.grpc.aio_driver import Driver
from meshlib.transport.grpc.aio_home import Home
from meshlib.transport.grpc.aio_inner import is_ok, message_of, result_of
from meshlib.transport.grpc.aio_lane import arrive, set_out
from meshlib.transport.grpc.aio_lean import LeanCall, lean_call
from meshlib.transport.grpc.metadata import LazyHeaders, trailers_of

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_channel import Method

__all__ = ["UnaryDriver"]


class UnaryDriver(Driver):
    """request: the serialized message."""

    request: bytes
    _deserializer: Callable[[bytes], Any] | None

    def __init__(
        self,
        home: Home,
        method: Method,
        request: bytes,
        metadata: Any,
        timeout: float | None,
        wait_for_ready: bool | None,
        options: dict[str, Any],
    ) -> None:
        self.home = home
        self.method = method
        self.request = request
        self.metadata = metadata
        self.options = options
        self._deserializer = method.deserializer
        actions = set_out(self, timeout, wait_for_ready)
        if actions is not None:
            self.run(self._carry_out(actions))

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
            actions = arrive(self, attempt, message)
            if actions is not None:
                self._take(attempt, actions)
            return
        if not (inner.ok if type(inner) is LeanCall else is_ok(inner)):
            super().ended(attempt)
            return
        attempt.driver = None
        attempt.stage = Stage.OVER
        attempt.lane.released()
        if self.call.observed:
            self._account(self._trailers(inner))
        headers = LazyHeaders(attempt.response_headers)
        self._take(attempt, self.call.succeed(attempt.number, headers, self.home.monotonic()))

    def _take(self, attempt: Attempt, actions: Sequence[Action]) -> None:
        """What the engine says to its response, which is complete."""
        accept = actions[0] if len(actions) == 1 else None
        if type(accept) is Accept:
            self.edited = accept.headers
            self.accepted = attempt
            self._finish(None)
        else:
            self.run(self._carry_out(actions))
            if attempt is self.accepted:
                self._finish(None)
