"""What an inner call of grpc.aio has to say once it has ended, read without waiting and through its public methods."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from meshlib.transport.grpc.judge import Ended

__all__ = ["ending", "is_ok", "message_of", "receiver", "result_of", "sender"]


CORE = "_cython_call"
"""Where a call of grpc.aio has C-core's own, in grpcio 1.75 to 1.85. Elsewhere its public methods do, a little slower."""


def result_of(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine gives that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} has to wait")


def is_ok(inner: Any) -> bool:
    """Whether the inner call, which is over, ended with OK."""
    return result_of(inner.code()) is grpc.StatusCode.OK


def ending(inner: Any) -> Ended:
    """The ending of an inner call that is over."""
    return Ended(
        result_of(inner.code()).value[0],
        result_of(inner.details()) or "",
        result_of(inner.debug_error_string()),
        tuple(result_of(inner.initial_metadata())),
        tuple(result_of(inner.trailing_metadata())),
    )


def message_of(inner: Any) -> bytes | None:
    """The one response of an inner call that ended with OK a turn of the loop ago; None if it is not there."""
    try:
        inner.__await__().send(None)
    except StopIteration as stop:
        return None if stop.value is grpc.aio.EOF else stop.value
    except (grpc.RpcError, asyncio.CancelledError):
        return None
    return None


def sender(inner: Any) -> Callable[[bytes], Awaitable[None]]:
    """What sends one message on an inner call with a streamed request, whose `wait_for_connection` has returned.

    `inner.write` gives a call that the peer ended meanwhile the status INTERNAL, whatever the peer said. So the message goes
    to the layer below, where that is as it has been.
    """
    send = getattr(getattr(inner, CORE, None), "send_serialized_message", None)
    return inner.write if send is None else send  # type: ignore[no-any-return]


def receiver(inner: Any) -> Callable[[], Awaitable[Any]]:
    """What reads one message of an inner call with a streamed response, whose initial metadata are there; EOF at the end.

    How the call ended is not told here. The layer below again: it does not raise what the done callback has told already.
    """
    receive = getattr(getattr(inner, CORE, None), "receive_serialized_message", None)
    if receive is not None:
        return receive  # type: ignore[no-any-return]
    messages = aiter(inner)

    async def read() -> Any:
        try:
            return await anext(messages, grpc.aio.EOF)
        except grpc.RpcError:
            return grpc.aio.EOF
        except asyncio.CancelledError:
            if not inner.done():
                raise
            return grpc.aio.EOF

    return read
