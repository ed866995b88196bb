"""The multicallables of a channel, one class for each arity, with the signatures of grpcio's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.transport.grpc.metadata import Metadata
from meshlib.transport.grpc.sync_flight import Flight
from meshlib.transport.grpc.sync_lane import call_blocking
from meshlib.transport.grpc.sync_rpc import MeshRpc, MeshStream

if TYPE_CHECKING:
    from meshlib.transport.grpc.sync_channel import Method

__all__ = ["StreamStream", "StreamUnary", "UnaryStream", "UnaryUnary"]


def _flight(
    method: Method,
    request: Any,
    requests: Iterable[Any] | None,
    streamed: bool,
    timeout: float | None,
    metadata: Metadata | None,
    credentials: grpc.CallCredentials | None,
    wait_for_ready: bool | None,
    compression: grpc.Compression | None,
) -> Flight:
    flight = Flight(
        method,
        request,
        requests,
        streamed=streamed,
        timeout=timeout,
        metadata=metadata,
        credentials=credentials,
        wait_for_ready=wait_for_ready,
        compression=compression,
    )
    flight.begin()
    return flight


class UnaryUnary(grpc.UnaryUnaryMultiCallable):  # type: ignore[misc]
    """`channel.unary_unary(...)`."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return call_blocking(
            self._method, request, timeout, metadata, credentials, wait_for_ready, compression, False
        )

    def with_call(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> tuple[Any, grpc.Call]:
        answer: tuple[Any, grpc.Call] = call_blocking(
            self._method, request, timeout, metadata, credentials, wait_for_ready, compression, True
        )
        return answer

    def future(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> MeshRpc:
        flight = _flight(
            self._method, request, None, False, timeout, metadata, credentials, wait_for_ready, compression
        )
        return MeshRpc(flight)


class StreamUnary(grpc.StreamUnaryMultiCallable):  # type: ignore[misc]
    """`channel.stream_unary(...)`."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def __call__(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        return self.future(
            request_iterator, timeout, metadata, credentials, wait_for_ready, compression
        ).outcome()

    def with_call(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> tuple[Any, grpc.Call]:
        rpc = self.future(request_iterator, timeout, metadata, credentials, wait_for_ready, compression)
        return rpc.outcome(), rpc

    def future(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> MeshRpc:
        flight = _flight(
            self._method,
            None,
            request_iterator,
            False,
            timeout,
            metadata,
            credentials,
            wait_for_ready,
            compression,
        )
        return MeshRpc(flight)


class UnaryStream(grpc.UnaryStreamMultiCallable):  # type: ignore[misc]
    """`channel.unary_stream(...)`."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def __call__(
        self,
        request: Any,
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> MeshStream:
        flight = _flight(
            self._method, request, None, True, timeout, metadata, credentials, wait_for_ready, compression
        )
        return MeshStream(flight)


class StreamStream(grpc.StreamStreamMultiCallable):  # type: ignore[misc]
    """`channel.stream_stream(...)`."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def __call__(
        self,
        request_iterator: Iterable[Any],
        timeout: float | None = None,
        metadata: Metadata | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> MeshStream:
        flight = _flight(
            self._method,
            None,
            request_iterator,
            True,
            timeout,
            metadata,
            credentials,
            wait_for_ready,
            compression,
        )
        return MeshStream(flight)
