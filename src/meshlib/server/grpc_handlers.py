"""Handlers of gRPC servers, each in a context (contextvars) of its own, and what became of each call.

A blocking handler runs in a copy of the context, each step of a streaming one in that same copy: its responses are taken outside
the interceptor, and on an asyncio server by a thread that serves other calls too. An asyncio handler has a task of its own, which
ends with the call.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import grpc

from meshlib.server.visit import Visit

if TYPE_CHECKING:
    from meshlib.engine.observer import InboundCall

__all__ = ["asynchronous", "blocking", "wrapped"]

Refusal = tuple[grpc.StatusCode, str]
_Behavior = Callable[..., Any]
_Enter = Callable[[Any], Visit]

_FACTORIES: dict[tuple[bool, bool], tuple[str, Callable[..., Any]]] = {
    (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
    (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
    (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
    (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
}
"""By (request_streaming, response_streaming): the attribute with the application's function, and what makes a handler of it."""

_CODES = {
    400: grpc.StatusCode.INTERNAL,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    503: grpc.StatusCode.UNAVAILABLE,
}
"""What an HTTP refusal is to a caller of gRPC; a redirect is followed by none of them."""

_CANCELLED, _UNKNOWN, _LATE = "1", "2", "4"
_END: Any = object()


def wrapped(handler: Any, wrap: Callable[[_Behavior, bool, bool], _Behavior]) -> Any:
    """The handler with its function wrapped; None, for a method that does not exist, stays None."""
    if handler is None:
        return None
    streams = bool(handler.request_streaming), bool(handler.response_streaming)
    name, factory = _FACTORIES[streams]
    behavior = wrap(getattr(handler, name), *streams)
    return factory(behavior, handler.request_deserializer, handler.response_serializer)


def blocking(enter: _Enter, behavior: _Behavior, asks: bool, streams: bool) -> _Behavior:
    """asks, streams: whether its requests, its responses, are a stream."""

    @functools.wraps(behavior)
    def answer(request: Any, context: Any, *more: Any) -> Any:
        own = copy_context()
        visit, refusal = own.run(_begin, enter, context)
        if refusal is not None:
            context.abort(*refusal)
        context = _told(visit, context)
        try:
            response = own.run(behavior, _counted(visit, request, asks), context, *more)
        except BaseException as error:
            own.run(_over, visit, context, error)
            raise
        _sent(visit)
        own.run(_over, visit, context)
        return response

    @functools.wraps(behavior)
    def answers(request: Any, context: Any, *more: Any) -> Iterator[Any]:
        own = copy_context()
        visit, refusal = own.run(_begin, enter, context)
        if refusal is not None:
            _end(context, refusal)
            return
        context = _told(visit, context)
        close: Callable[[], Any] | None = None
        try:
            responses = own.run(lambda: iter(behavior(_counted(visit, request, asks), context, *more)))
            close = getattr(responses, "close", None)
            while (response := own.run(next, responses, _END)) is not _END:
                _sent(visit)
                yield response
        except BaseException as error:
            own.run(_over, visit, context, error)
            raise
        else:
            own.run(_over, visit, context)
        finally:
            if close is not None:
                own.run(close)

    # A non-blocking handler (an experiment of grpcio) sends by a function that it is given, and returns nothing.
    return answers if streams and not getattr(behavior, "experimental_non_blocking", False) else answer


def asynchronous(enter: _Enter, behavior: _Behavior, asks: bool, streams: bool) -> _Behavior:
    """For `grpc.aio`: a coroutine, an asynchronous generator, or a blocking function."""
    if inspect.isasyncgenfunction(behavior):
        return _generating(enter, behavior, asks)
    if inspect.iscoroutinefunction(behavior):
        return _awaiting(enter, behavior, asks)
    return blocking(enter, behavior, asks, streams)


def _awaiting(enter: _Enter, behavior: _Behavior, asks: bool) -> _Behavior:
    @functools.wraps(behavior)
    async def answer(request: Any, context: Any) -> Any:
        visit, refusal = _begin(enter, context)
        if refusal is not None:
            await context.abort(*refusal)
        try:
            response = await behavior(_counted_later(visit, request, asks), context)
        except BaseException as error:
            _over(visit, context, error)
            raise
        if response is not None:
            _sent(visit)
        _over(visit, context)
        return response

    return answer


