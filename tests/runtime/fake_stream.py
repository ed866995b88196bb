"""A stream that is a script: the test speaks for the server. No sockets, no threads, no time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["FakeStream"]


class FakeStream:
    """One stream, seen from the server. requests: what was sent, as `decode` reads it."""

    def __init__(
        self, on_message: Callable[[Any, bytes], None], on_closed: Callable[[Any, str], None]
    ) -> None:
        self._on_message, self._on_closed = on_message, on_closed
        self.requests: list[Any] = []
        self.half_closed = self.closed = False
        self.unprocessed = 0

    @staticmethod
    def decode(data: bytes) -> Any:
        return data

    def send(self, data: bytes) -> None:
        assert not self.closed
        assert not self.half_closed
        self.requests.append(self.decode(data))

    def done_sending(self) -> None:
        self.half_closed = True

    def processed(self) -> None:
        self.unprocessed -= 1

    def close(self) -> None:
        self.closed = True

    def join(self, timeout: float) -> None:
        assert self.closed

    def quiesce(self, timeout: float) -> None:
        assert self.closed

    def push(self, data: bytes) -> None:
        self.unprocessed += 1
        self._on_message(self, data)

    def end(self, reason: str = "UNAVAILABLE: gone") -> None:
        self._on_closed(self, reason)
