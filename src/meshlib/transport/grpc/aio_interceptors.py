"""The application's interceptors over calls of the mesh.

grpc.aio has no `intercept_channel`: interceptors are given to the channel, and its call objects run them. Those classes do the
same here; only the innermost step, which would make a call on a channel of C-core, makes a call of the mesh instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
from grpc.aio import _interceptor as machinery

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_channel import Method

__all__ = ["Interceptors"]

KINDS: dict[str, type[Any]] = {
    "unary_unary": grpc.aio.UnaryUnaryClientInterceptor,
    "unary_stream": grpc.aio.UnaryStreamClientInterceptor,
    "stream_unary": grpc.aio.StreamUnaryClientInterceptor,
    "stream_stream": grpc.aio.StreamStreamClientInterceptor,
}


class _OverMesh:
    """Mixed into grpc.aio's intercepted calls."""

    _method: Method
    _compression: grpc.Compression | None

    async def _run_interceptor(self, interceptors: Sequence[Any], *rest: Any) -> Any:
        if interceptors:
            return await super()._run_interceptor(interceptors, *rest)  # type: ignore[misc]
        *_, details, request = rest
        call = self._method.called(details.method).call(
            request,
            details.timeout,
            details.metadata,
            details.credentials,
            details.wait_for_ready,
            self._compression,
        )
        if hasattr(self, "_last_returned_call_from_interceptors"):
            self._last_returned_call_from_interceptors = call
        return call


class _UnaryUnary(_OverMesh, machinery.InterceptedUnaryUnaryCall):  # type: ignore[misc]
    pass


class _UnaryStream(_OverMesh, machinery.InterceptedUnaryStreamCall):  # type: ignore[misc]
    pass


class _StreamUnary(_OverMesh, machinery.InterceptedStreamUnaryCall):  # type: ignore[misc]
    pass


class _StreamStream(_OverMesh, machinery.InterceptedStreamStreamCall):  # type: ignore[misc]
    pass


_CALLS: dict[str, type[Any]] = {
    "unary_unary": _UnaryUnary,
    "unary_stream": _UnaryStream,
    "stream_unary": _StreamUnary,
    "stream_stream": _StreamStream,
}


class Interceptors:
    """Those of one channel, by arity. One that is of several kinds counts as the first of them, as in grpc.aio.

    Raises ValueError for what is no interceptor.
    """

    def __init__(self, interceptors: Sequence[Any]) -> None:
        self._by_arity: dict[str, list[Any]] = {arity: [] for arity in KINDS}
        for interceptor in interceptors:
            arity = next((arity for arity, kind in KINDS.items() if isinstance(interceptor, kind)), None)
            if arity is None:
                names = " or ".join(kind.__name__ for kind in KINDS.values())
                raise ValueError(f"Interceptor {interceptor} must be {names}.")
            self._by_arity[arity].append(interceptor)

    def of(self, arity: str) -> list[Any]:
        return self._by_arity[arity]

    def start(
        self,
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        compression: grpc.Compression | None,
    ) -> Any:
        """A call that runs the interceptors first."""
        cls: Any = _CALLS[method.arity]
        call = cls.__new__(cls)
        call._method = method
        call._compression = compression
        call.__init__(
            self._by_arity[method.arity],
            request,
            timeout,
            metadata if isinstance(metadata, grpc.aio.Metadata) else grpc.aio.Metadata(*(metadata or ())),
            credentials,
            wait_for_ready,
            None,
            method.path.encode(),
            None,
            None,
            asyncio.get_running_loop(),
        )
        return call
