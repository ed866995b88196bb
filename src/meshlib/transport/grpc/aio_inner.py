"""What an inner call of grpc.aio has to say once it has ended, read without waiting and through its public methods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import grpc

from meshlib.transport.grpc.judge import Ended

__all__ = ["ending", "is_ok", "result_of", "sender"]


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


def sender(inner: Any) -> Callable[[bytes], Awaitable[None]]:
    """What sends one message on an inner call with a streamed request, whose `wait_for_connection` has returned.

    `inner.write` gives a call that the peer ended meanwhile the status INTERNAL, whatever the peer said. So the message goes
    to the layer below, where that is as it has been.
    """
    send = getattr(getattr(inner, "_cython_call", None), "send_serialized_message", None)
    return inner.write if send is None else send  # type: ignore[no-any-return]
