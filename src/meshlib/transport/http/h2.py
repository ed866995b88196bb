"""HTTP/2 (RFC 9113) with prior knowledge, by the h2 library: one connection, many streams; no I/O.

Flow control runs in both directions. A body waits in its stream until the peer's window has room (`H2Stream.blocked`), and
the peer's window is opened again only for what the application has read (`H2Stream.consumed`), so a slow reader holds up
its own stream and no other. `credit` says how many more streams the peer takes: its MAX_CONCURRENT_STREAMS less those that
are open, 0 after GOAWAY.

A stream that the peer refused, by REFUSED_STREAM or by a GOAWAY that does not reach it, was not processed: Envoy calls it
`remote refused stream reset`; any other reset is a `remote reset`.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import H2Error
from h2.settings import SettingCodes, Settings

from meshlib.engine.events import FailureKind
from meshlib.transport.http.failure import InvalidRequest, TransportFailure, protocol_failure, terminated
from meshlib.transport.http.message import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    OutgoingRequest,
    RawHeaders,
    Response,
)

__all__ = ["H2Codec", "H2Connection", "H2Stream"]

STREAM_WINDOW = 1024 * 1024
CONNECTION_WINDOW = 16 * 1024 * 1024
INITIAL_CREDIT = 100
"""Streams that may be opened before the peer's SETTINGS have arrived."""

_FRAME_HEADER = 9
_SETTINGS = 4
_HOP_BY_HOP = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"host")
)


class H2Stream:
    """One request and its response. blocked: body that was given waits for the peer's window. done: both sides are closed."""

    __slots__ = ("_codec", "_ending", "_queue", "identifier", "response", "sent_all", "unread")

    def __init__(self, codec: H2Codec, identifier: int) -> None:
        self._codec = codec
        self._queue: deque[memoryview] = deque()
        self._ending = False
        self.identifier = identifier
        self.response = Response()
        self.response.version = b"HTTP/2"
        self.sent_all = False
        self.unread = 0

    @property
    def blocked(self) -> bool:
        return bool(self._queue)

    def send(self, data: bytes) -> None:
        """Queue one piece of the body; what the window allows leaves with the next `take_outgoing`."""
        if data and not self.response.failed and not self.sent_all:
            self._queue.append(memoryview(data))
            self._codec.flush(self)

    def finish(self) -> None:
        """The body is complete."""
        if not self.response.failed and not self.sent_all:
            self._ending = True
            self._codec.flush(self)

    def consumed(self, count: int) -> None:
        """The application has read so many bytes of the body: open the window for as many."""
        self._codec.acknowledge(self, min(count, self.unread))

    def next_frame(self, room: int) -> memoryview:
        """Up to `room` bytes from the queue."""
        head = self._queue[0]
        if len(head) <= room:
            return self._queue.popleft()
        self._queue[0] = head[room:]
        return head[:room]

    @property
    def ending(self) -> bool:
        return self._ending and not self._queue

    def drop_queue(self) -> None:
        self._queue.clear()


