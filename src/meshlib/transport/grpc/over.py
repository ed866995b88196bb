"""A call that is over: what grpc.Call and grpc.Future ask of it, and the same answers for success and failure."""

from __future__ import annotations

from collections.abc import Callable

import grpc

__all__ = ["OverCall"]


class OverCall(grpc.Call, grpc.Future):  # type: ignore[misc]
    """None of its methods waits. Status and metadata are the subclass's."""

    __slots__ = ()

    def is_active(self) -> bool:
        return False

    def time_remaining(self) -> float | None:
        return None

    def add_callback(self, callback: Callable[[], None]) -> bool:
        return False

    def cancel(self) -> bool:
        return False

    def cancelled(self) -> bool:
        return False

    def running(self) -> bool:
        return False

    def done(self) -> bool:
        return True
