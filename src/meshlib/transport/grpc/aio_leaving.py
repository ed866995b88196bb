"""Operations of C-core that nobody waits for any more, and an event loop that waits for them before it ends.

A call that is cancelled is over at once, and so is a channel that is closed while its connection opens. C-core reports the end of
what they had under way a little later, through the event loop. If that has ended meanwhile, grpcio's poller logs `Event loop is
closed` in whichever loop reads the report, and what belongs to the operation is never freed.

*A connection that opens* is watched without asyncio's cancelling: a task that is cancelled lets go of C-core's future, which is
done once the channel is closed (`watch`). So that one is always waited for.

*A call* has several operations, whose futures are grpcio's own business. C-core takes no second request for a message while it
has one, and hardly ever reports on an earlier operation later: when a message that is asked for now has not come, the call
is over for C-core too (`_over`). Hardly ever: its threads may overtake each other, and word of what a call was just sending
waits until it is written. docs/grpc.md has what was measured.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import grpc
import grpc.aio

from meshlib.transport.grpc import aio_inner
from meshlib.transport.grpc.aio_lean import LeanCall

__all__ = ["PATIENCE", "Leaving"]

PATIENCE = 1.0
"""Seconds after which nobody waits for C-core any more."""

PAUSE = 0.001
"""Seconds until C-core is asked again whether it takes a request for a message."""


class Leaving:
    """Those of one event loop. Only code that runs on it may use this."""

    __slots__ = ("_calls", "_forgetting", "_loop", "_watches")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._watches: set[asyncio.Future[Any]] = set()
        self._calls: deque[tuple[float, Any]] = deque()
        self._forgetting: asyncio.TimerHandle | None = None

    def watch(self, channel: grpc.aio.Channel, state: grpc.ChannelConnectivity) -> asyncio.Future[None]:
        """Done when the channel's state is another one, or may be. May be cancelled. Raises UsageError: it is closed."""
        steps = channel.wait_for_state_change(state)
        future: asyncio.Future[Any] = steps.send(None)
        future._asyncio_future_blocking = False  # as a task does with the future that it is given to wait for
        steps.close()
        self._watches.add(future)
        future.add_done_callback(self._watches.discard)
        return asyncio.shield(future)

    def cut(self, inner: Any) -> None:
        """An inner call was cancelled. It is known for `PATIENCE` seconds."""
        core = inner.core if type(inner) is LeanCall else getattr(inner, aio_inner.CORE, None)
        if core is None:  # another grpcio
            return
        self._calls.append((self._loop.time(), core))
        if self._forgetting is None:
            self._forgetting = self._loop.call_later(PATIENCE, self._forget)

    def _forget(self) -> None:
        calls = self._calls
        while calls and calls[0][0] <= self._loop.time() - PATIENCE:
            calls.popleft()
        self._forgetting = None
        if calls:
            self._forgetting = self._loop.call_at(calls[0][0] + PATIENCE, self._forget)

    async def gone(self) -> None:
        """Until C-core has reported on all of them, at most for `PATIENCE` seconds."""
        calls = [core for _, core in self._calls]
        self._calls.clear()
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None
        if calls or self._watches:
            task = self._loop.create_task(self._reported(calls))
            await asyncio.wait([task], timeout=PATIENCE)
            task.cancel()

    async def _reported(self, calls: list[Any]) -> None:
        for core in calls:
            await _over(core)
        if self._watches:
            await asyncio.wait(self._watches)


async def _over(core: Any) -> None:
    """Until C-core has nothing more to say about a call that was cancelled."""
    while True:
        asked = core.receive_serialized_message()
        try:
            future = asked.send(None)
        except StopIteration:  # it has a request for a message
            await asyncio.sleep(PAUSE)
            continue
        future._asyncio_future_blocking = False
        asked.close()
        future.add_done_callback(asyncio.Future.exception)  # or it would be logged
        await asyncio.wait([future])
        return
