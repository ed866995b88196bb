"""One ADS stream over grpc's synchronous stack. The only module here that loads grpc.

Each stream has a channel of its own, with its own subchannels, so that our back-off is the only one. A reader thread hands
each response on as bytes and waits when two of them have not been dealt with yet; that is all the flow control that is needed,
since a control plane waits for the ACK.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc

from meshlib.errors import ConfigError
from meshlib.xds.bootstrap import ChannelCredentials, XdsServer

__all__ = ["GrpcStream", "open_stream"]

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
UNREAD = 2

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
    """An open stream. `on_message` and `on_closed` are called on its reader thread; `on_closed` once, at its end."""

    def __init__(
        self,
        server: XdsServer,
        on_message: Callable[[GrpcStream, bytes], None],
        on_closed: Callable[[GrpcStream, str], None],
    ) -> None:
        self._on_message = on_message
        self._on_closed = on_closed
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(UNREAD)
        self._closed = False
        self._channel = _channel(server)
        method = self._channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
        self._call: Any = method(self._outgoing())
        self._reader = threading.Thread(target=self._read, name="meshlib-xds-reader", daemon=True)
        self._reader.start()

    def send(self, data: bytes) -> None:
        """Queue a message. Nothing happens on a closed stream."""
        self._requests.put(data)

    def processed(self) -> None:
        """One message has been dealt with."""
        self._room.release()

    def close(self) -> None:
        """End the call and close the channel, without waiting. Idempotent."""
        self._closed = True
        self._requests.put(None)
        self._room.release()
        self._call.cancel()
        self._channel.close()

    def join(self, timeout: float) -> None:
        """Wait for the reader thread after `close`."""
        if self._reader is not threading.current_thread():
            self._reader.join(timeout)

    def _outgoing(self) -> Iterator[bytes]:
        while (data := self._requests.get()) is not None:
            yield data

    def _read(self) -> None:
        reason = "the control plane closed the stream"
        try:
            for data in self._call:
                self._room.acquire()
                if self._closed:
                    break
                self._on_message(self, data)
        except grpc.RpcError as error:
            # What a channel raises is the call itself.
            call: Any = error
            reason = f"{call.code().name}: {call.details()}"
        finally:
            self._requests.put(None)
            if not self._closed:
                self._channel.close()
            self._on_closed(self, reason)


def open_stream(
    server: XdsServer,
    on_message: Callable[[GrpcStream, bytes], None],
    on_closed: Callable[[GrpcStream, str], None],
) -> GrpcStream:
    """Begin to connect. Raises ConfigError when a file of the TLS credentials can't be read."""
    return GrpcStream(server, on_message, on_closed)


def _channel(server: XdsServer) -> Any:
    if server.credentials.kind == "insecure":
        return grpc.insecure_channel(server.server_uri, options=OPTIONS)
    return grpc.secure_channel(server.server_uri, _tls(server.credentials), options=OPTIONS)


def _tls(credentials: ChannelCredentials) -> Any:
    return grpc.ssl_channel_credentials(
        root_certificates=_file(credentials.ca_certificate_file),
        private_key=_file(credentials.private_key_file),
        certificate_chain=_file(credentials.certificate_file),
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
