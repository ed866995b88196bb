"""An HTTP/2 server with prior knowledge, one thread a connection; what it does with a stream is scripted by path."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded
from h2.settings import SettingCodes, Settings

__all__ = ["H2Server"]


class H2Server:
    """A `Script` for `serve`.

    Paths: /echo answers with the body, /refuse is refused, /reset is reset, /goaway answers and says goodbye, /cut ends the
    connection, /silent gets no answer, /early answers before the body is read, anything else gets `hello`. max_streams is
    the limit that it announces.
    """

    def __init__(self, max_streams: int = 100) -> None:
        self.max_streams = max_streams
        self.most_at_once = 0
        self.requests: list[dict[str, str]] = []
        self.resets = 0

    def __call__(self, sock: socket.socket, _number: int) -> None:
        connection: Any = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        limit = {SettingCodes.MAX_CONCURRENT_STREAMS: self.max_streams}
        connection.local_settings = Settings(client=False, initial_values=limit)
        connection.initiate_connection()
        sock.sendall(connection.data_to_send())
        bodies: dict[int, bytes] = {}
        paths: dict[int, str] = {}
        out: dict[int, bytes] = {}
        with contextlib.suppress(OSError):
            while data := sock.recv(65536):
                ended = []
                for event in connection.receive_data(data):
                    if isinstance(event, RequestReceived):
                        headers = {str(name): str(value) for name, value in event.headers}
                        self.requests.append(headers)
                        bodies[event.stream_id] = b""
                        paths[event.stream_id] = headers[":path"]
                        self.most_at_once = max(self.most_at_once, connection.open_inbound_streams)
                        if headers[":path"] == "/early":
                            connection.send_headers(event.stream_id, [(":status", "413")], end_stream=True)
                    elif isinstance(event, DataReceived):
                        bodies[event.stream_id] += event.data
                        if paths[event.stream_id] != "/early":
                            connection.acknowledge_received_data(
                                event.flow_controlled_length, event.stream_id
                            )
                    elif isinstance(event, StreamEnded):
                        ended.append(event.stream_id)
                    elif type(event).__name__ == "StreamReset":
                        self.resets += 1
                        out.pop(event.stream_id, None)
                for stream in ended:
                    if self._answer(connection, stream, paths[stream], bodies[stream], out):
                        sock.sendall(connection.data_to_send())
                        return
                self._flush(connection, out)
                sock.sendall(connection.data_to_send())

    def _answer(self, connection: Any, stream: int, path: str, body: bytes, out: dict[int, bytes]) -> bool:
        if path == "/refuse":
            connection.reset_stream(stream, 7)
        elif path == "/reset":
            connection.reset_stream(stream, 2)
        elif path == "/cut":
            return True
        elif path == "/silent" or path == "/early":
            return False
        else:
            content = body if path == "/echo" else b"hello"
            headers = [(":status", "200"), ("content-length", str(len(content))), ("x-path", path)]
            connection.send_headers(stream, headers)
            out[stream] = content
            if path == "/goaway":
                self._flush(connection, out)
                connection.close_connection()
                return True
        return False

    def _flush(self, connection: Any, out: dict[int, bytes]) -> None:
        for stream, rest in list(out.items()):
            while rest:
                room = min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size)
                if room <= 0:
                    break
                connection.send_data(stream, rest[:room])
                rest = rest[room:]
            out[stream] = rest
            if not rest:
                connection.end_stream(stream)
                del out[stream]
