"""The straight line through a unary call of asyncio: one attempt, on a connection that is there, whose response is accepted.

`aio_unary` has all the rest. As in `sync_lane`, few steps are what matters.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

from grpc.aio import BaseError

from meshlib.engine.actions import Action, Start
from meshlib.engine.call import Call
from meshlib.engine.engine import Engine
from meshlib.engine.loop import ACCEPTED
from meshlib.transport.grpc.aio_attempt import Attempt, Stage
from meshlib.transport.grpc.aio_deadlines import Deadlines, Wake
from meshlib.transport.grpc.aio_lean import lean_call
from meshlib.transport.grpc.judge import PREFIX
from meshlib.transport.grpc.metadata import LazyHeaders
from meshlib.transport.grpc.request import known_headers, with_extra

__all__ = ["arrive", "set_out"]


def set_out(driver: Any, timeout: float | None, wait_for_ready: bool | None) -> Sequence[Action] | None:
    """Make the driver's call, and begin it. None: its first attempt is under way; else what the engine says."""
    home, method, metadata = driver.home, driver.method, driver.metadata
    channel = method.channel
    engine: Engine = home.engine
    wake = driver._wake = Wake(driver)
    call: Call = engine.rpc(
        channel.target,
        channel.authority,
        method.path,
        known_headers(metadata),
        channel.channel_id,
        None if metadata else method.likeness,
        wake,
        timeout,
        bool(wait_for_ready),
        home.dialect,
    )
    driver.call = call
    deadline = driver.deadline = call.caller_deadline
    home.active.add(driver)
    monotonic = home.monotonic
    actions = call.begin(monotonic())
    if len(actions) != 1 or driver.options:
        return actions
    start = actions[0]
    if not isinstance(start, Start) or not start.permitted or start.headers is not None:
        return actions
    lane = home.inner(start)
    if not lane.ready():
        return actions
    time_left = None if deadline is None else max(deadline - monotonic(), 0.0)
    if start.extra:
        metadata = with_extra(metadata, start.extra)
    path = method.encoded if start.path == method.path else start.path.encode()
    attempt = Attempt(driver, 1, start.path, lane)
    try:
        inner = lean_call(lane.channel, path, driver.request, time_left, metadata, attempt.ended)
    except (BaseError, TypeError):
        return actions  # to be said by who sends it then
    if inner is None:
        return actions
    lane.used()
    attempt.start = start
    attempt.stage = Stage.SENT
    attempt.inner = driver.direct = inner
    driver._attempts = (attempt,)
    wake_at = call.wake_at
    if wake_at < inf:
        deadlines: Deadlines = home.deadlines
        if deadlines.add(wake, wake_at):
            driver._timed_until = wake_at
        else:
            driver._arm()
    return None


def arrive(driver: Any, attempt: Any, message: bytes) -> Sequence[Action] | None:
    """The attempt has ended well, with this message. None: and so has the call; else what the engine says."""
    attempt.driver = None
    attempt.stage = Stage.OVER
    attempt.lane.released()
    call: Call = driver.call
    sent, received = len(driver.request), len(message)
    if call.observed:
        call.account(sent + PREFIX, received + PREFIX, messages=(1, 1), trailers=attempt.inner.trailers)
    number: int = attempt.number
    actions = call.succeed(number, LazyHeaders(attempt.response_headers), driver.home.monotonic())
    if actions is not ACCEPTED or number != 1:
        driver.sent, driver.sent_bytes, driver.received, driver.received_bytes = 1, sent, 1, received
        return actions
    driver.accepted = attempt
    driver._finish(None)
    return None
