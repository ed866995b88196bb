"""Between a channel and a server: passes bytes on, and notes for each gRPC message whether it was sent compressed.

grpcio shows neither client nor server the flag in front of a message, and the cases about compression are about it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections import defaultdict
from collections.abc import Iterator

from hyperframe.frame import DataFrame, Frame

__all__ = ["Tap"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_HEAD = 9
MESSAGE_HEAD = 5


class Messages:
    """The flags of the messages of one direction, in the order in which they began, from the bytes of HTTP/2."""

    def __init__(self, skip: int = 0) -> None:
        self.compressed: list[bool] = []
        self._skip = skip
        self._bytes = bytearray()
        self._streams: defaultdict[int, bytearray] = defaultdict(bytearray)

    def feed(self, data: bytes) -> None:
        self._bytes += data
        if self._skip:
            if len(self._bytes) < self._skip:
                return
            del self._bytes[: self._skip]
            self._skip = 0
        while len(self._bytes) >= FRAME_HEAD:
            frame, length = Frame.parse_frame_header(memoryview(bytes(self._bytes[:FRAME_HEAD])))
            if len(self._bytes) < FRAME_HEAD + length:
                return
            if isinstance(frame, DataFrame):
                frame.parse_body(memoryview(bytes(self._bytes[FRAME_HEAD : FRAME_HEAD + length])))
                self._message_bytes(self._streams[frame.stream_id], bytes(frame.data))
            del self._bytes[: FRAME_HEAD + length]

    def _message_bytes(self, waiting: bytearray, data: bytes) -> None:
        waiting += data
        while len(waiting) >= MESSAGE_HEAD:
            length = MESSAGE_HEAD + int.from_bytes(waiting[1:MESSAGE_HEAD], "big")
            if len(waiting) < length:
                return
            self.compressed.append(bool(waiting[0]))
            del waiting[:length]


class Tap:
    """`with Tap(port) as tap:` listens on `tap.address`; requests and responses: flags of the messages, of all calls."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        self.requests: list[bool] = []
        self.responses: list[bool] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Tap:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self._listener, *self._sockets):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in (self._listener, *self._sockets):
            each.close()

    def _start(self, target: object, *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, name="tap")  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        for near in self._connections():
            far = socket.create_connection(("127.0.0.1", self._target))
            self._sockets += near, far
            requests, responses = Messages(skip=len(PREFACE)), Messages()
            requests.compressed, responses.compressed = self.requests, self.responses
            self._start(_pump, near, far, requests)
            self._start(_pump, far, near, responses)

    def _connections(self) -> Iterator[socket.socket]:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                yield self._listener.accept()[0]


def _pump(source: socket.socket, sink: socket.socket, messages: Messages) -> None:
    with contextlib.suppress(OSError):  # either side went away
        while data := source.recv(65536):
            messages.feed(data)
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
