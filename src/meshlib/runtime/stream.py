"""Streams to servers of gRPC that tell news, and the life of one: opened again and again, closed for good at the end, and
stopped around each fork.

grpc is loaded when the first stream is opened, not before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from meshlib.runtime.grpc_core import FORK_WAIT

__all__ = ["JOIN", "ChannelCredentials", "Connection", "OpenStream", "Stream", "StreamTarget", "over_grpc"]

JOIN = 2.0
"""Seconds to wait for the thread of a closed stream."""

OnMessage = Callable[[Any, bytes], None]
OnClosed = Callable[[Any, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelCredentials:
    """How a server is connected to. kind: `insecure` or `tls`.

    The rest is for `tls`: without a CA the system's are used, without a certificate none is shown. Each is a file, or PEM.
    """

    kind: str
    ca_certificate_file: str | None = None
    certificate_file: str | None = None
    private_key_file: str | None = None
    ca_certificate: bytes | None = None
    certificate: bytes | None = None
    private_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamTarget:
    """target: of gRPC. credentials None: an insecure channel. metadata: sent when a stream begins."""

    target: str
    method: str
    credentials: ChannelCredentials | None = None
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)


class Stream(Protocol):
    """See `meshlib.runtime.grpc_stream.GrpcStream`."""

    def send(self, data: bytes) -> None: ...

    def done_sending(self) -> None: ...

    def processed(self) -> None: ...

    def close(self) -> None: ...

    def join(self, timeout: float) -> None: ...

    def quiesce(self, timeout: float) -> None: ...


OpenStream = Callable[[StreamTarget, OnMessage, OnClosed], Stream]
"""Begin to connect. `on_message` and `on_closed` get the stream first, on any thread. Raises ConfigError."""


def over_grpc(target: StreamTarget, on_message: OnMessage, on_closed: OnClosed) -> Stream:
    """An OpenStream over grpc."""
    from meshlib.runtime.grpc_stream import GrpcStream

    return GrpcStream(target, on_message, on_closed)


class Connection:
    """The stream of this moment, or none. Thread-safe.

    From before a fork until after it, the lock is held, so that no other thread can open a stream meanwhile.
    """

    def __init__(self, open_stream: Callable[[], Stream]) -> None:
        self._open_stream = open_stream
        self._lock = threading.Lock()
        self._interrupted: Stream | None = None
        self._closed = False
        self.stream: Stream | None = None

    def open(self) -> bool:
        """Open a stream; False when there is one, or the connection is closed. Raises what opening raises."""
        with self._lock:
            if self.stream is not None or self._closed:
                return False
            self.stream = self._open_stream()
            return True

    def ended(self, stream: Stream) -> bool:
        """The stream has ended by itself; False when it is an earlier one."""
        with self._lock:
            if stream is not self.stream:
                return False
            self.stream = None
        stream.close()
        return True

    def close(self) -> Stream | None:
        """Close the stream, which is returned, and open no other."""
        with self._lock:
            self._closed = True
            stream, self.stream = self.stream, None
        if stream is not None:
            stream.close()
        return stream

    def before_fork(self) -> None:
        self._lock.acquire()
        self._interrupted, self.stream = self.stream, None
        if self._interrupted is not None:
            self._interrupted.close()
            self._interrupted.quiesce(FORK_WAIT)

    def after_fork_in_parent(self) -> bool:
        """Whether a stream was closed for the fork."""
        interrupted, self._interrupted = self._interrupted, None
        self._lock.release()
        return interrupted is not None

    def after_fork_in_child(self) -> None:
        """Keep the parent's stream, so that no finalizer of grpc's objects runs here. A new Connection takes over."""
        _graveyard.append(self._interrupted)


_graveyard: list[Stream | None] = []
