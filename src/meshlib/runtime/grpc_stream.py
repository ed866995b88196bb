"""One stream over grpc's synchronous stack. The only module here that loads grpc.

Each stream has a channel of its own, with its own subchannels, so that our back-off is the only one. Each response is handed
on as bytes by the thread of grpc that received it. A reader thread asks for the next one when it has been dealt with; that is
all the flow control that is needed, and it does not compete for the interpreter while a push takes effect.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from meshlib.errors import ConfigError
from meshlib.runtime.grpc_core import await_shutdown, let_fork_guard_come_first
from meshlib.runtime.stream import ChannelCredentials, StreamTarget

__all__ = ["GrpcStream"]

OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
    # As grpc's own xDS client: servers refuse more frequent pings without data.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class GrpcStream:
    """An open stream. `on_message` and `on_closed` are called on threads of its own; `on_closed` once, at its end.

    Whoever opened it closes it, also after `on_closed`.
    """

    def __init__(
        self,
        target: StreamTarget,
        on_message: Callable[[GrpcStream, bytes], None],
        on_closed: Callable[[GrpcStream, str], None],
    ) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._dealt_with = threading.Semaphore(0)
        self._closed = False
        self._channel: Any = _channel(target)
        let_fork_guard_come_first()
        method = self._channel.stream_stream(
            target.method, request_serializer=None, response_deserializer=self._arrived
        )
        self._call: Any = method(self._outgoing(), metadata=target.metadata or None)
        self._reader = threading.Thread(
            target=self._read, args=(self._call,), name="meshlib-reader", daemon=True
        )
        self._reader.start()

    def send(self, data: bytes) -> None:
        """Queue a message. Nothing happens on a closed stream."""
        self._requests.put(data)

    def done_sending(self) -> None:
        """Nothing more will be sent: what a method needs that takes one message."""
        self._requests.put(None)

    def processed(self) -> None:
        """One message has been dealt with."""
        self._dealt_with.release()

    def close(self) -> None:
        """End the call and close the channel, without waiting. Idempotent.

        grpc's objects are let go of: when they were the last ones of the process, its core shuts down, which is what a fork
        needs most.
        """
        self._closed = True
        self._requests.put(None)
        self._dealt_with.release()
        call, channel = self._call, self._channel
        self._call = self._channel = None
        if channel is not None:
            call.cancel()
            channel.close()

    def join(self, timeout: float) -> None:
        """Wait for the reader thread after `close`."""
        if self._reader is not threading.current_thread():
            self._reader.join(timeout)

    def quiesce(self, timeout: float) -> None:
        """After `close`, before a fork: wait until grpc's core has shut down."""
        self.join(timeout)
        await_shutdown(timeout)

    def _outgoing(self) -> Iterator[bytes]:
        while (data := self._requests.get()) is not None:
            yield data

    def _arrived(self, data: bytes) -> bytes:
        """Called by grpc for each message, on the thread that received it: one change of threads less than the reader's."""
        if not self._closed:
            self._on_message(self, data)
        return data

    def _read(self, call: Any) -> None:
        """Ask for one message after the other."""
        reason = "the server closed the stream"
        try:
            for _ in call:
                self._dealt_with.acquire()
                if self._closed:
                    break
        except grpc.RpcError:
            reason = f"{call.code().name}: {call.details()}"
        self._on_closed(self, reason)


def _channel(target: StreamTarget) -> Any:
    if target.credentials is None:
        return grpc.insecure_channel(target.target, options=OPTIONS)
    return grpc.secure_channel(target.target, _tls(target.credentials), options=OPTIONS)


def _tls(credentials: ChannelCredentials) -> Any:
    return grpc.ssl_channel_credentials(
        root_certificates=credentials.ca_certificate or _file(credentials.ca_certificate_file),
        private_key=credentials.private_key or _file(credentials.private_key_file),
        certificate_chain=credentials.certificate or _file(credentials.certificate_file),
    )


def _file(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}, named by the bootstrap's channel_creds, can't be read: {error.strerror}"
        ) from error