def _generating(enter: _Enter, behavior: _Behavior, asks: bool) -> _Behavior:
    @functools.wraps(behavior)
    async def answers(request: Any, context: Any) -> Any:
        visit, refusal = _begin(enter, context)
        if refusal is not None:
            await context.abort(*refusal)
        try:
            async for response in behavior(_counted_later(visit, request, asks), context):
                _sent(visit)
                yield response
        except BaseException as error:
            _over(visit, context, error)
            raise
        _over(visit, context)

    return answers


# --- the beginning and the end -------------------------------------------------------------------------------------------


def _begin(enter: _Enter, context: Any) -> tuple[Visit, Refusal | None]:
    visit = enter(context)
    visit.enter()
    reply = visit.admission.refusal
    if reply is None:
        return visit, None
    code = _CODES.get(reply.status, grpc.StatusCode.INTERNAL)
    record = visit.record
    if record is not None:
        record.status, record.grpc_status = 200, str(code.value[0])
    visit.refused()
    return visit, (code, reply.body.decode())


def _end(context: Any, refusal: Refusal) -> None:
    """`abort` for a blocking generator: raised inside of one, an asyncio server's thread waits for its loop for ever (1.85)."""
    code, details = refusal
    context.set_code(code)
    context.set_details(details)


def _over(visit: Visit, context: Any, error: BaseException | None = None) -> None:
    record = visit.record
    if record is None:
        visit.over(answered=error is None)
        return
    record.status = 200
    code = _code(context)
    if isinstance(error, (asyncio.CancelledError, GeneratorExit)) or _has_gone(context):
        remaining = context.time_remaining()
        record.grpc_status = _LATE if remaining is not None and remaining <= 0 else _CANCELLED
        visit.lost()
    elif error is None:
        record.grpc_status = code
        visit.over()
    else:
        record.grpc_status = _UNKNOWN if code == "0" else code
        if not _is_abort(error, code):
            record.error = error
        visit.over(answered=False)


def _told(visit: Visit, context: Any) -> Any:
    """A context that tells the status at the end."""
    return context if visit.record is None or hasattr(context, "code") else _Noting(context)


class _Noting:
    """The context of a blocking handler on an asyncio server, which does not tell the status that was set, and who asks."""

    def __init__(self, context: Any) -> None:
        self._context = context
        self._set: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def set_code(self, code: Any) -> None:
        self._set = code
        self._context.set_code(code)

    def abort(self, code: Any, *more: Any) -> None:
        self._set = code
        self._context.abort(code, *more)

    def code(self) -> Any:
        return self._set


def _code(context: Any) -> str:
    """The status that the handler has set; OK when it has set none. grpc.StatusCode, or, on asyncio servers, its number."""
    code = context.code()
    if code is None:
        return "0"
    return str(code.value[0] if isinstance(code, grpc.StatusCode) else code)


def _has_gone(context: Any) -> bool:
    """Whether the caller has cancelled, or its deadline is over. The two kinds of servers say it differently."""
    is_active = getattr(context, "is_active", None)
    if is_active is not None:
        return not is_active()
    cancelled = getattr(context, "cancelled", None)
    return cancelled is not None and bool(cancelled())


def _is_abort(error: BaseException, code: str) -> bool:
    """Whether this is what `context.abort` raises; the blocking server has no class for it."""
    return isinstance(error, grpc.aio.AbortError) or (
        type(error) is Exception and not error.args and code != "0"
    )


# --- messages --------------------------------------------------------------------------------------------------------


def _sent(visit: Visit) -> None:
    if visit.record is not None:
        visit.record.messages_sent += 1


def _counted(visit: Visit, request: Any, asks: bool) -> Any:
    """The request, or the stream of requests, as the handler gets it."""
    record = visit.record
    if record is None:
        return request
    if asks:
        return _each(record, request)
    record.messages_received = 1
    return request


def _each(record: InboundCall, requests: Iterator[Any]) -> Iterator[Any]:
    for request in requests:
        record.messages_received += 1
        yield request


def _counted_later(visit: Visit, request: Any, asks: bool) -> Any:
    record = visit.record
    if asks and record is not None:
        return _each_later(record, request)
    return _counted(visit, request, asks)


async def _each_later(record: InboundCall, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        record.messages_received += 1
        yield request
