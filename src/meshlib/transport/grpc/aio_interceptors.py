"""The application's interceptors over calls of the mesh.

grpc.aio has no `intercept_channel`: interceptors are given to the channel, and its call objects run them. Those classes do the
same here; only the innermost step, which would make a call on a channel of C-core, makes a call of the mesh instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
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
    """Mixed into grpc.aio's intercepted calls, which run `_invoke` in a task."""

    _method: Method
    _compression: grpc.Compression | None
    _last_returned_call_from_interceptors: Any = None

    async def _invoke(
        self,
        interceptors: Sequence[Any],
        method: bytes,
        limit: float | None,
        metadata: Any,
        credentials: grpc.CallCredentials | None,
        wait_for_ready: bool | None,
        request: Any,
        *_serializers: Any,
    ) -> Any:
        details = grpc.aio.ClientCallDetails(method, limit, metadata, credentials, wait_for_ready)
        return await self._run(list(interceptors), details, request)

    async def _run(self, interceptors: list[Any], details: Any, request: Any) -> Any:
        """What the interceptors that are left make of the call."""
        arity = self._method.arity
        if interceptors:
            intercept = getattr(interceptors[0], f"intercept_{arity}")
            answer = await intercept(partial(self._run, interceptors[1:]), details, request)
            call = self._as_call(answer)
        else:
            call = self._method.called(details.method).call(
                request,
                details.timeout,
                details.metadata,
                details.credentials,
                details.wait_for_ready,
                self._compression,
            )
        if arity.endswith("stream"):
            self._last_returned_call_from_interceptors = call  # grpc.aio's responses come from it
        return call

    def _as_call(self, answer: Any) -> Any:
        """An interceptor may give the response, or an iterator over its messages, instead of a call."""
        arity = self._method.arity
        if arity == "stream_unary" or isinstance(answer, _BASES[arity]):
            return answer
        if arity == "unary_unary":
            return machinery.UnaryUnaryCallResponse(answer)
        return _ITERATORS[arity](self._last_returned_call_from_interceptors, answer)


_BASES: dict[str, type[Any]] = {
    "unary_unary": grpc.aio.UnaryUnaryCall,
    "unary_stream": grpc.aio.UnaryStreamCall,
    "stream_stream": grpc.aio.StreamStreamCall,
}
_ITERATORS: dict[str, type[Any]] = {
    "unary_stream": machinery.UnaryStreamCallResponseIterator,
    "stream_stream": machinery.StreamStreamCallResponseIterator,
}


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
