"""One attempt of a call in asyncio.

PARKED      in its endpoint's queue, or nothing was done for it yet
CONNECTING  its inner channel opens
SENT        its inner call runs
OVER        its inner call has ended
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from meshlib.engine.actions import Start
from meshlib.engine.events import Cancelled, Failed
from meshlib.policy.failure import FailureKind
from meshlib.transport.grpc.aio_endpoint import InnerChannel, Lane
from meshlib.transport.grpc.aio_inner import result_of

if TYPE_CHECKING:
    from meshlib.transport.grpc.aio_driver import Driver

__all__ = ["Attempt", "Stage"]


class Stage(Enum):
    """Where an attempt is."""

    PARKED = "parked"
    CONNECTING = "connecting"
    SENT = "sent"
    OVER = "over"


class Attempt:
    """One attempt. driver: None once the attempt no longer counts. start: the engine's action, None without the mesh. inner: its
    inner call once it is sent.

    answered: a message of its response has been seen.
    """

    answered = False

    driver: Driver | None
    start: Start | None = None
    stage = Stage.PARKED
    inner: Any = None

    def __init__(self, driver: Driver, number: int, path: str, lane: Lane) -> None:
        self.driver = driver
        self.number = number
        self.path = path
        self.lane = lane

    def response_headers(self) -> list[tuple[str, str | bytes]]:
        """Of an inner call that has them."""
        return [("content-type", "application/grpc"), *result_of(self.inner.initial_metadata())]

    def ended(self, _inner: Any) -> None:
        """The inner call has its status."""
        if self.driver is not None:
            self.driver.ended(self)

    def ended_late(self, inner: Any) -> None:
        """The same for an inner call of grpc.aio whose one response counts, which is there in the next turn of the loop."""
        if self.driver is not None:
            self.driver.home.loop.call_soon(self.ended, inner)

    def opened(self, kind: FailureKind | Cancelled | None, reason: str) -> None:
        """The inner channel is open, or could not be opened."""
        driver = self.driver
        if driver is None:
            return
        if kind is None:
            driver.run(driver.connected(self))
        elif isinstance(kind, Cancelled):
            driver.give_up()
        else:
            lane = self.lane
            driver.refused = lane.refused if isinstance(lane, InnerChannel) else None
            driver.detach(self)
            sent = kind is FailureKind.TERMINATED  # after a handshake Envoy has sent the request
            driver.run(Failed(self.number, kind, sent, reason))
