"""A blocking unary call on a channel of grpcio, with less of grpcio's bookkeeping around it.

grpcio's own `with_call` is made for every kind of call: a condition, a set of what is due, an object that can still be asked
and cancelled while it runs, records for an observability plugin. A blocking unary call needs none of that, and it costs a
twelfth of the call. So this does what `grpc._channel._UnaryUnaryMultiCallable._blocking` does, on the same objects of C-core
(`segregated_call`, six operations, one event), and reads the outcome off the operations.

Those objects are grpcio's own business. `lean_unary` gives None where they are not what they were in grpcio 1.75 to 1.85, and
a call gives None, before anything is sent, where it needs what only `with_call` does; then that is used.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import grpc
from grpc import _channel, _common

from meshlib.routing.request import Headers
from meshlib.runtime.clock import SystemClock
from meshlib.transport.grpc.errors import CODES
from meshlib.transport.grpc.judge import Ended
from meshlib.transport.grpc.metadata import LazyHeaders, Metadata, to_headers, trailers_of
from meshlib.transport.grpc.sync_expiry import Expiry

__all__ = ["LeanUnary", "Receipt", "lean_unary"]

try:
    from grpc import _observability
    from grpc._cython import cygrpc

    _DEFAULTS = cygrpc.PropagationConstants.GRPC_PROPAGATE_DEFAULTS
    _send_metadata = cygrpc.SendInitialMetadataOperation
    _send_message = cygrpc.SendMessageOperation
    _send_close = cygrpc.SendCloseFromClientOperation
    _close = _send_close(0)  # the same for all calls: it has no content
    _receive_metadata = cygrpc.ReceiveInitialMetadataOperation
    _receive_message = cygrpc.ReceiveMessageOperation
    _receive_status = cygrpc.ReceiveStatusOnClientOperation
    _limit_deadline = _channel._determine_deadline
    _observability._OBSERVABILITY_PLUGIN  # noqa: B018 - it must be there
    _usable = True
except (ImportError, AttributeError):  # pragma: no cover - another grpcio
    _usable = False


_expiry = Expiry()
_wall = SystemClock.time  # C-core takes deadlines in seconds since the epoch


class Receipt(LazyHeaders):
    """A unary call that is over, with the questions that grpcio's own call objects answer. number: of google.rpc.Code. sent,
    received: the messages, serialized; None for none.

    As a sequence it is the headers of the response.
    """

    __slots__ = ("_initial", "_status", "number", "received", "response", "sent")

    def __init__(self, initial: Any, status: Any, response: Any, sent: bytes, received: bytes | None) -> None:
        self._initial = initial
        self._status = status
        self.number: int = status.code()
        self.response = response
        self.sent: bytes | None = sent
        self.received: bytes | None = received

    def _all(self) -> Headers:
        return to_headers(self.initial_metadata())

    def initial_metadata(self) -> Metadata:
        return self._initial.initial_metadata() or ()

    def trailing_metadata(self) -> Metadata:
        return self._status.trailing_metadata() or ()

    def code(self) -> grpc.StatusCode:
        return CODES.get(self.number, grpc.StatusCode.UNKNOWN)

    def details(self) -> str:
        return self._status.details() or ""

    def debug_error_string(self) -> str | None:
        text: str | None = self._status.error_string()
        return text

    def result(self, _timeout: float | None = None) -> Any:
        return self.response

    def trailers(self) -> Headers:
        """Of a call that went well, with its status."""
        return trailers_of(self.trailing_metadata)

    def ended(self) -> Ended:
        """The ending, if it is another than OK."""
        return Ended(
            self.number,
            self.details(),
            self.debug_error_string(),
            self.initial_metadata(),
            self.trailing_metadata(),
            message=self.response is not None,
        )


class Broken(Receipt):
    """A message could not be serialized or deserialized; grpcio's logger has the reason."""

    __slots__ = ("_text",)

    def __init__(self, text: str, sent: bytes | None = None, received: bytes | None = None) -> None:
        self.number = 13
        self.response = None
        self.sent = sent
        self.received = received
        self._text = text

    def initial_metadata(self) -> Metadata:
        return ()

    def trailing_metadata(self) -> Metadata:
        return ()

    def details(self) -> str:
        return self._text

    def debug_error_string(self) -> str | None:
        return None


class LeanUnary:
    """One method on one channel. inner: who has that channel."""

    __slots__ = ("_channel", "_context", "_deserializer", "_handle", "_method", "_serializer", "inner")

    def __init__(self, multicallable: Any, inner: Any = None) -> None:
        """multicallable: as `channel.unary_unary` gives it. AttributeError: this grpcio's is made in another way."""
        self.inner = inner
        self._channel = multicallable._channel
        self._method: bytes = multicallable._method
        self._context = multicallable._context
        self._handle = multicallable._registered_call_handle
        self._serializer: Callable[[Any], bytes] | None = multicallable._request_serializer
        self._deserializer: Callable[[bytes], Any] | None = multicallable._response_deserializer

    def __call__(
        self,
        request: Any,
        timeout: float | None,
        metadata: Metadata | None,
        credentials: grpc.CallCredentials | None,
        until: float = inf,
    ) -> Receipt | None:
        """timeout: seconds, sent along. until: when the call is ended here (monotonic seconds).

        None: nothing was sent, `with_call` has to do it. Raises ValueError when the channel is closed.
        """
        if _observability._OBSERVABILITY_PLUGIN is not None:
            return None
        serializer = self._serializer
        if serializer is not None:
            request = _common.serialize(request, serializer)
            if request is None:
                return Broken("Exception serializing request!")
        status = _receive_status(0)
        initial = _receive_metadata(0)
        message = _receive_message(0)
        operations = (
            _send_metadata(metadata, 0),
            _send_message(request, 0),
            _close,
            initial,
            message,
            status,
        )
        call = self._channel.segregated_call(
            _DEFAULTS,
            self._method,
            None,
            _limit_deadline(None if timeout is None else _wall() + timeout),
            metadata,
            None if credentials is None else credentials._credentials,
            ((operations, None),),
            self._context,
            self._handle,
        )
        if until == inf:
            call.next_event()
        else:
            _expiry.begin(call, until)
            try:
                call.next_event()
            finally:
                _expiry.end(call)
        response = received = message.message()
        if response is not None and self._deserializer is not None:
            response = _common.deserialize(response, self._deserializer)
            if response is None:
                return Broken("Exception deserializing response!", request, received)
        return Receipt(initial, status, response, request, received)


def lean_unary(multicallable: Any, inner: Any = None) -> LeanUnary | None:
    """None where this grpcio is not made as expected."""
    if not _usable:
        return None
    try:
        return LeanUnary(multicallable, inner)
    except AttributeError:
        return None