class H2Codec:
    """All streams of one connection. feed returns the streams to which something happened."""

    __slots__ = ("_connection", "_greeted", "_greeting", "_streams", "_terminated")

    def __init__(self) -> None:
        config = H2Configuration(client_side=True, header_encoding=None)
        self._connection: Any = H2Connection(config=config)
        self._connection.local_settings = Settings(
            client=True,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
            },
        )
        self._connection.initiate_connection()
        self._connection.increment_flow_control_window(CONNECTION_WINDOW)
        self._streams: dict[int, H2Stream] = {}
        self._terminated = False
        self._greeted = False
        self._greeting = b""

    @property
    def usable(self) -> bool:
        """Whether new streams may be opened at all."""
        return not self._terminated and self._connection.highest_outbound_stream_id < 2**31 - 3

    @property
    def active(self) -> int:
        return len(self._streams)

    @property
    def credit(self) -> int:
        """How many more streams the peer takes now."""
        if not self.usable:
            return 0
        settings = self._connection.remote_settings
        limit: int = settings.get(SettingCodes.MAX_CONCURRENT_STREAMS, INITIAL_CREDIT)
        return max(0, min(limit, 2**31) - len(self._streams))

    def open(self, request: OutgoingRequest) -> H2Stream:
        """Begin a request; the body, if it is complete, goes with it. Raises InvalidRequest or TransportFailure."""
        headers = _request_headers(request)
        body = request.body
        try:
            identifier = self._connection.get_next_available_stream_id()
            self._connection.send_headers(identifier, headers, end_stream=body is not None and not body)
        except H2Error as error:
            raise protocol_failure(str(error)) from None
        stream = self._streams[identifier] = H2Stream(self, identifier)
        if body is None:
            return stream
        stream.sent_all = not body
        stream.send(body)
        stream.finish()
        return stream

    def flush(self, stream: H2Stream) -> None:
        """Frame as much of a stream's body as both windows allow."""
        connection, identifier = self._connection, stream.identifier
        while stream.blocked:
            room = min(connection.local_flow_control_window(identifier), connection.max_outbound_frame_size)
            if room <= 0:
                return
            connection.send_data(identifier, stream.next_frame(room))
        if stream.ending and not stream.sent_all:
            stream.sent_all = True
            connection.end_stream(identifier)

    def acknowledge(self, stream: H2Stream, count: int) -> None:
        if count <= 0:
            return
        stream.unread -= count
        if not self._terminated:
            self._connection.acknowledge_received_data(count, stream.identifier)

    def cancel(self, stream: H2Stream) -> None:
        """Give a stream up: RST_STREAM(CANCEL) unless both sides are closed."""
        if self._streams.pop(stream.identifier, None) is None:
            return
        stream.drop_queue()
        self.acknowledge(stream, stream.unread)
        if not (stream.response.complete and stream.sent_all) and stream.response.failed is None:
            try:
                code = ErrorCodes.NO_ERROR if stream.response.complete else ErrorCodes.CANCEL
                self._connection.reset_stream(stream.identifier, code)
            except H2Error:
                return

    def take_outgoing(self) -> bytes:
        data: bytes = self._connection.data_to_send()
        return data

    def feed(self, data: bytes) -> list[H2Stream]:
        """Take what arrived. A connection-level error fails every stream and makes the connection unusable."""
        if not self._greeted and not self._greet(data):
            return self.fail_all(protocol_failure("the peer does not speak HTTP/2"))
        try:
            events = self._connection.receive_data(data)
        except H2Error as error:
            return self.fail_all(protocol_failure(str(error) or type(error).__name__))
        touched: dict[int, H2Stream] = {}
        for event in events:
            self._apply(event, touched)
        return list(touched.values())

    def _greet(self, data: bytes) -> bool:
        """The first frame must be SETTINGS. The h2 library would wait for as many bytes as something else seems to announce."""
        self._greeting += data[: _FRAME_HEADER - len(self._greeting)]
        if len(self._greeting) < _FRAME_HEADER:
            return True
        self._greeted = True
        return self._greeting[3] == _SETTINGS

    def fail_all(self, failure: TransportFailure) -> list[H2Stream]:
        """The connection is gone, or of no more use."""
        self._terminated = True
        streams = list(self._streams.values())
        for stream in streams:
            self._fail(stream, failure)
        return streams

    def end(self) -> list[H2Stream]:
        """The peer closed."""
        return self.fail_all(terminated())

    def _apply(self, event: Any, touched: dict[int, H2Stream]) -> None:
        if isinstance(event, ConnectionTerminated):
            self._goaway(event, touched)
            return
        if isinstance(event, RemoteSettingsChanged) or (
            isinstance(event, WindowUpdated) and event.stream_id == 0
        ):
            for stream in list(self._streams.values()):
                if stream.blocked:
                    self.flush(stream)
                    touched[stream.identifier] = stream
            return
        target = self._streams.get(getattr(event, "stream_id", None) or 0)
        if target is None:
            if isinstance(event, DataReceived):
                self._connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            return
        touched[target.identifier] = target
        self._to_stream(event, target)

    def _to_stream(self, event: Any, stream: H2Stream) -> None:
        response = stream.response
        if isinstance(event, ResponseReceived):
            self._headers(stream, event.headers)
        elif isinstance(event, DataReceived):
            self._data(event, stream)
        elif isinstance(event, TrailersReceived):
            response.trailing = [bytes(part) for header in event.headers for part in header]
        elif isinstance(event, StreamEnded):
            response.complete = True
            self._retire(stream)
        elif isinstance(event, StreamReset):
            self._reset(event, stream)
        elif isinstance(event, WindowUpdated):
            self.flush(stream)

    def _data(self, event: Any, stream: H2Stream) -> None:
        data = bytes(event.data)
        if data:
            stream.response.chunks.append(data)
            stream.unread += len(data)
        padding = event.flow_controlled_length - len(data)
        if padding:
            self._connection.acknowledge_received_data(padding, stream.identifier)

    def _headers(self, stream: H2Stream, headers: RawHeaders) -> None:
        if len(headers) - 1 > MAX_HEADERS:
            self.cancel(stream)
            stream.response.failed = protocol_failure("more than 100 response headers")
            return
        response = stream.response
        for name, value in headers:
            if name == b":status":
                response.status = int(value)
            elif not name.startswith(b":"):
                response.fields += (bytes(name), bytes(value))

    def _reset(self, event: Any, stream: H2Stream) -> None:
        if event.error_code == ErrorCodes.NO_ERROR and stream.response.complete:
            stream.sent_all = True
            stream.drop_queue()
            self._streams.pop(stream.identifier, None)
            return
        refused = event.error_code == ErrorCodes.REFUSED_STREAM
        kind = FailureKind.REFUSED_STREAM if refused else FailureKind.REMOTE_RESET
        self._fail(stream, TransportFailure(kind))

    def _goaway(self, event: Any, touched: dict[int, H2Stream]) -> None:
        self._terminated = True
        for identifier, stream in list(self._streams.items()):
            if identifier > (event.last_stream_id or 0):
                touched[identifier] = stream
                self._fail(stream, TransportFailure(FailureKind.REFUSED_STREAM))

    def _fail(self, stream: H2Stream, failure: TransportFailure) -> None:
        self._streams.pop(stream.identifier, None)
        stream.drop_queue()
        if not stream.response.complete:
            stream.response.failed = failure

    def _retire(self, stream: H2Stream) -> None:
        if stream.response.complete and stream.sent_all:
            self._streams.pop(stream.identifier, None)


def _request_headers(request: OutgoingRequest) -> RawHeaders:
    dropped = set(_HOP_BY_HOP)
    lowered = [(name.lower(), value) for name, value in (*request.headers, *request.extra)]
    for name, value in lowered:
        if name == b"connection":
            dropped.update(option.strip() for option in value.lower().split(b","))
    headers = [
        (b":method", request.method),
        (b":scheme", b"http"),
        (b":authority", request.authority),
        (b":path", request.path),
    ]
    headers += [
        (name, value)
        for name, value in lowered
        if name not in dropped and (name != b"te" or value.lower() == b"trailers")
    ]
    for name, value in headers:
        if not name or any(byte in value or byte in name for byte in (b"\r", b"\n", b"\0")):
            raise InvalidRequest("a header contains a line break or a NUL")
    return headers
