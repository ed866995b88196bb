"""What a blocking call waits on."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["Waker"]


class Waker:
    """What a blocking call waits on while it has no connection. `wake` may be called from any thread.

    The event is made when somebody waits: most calls never do. forward: who is woken instead, once the call is handed over.
    """

    woken = False
    forward: Callable[[], None] | None = None
    _event: threading.Event | None = None

    def wake(self) -> None:
        self.woken = True
        if self.forward is not None:
            self.forward()
            return
        event = self._event
        if event is not None:
            event.set()

    def wait(self, limit: float) -> None:
        """Until it is woken, at most `limit` seconds. May return early."""
        if self._event is None:
            self._event = threading.Event()  # a wake-up from now on sets it
            if self.woken:
                return
        self._event.wait(min(limit, threading.TIMEOUT_MAX))

    def take(self) -> bool:
        """Whether it was woken since the last time."""
        if not self.woken:
            return False
        self.woken = False
        if self._event is not None:
            self._event.clear()
            if self.woken:  # in between
                self._event.set()
        return True
