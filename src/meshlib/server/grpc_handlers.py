"""Handlers of gRPC servers, each in a context (contextvars) of its own, and what became of each call.

A blocking handler runs in a copy of the context, each step of a streaming one in that same copy: its responses are taken outside
the interceptor, and on an asyncio server by a thread that serves other calls too. An asyncio handler has a task of its own, which
ends with the call. `grpc_messages` counts what handlers take and give.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import grpc

from meshlib.server.grpc_messages import Messages
from meshlib.server.visit import Visit

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


def wrapped(
    handler: Any,
    wrap: Callable[[_Behavior, bool, Messages | None], _Behavior],
    count: Callable[..., Messages] | None,
) -> Any:
    """The handler for one call, with its function wrapped; None, for a method that does not exist, stays None.

    count: makes what counts messages, of the deserializer and the serializer; None where nobody wants to know.
    """
    if handler is None:
        return None
    streams = bool(handler.response_streaming)
    name, factory = _FACTORIES[bool(handler.request_streaming), streams]
    coders = handler.request_deserializer, handler.response_serializer
    messages = None
    if count is not None:
        messages = count(*coders)
        coders = messages.read, messages.write
    return factory(wrap(getattr(handler, name), streams, messages), *coders)


def blocking(enter: _Enter, behavior: _Behavior, streams: bool, messages: Messages | None) -> _Behavior:
    """streams: whether its responses are a stream."""

    @functools.wraps(behavior)
    def answer(request: Any, context: Any, *more: Any) -> Any:
        own = copy_context()
        visit, refusal = own.run(_begin, enter, context, messages)
        if refusal is not None:
            context.abort(*refusal)
        context = _told(visit, context)
        try:
            response = own.run(behavior, request, context, *more)
            if messages is not None and visit.record is not None and not streams:
                response = own.run(messages.last, response, _code(context))
        except BaseException as error:
            own.run(_over, visit, context, messages, error)
            raise
        own.run(_over, visit, context, messages)
        return response

    @functools.wraps(behavior)
    def answers(request: Any, context: Any, *more: Any) -> Iterator[Any]:
        own = copy_context()
        visit, refusal = own.run(_begin, enter, context, messages)
        if refusal is not None:
            _end(context, refusal)
            return
        context = _told(visit, context)
        close: Callable[[], Any] | None = None
        try:
            responses = own.run(lambda: iter(behavior(request, context, *more)))
            close = getattr(responses, "close", None)
            while (response := own.run(next, responses, _END)) is not _END:
                if messages is not None and visit.record is not None:
                    response = own.run(messages.next, response)
                    if messages.broken:  # grpcio ends the call, and lets go of this generator at some time
                        own.run(_over, visit, context, messages)
                yield response
        except BaseException as error:
            own.run(_over, visit, context, messages, error)
            raise
        else:
            own.run(_over, visit, context, messages)
        finally:
            if close is not None:
                own.run(close)

    # A non-blocking handler (an experiment of grpcio) sends by a function that it is given, and returns nothing.
    return answers if streams and not getattr(behavior, "experimental_non_blocking", False) else answer


def asynchronous(enter: _Enter, behavior: _Behavior, streams: bool, messages: Messages | None) -> _Behavior:
    """For `grpc.aio`: a coroutine, an asynchronous generator, or a blocking function."""
    if inspect.isasyncgenfunction(behavior):
        return _generating(enter, behavior, messages)
    if inspect.iscoroutinefunction(behavior):
        return _awaiting(enter, behavior, streams, messages)
    return blocking(enter, behavior, streams, messages)


def _awaiting(enter: _Enter, behavior: _Behavior, streams: bool, messages: Messages | None) -> _Behavior:
    @functools.wraps(behavior)
    async def answer(request: Any, context: Any) -> Any:
        visit, refusal = _begin(enter, context, messages)
        if refusal is not None:
            await context.abort(*refusal)
        try:
            response = await behavior(request, context)
        except BaseException as error:
            _over(visit, context, messages, error)
            raise
        if messages is not None and streams:
            messages.broken = False  # it has caught what `context.write` raised
        elif messages is not None and visit.record is not None:
            response = messages.last(response, _code(context))
        _over(visit, context, messages)
        return response

    return answer


def _generating(enter: _Enter, behavior: _Behavior, messages: Messages | None) -> _Behavior:
    @functools.wraps(behavior)
    async def answers(request: Any, context: Any) -> Any:
        visit, refusal = _begin(enter, context, messages)
        if refusal is not None:
            await context.abort(*refusal)
        try:
            async for response in behavior(request, context):
                yield response
        except BaseException as error:
            _over(visit, context, messages, error)
            raise
        _over(visit, context, messages)

    return answers


# --- the beginning and the end -------------------------------------------------------------------------------------------


def _begin(enter: _Enter, context: Any, messages: Messages | None) -> tuple[Visit, Refusal | None]:
    visit = enter(context)
    visit.enter()
    reply = visit.admission.refusal
    if reply is None:
        return visit, None
    code = _CODES.get(reply.status, grpc.StatusCode.INTERNAL)
    record = visit.record
    if record is not None:
        record.status, record.grpc_status = 200, str(code.value[0])
        if messages is not None:
            messages.tell(record)
    visit.refused()
    return visit, (code, reply.body.decode())


def _end(context: Any, refusal: Refusal) -> None:
    """`abort` for a blocking generator: raised inside of one, an asyncio server's thread waits for its loop for ever (1.85)."""
    code, details = refusal
    context.set_code(code)
    context.set_details(details)


def _over(visit: Visit, context: Any, messages: Messages | None, error: BaseException | None = None) -> None:
    record = visit.record
    if record is None:
        visit.over(answered=error is None)
        return
    record.status = 200
    code = _code(context)
    given_up = isinstance(error, (asyncio.CancelledError, GeneratorExit))
    if messages is not None:
        messages.tell(record)
    if messages is not None and messages.broken and (error is None or given_up):
        record.grpc_status = messages.failure if code == "0" else code
        visit.over(answered=False)
    elif given_up or _has_gone(context):
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
