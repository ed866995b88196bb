"""What the client needs of a stream, and how it gets one. Loads grpc when the first one is opened, not before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from meshlib.xds.bootstrap import XdsServer

__all__ = ["OpenStream", "Stream", "open_grpc"]

OnMessage = Callable[[Any, bytes], None]
OnClosed = Callable[[Any, str], None]


class Stream(Protocol):
    """See `meshlib.xds.stream.GrpcStream`."""

    def send(self, data: bytes) -> None: ...

    def processed(self) -> None: ...

    def close(self) -> None: ...

    def join(self, timeout: float) -> None: ...

    def quiesce(self, timeout: float) -> None: ...


OpenStream = Callable[[XdsServer, OnMessage, OnClosed], Stream]
"""Begin to connect. `on_message` and `on_closed` get the stream first, on any thread. Raises ConfigError."""


def open_grpc(server: XdsServer, on_message: OnMessage, on_closed: OnClosed) -> Stream:
    """An OpenStream over grpc."""
    from meshlib.xds.stream import GrpcStream

    return GrpcStream(server, on_message, on_closed)
