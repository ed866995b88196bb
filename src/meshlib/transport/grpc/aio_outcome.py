"""How a call that is over has ended, as the application sees it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from meshlib.engine.call import CallInfo
from meshlib.routing.request import Headers
from meshlib.transport.grpc.aio_errors import AioRpcFailed
from meshlib.transport.grpc.aio_inner import result_of
from meshlib.transport.grpc.errors import CODES
from meshlib.transport.grpc.metadata import decode_message, to_metadata

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_driver import Driver

__all__ = ["Outcome", "initial_metadata", "outcome_of"]

CANCELLED_DETAILS = "Locally cancelled by application!"
"""grpc.aio's own words."""

Metadata = grpc.aio.Metadata


class Outcome:
    """error: what was raised instead of a response, None when the endpoint's own status ended the call."""

    __slots__ = ("code", "debug", "details", "error", "info", "initial", "trailing")

    def __init__(
        self,
        code: grpc.StatusCode,
        details: str,
        initial: Any,
        trailing: Any,
        debug: str | None,
        info: CallInfo,
        error: BaseException | None = None,
    ) -> None:
        self.code = code
        self.details = details
        self.initial = initial
        self.trailing = trailing
        self.debug = debug
        self.info = info
        self.error = error

    def failure(self) -> BaseException | None:
        """What awaiting the call raises, made anew each time; None when it went well."""
        error = self.error
        if isinstance(error, asyncio.CancelledError):
            return asyncio.CancelledError()
        if error is not None:
            return error.with_traceback(None)
        if self.code is grpc.StatusCode.OK:
            return None
        failed = AioRpcFailed(self.code, self.initial, self.trailing, self.details, self.debug)
        failed.meshlib = self.info
        return failed


def outcome_of(driver: Driver) -> Outcome:
    """Of a driver that is over."""
    error: Any = driver.error
    info = driver.info
    if error is not None:
        initial = _initial(driver)
        if isinstance(error, asyncio.CancelledError):
            code = grpc.StatusCode.CANCELLED
            return Outcome(code, CANCELLED_DETAILS, initial, Metadata(), None, info, error)
        if not isinstance(error, grpc.aio.AioRpcError):  # C-core did not take the call
            code = grpc.StatusCode.INTERNAL
            return Outcome(code, str(error), initial, Metadata(), None, info, error)
        error._initial_metadata = initial
        return Outcome(
            error.code(),
            error.details(),
            initial,
            error.trailing_metadata(),
            error.debug_error_string(),
            info,
            error,
        )
    assert driver.accepted is not None
    inner = driver.accepted.inner
    outcome = Outcome(
        result_of(inner.code()),
        result_of(inner.details()),
        result_of(inner.initial_metadata()),
        result_of(inner.trailing_metadata()),
        result_of(inner.debug_error_string()),
        info,
    )
    if driver.edited is not None:
        _edit(outcome, driver.edited)
    return outcome


def _initial(driver: Driver) -> Any:
    """The initial metadata of a response that was cut after it had begun; none of one that never did."""
    if driver.accepted is None:
        return Metadata()
    if driver.edited is not None:
        return Metadata(*to_metadata(driver.edited))
    return result_of(driver.accepted.inner.initial_metadata())


def _edit(outcome: Outcome, headers: Headers) -> None:
    """The headers after the route's edits: the initial metadata, or the only block with the status in it."""
    status = next((value for name, value in headers if name == "grpc-status"), None)
    if status is None:
        outcome.initial = Metadata(*to_metadata(headers))
        return
    if status.isdigit():
        outcome.code = CODES.get(int(status), grpc.StatusCode.UNKNOWN)
    outcome.details = next(
        (decode_message(value) for name, value in headers if name == "grpc-message"), outcome.details
    )
    outcome.trailing = Metadata(*to_metadata(headers))


async def initial_metadata(driver: Driver) -> Any:
    """As soon as they are there."""
    await driver.wait_settled()
    if driver.over:
        return outcome_of(driver).initial
    assert driver.accepted is not None
    if driver.edited is not None:
        return Metadata(*to_metadata(driver.edited))
    return await driver.accepted.inner.initial_metadata()
