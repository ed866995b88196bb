"""A parked call, as its queue sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meshlib.state.permits import Permits

__all__ = ["Waiter"]


class Waiter:
    """Stands in an endpoint's queue for a connection.

    wake: supplied by the transport, may be called from any thread (`Event.set`, `loop.call_soon_threadsafe`). owner: the
    transport's pool, so that a returned connection is handed only to a call that can use it. connection: what was handed
    over, None when the waiter may open a connection of its own. served: it has left the queue with one or the other.
    permits: those that its connection will count against.
    """

    __slots__ = ("connection", "owner", "permits", "served", "wake")

    def __init__(self, wake: Callable[[], None], owner: object | None = None) -> None:
        self.wake = wake
        self.owner = owner
        self.permits: Permits | None = None
        self.connection: object | None = None
        self.served = False
