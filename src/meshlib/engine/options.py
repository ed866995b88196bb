"""What the application says about its own calls: `with meshlib.call(timeout=0.2, retries=0): ...`."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

from meshlib.engine.context import INBOUND

__all__ = ["CallOptions", "call", "current_options", "deadline_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Overrides for calls; None leaves what the configuration says.

    timeout: seconds for the whole call with its retries; the earliest of it, the deadline and the route's timeout ends the
    call. deadline: the same as a moment in monotonic seconds. per_try_timeout: seconds for each attempt. retries: how many
    retries at most; on a route without a retry policy they happen only when no byte of the request was processed
    (connect-failure, refused-stream, reset-before-request). retry_on: Envoy's condition names, comma-separated.
    stop, wait: tenacity objects (`stop_after_attempt(3)`, `wait_fixed(0.1)`) that replace the number and the back-off.
    """

    timeout: float | None = None
    deadline: float | None = None
    per_try_timeout: float | None = None
    retries: int | None = None
    retry_on: str | None = None
    stop: Any = None
    wait: Any = None

    def __post_init__(self) -> None:
        for name in ("timeout", "per_try_timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be more than 0 seconds, not {value!r}")
        if self.retries is not None and self.retries < 0:
            raise ValueError(f"retries must not be negative: {self.retries!r}")


_current: ContextVar[CallOptions | None] = ContextVar("meshlib.call", default=None)

current_options = _current.get


class call:  # noqa: N801 - reads as a verb where it is used: `with meshlib.call(...)`
    """Apply options to every call made inside the block, in this task or thread. Works with `with` and `async with`.

    Blocks nest: the inner one wins field by field, except that a deadline can only come nearer.
    Raises ValueError for a timeout that is not positive or a negative number of retries.
    """

    __slots__ = ("_options", "_token")

    def __init__(
        self,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        per_try_timeout: float | None = None,
        retries: int | None = None,
        retry_on: str | None = None,
        stop: Any = None,
        wait: Any = None,
    ) -> None:
        self._options = CallOptions(
            timeout=timeout,
            deadline=deadline,
            per_try_timeout=per_try_timeout,
            retries=retries,
            retry_on=retry_on,
            stop=stop,
            wait=wait,
        )
        self._token: Token[CallOptions | None] | None = None

    def __enter__(self) -> CallOptions:
        if self._token is not None:
            raise RuntimeError(
                "this meshlib.call(...) block is in use already; make a new one for each `with`"
            )
        merged = _merge(_current.get(), self._options)
        self._token = _current.set(merged)
        return merged

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._token is not None
        _current.reset(self._token)
        self._token = None

    async def __aenter__(self) -> CallOptions:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, traceback)


def deadline_of(timeout: float | None, monotonic: Callable[[], float]) -> float | None:
    """When a call that starts now ends for its caller, in monotonic seconds; None: never.

    The earliest of timeout (seconds, an argument of the call itself), of the timeout and the deadline of the
    `meshlib.call(...)` around it, and of the deadline of the request that is being answered. For protocols that tell an endpoint
    the deadline of its caller.
    """
    options, inbound = _current.get(), INBOUND.get()
    latest = None if inbound is None else inbound.deadline
    if options is None or (options.deadline is None and options.timeout is None):
        if timeout is None:
            return latest
        moment = monotonic() + timeout
        return moment if latest is None or moment < latest else latest
    now = monotonic()
    moments = [now + seconds for seconds in (timeout, options.timeout) if seconds is not None]
    moments += [moment for moment in (options.deadline, latest) if moment is not None]
    return min(moments)


def _merge(outer: CallOptions | None, inner: CallOptions) -> CallOptions:
    if outer is None:
        return inner
    given = {
        name: getattr(inner, name)
        for name in ("timeout", "per_try_timeout", "retries", "retry_on", "stop", "wait")
        if getattr(inner, name) is not None
    }
    deadlines = [moment for moment in (outer.deadline, inner.deadline) if moment is not None]
    return replace(outer, deadline=min(deadlines, default=None), **given)
