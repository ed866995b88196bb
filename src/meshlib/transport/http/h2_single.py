"""HTTP/2 for one request at a time: what blocking code uses, where nobody could serve the other streams meanwhile."""

from __future__ import annotations

from meshlib.transport.http.failure import TransportFailure, terminated
from meshlib.transport.http.h2 import H2Codec, H2Stream
from meshlib.transport.http.message import OutgoingRequest, Response

__all__ = ["H2Single"]


class H2Single:
    """A `Codec` over one stream of an `H2Codec` after the other."""

    __slots__ = ("_codec", "_stream")

    survives_input = True

    def __init__(self) -> None:
        self._codec = H2Codec()
        self._stream: H2Stream | None = None

    @property
    def response(self) -> Response:
        assert self._stream is not None
        return self._stream.response

    @property
    def reusable(self) -> bool:
        return self._codec.credit > 0 and self._codec.active == 0

    @property
    def blocked(self) -> bool:
        return self._stream is not None and self._stream.blocked

    @property
    def outgoing(self) -> bool:
        return True

    def start(self, request: OutgoingRequest, *, inline: bool = True) -> bytes:
        if not inline:
            request = OutgoingRequest(
                request.method, request.path, request.authority, request.block, None, request.extra
            )
        self._stream = self._codec.open(request)
        return self._codec.take_outgoing()

    def body(self, data: bytes) -> bytes:
        assert self._stream is not None
        self._stream.send(data)
        return self._codec.take_outgoing()

    def end_body(self) -> bytes:
        assert self._stream is not None
        self._stream.finish()
        return self._codec.take_outgoing()

    def feed(self, data: bytes) -> None:
        self._codec.feed(data)
        stream = self._stream
        if stream is not None and stream.response.failed is not None:
            raise stream.response.failed

    def end(self) -> None:
        self._codec.end()
        if self._stream is not None and self._stream.response.failed is not None:
            raise self._stream.response.failed

    def abort(self) -> TransportFailure:
        self._codec.end()
        return terminated()

    def consumed(self, count: int) -> None:
        if self._stream is not None:
            self._stream.consumed(count)

    def take_outgoing(self) -> bytes:
        return self._codec.take_outgoing()

    def close(self) -> None:
        self._codec.end()
