"""The driver of a call with one message each way."""

from __future__ import annotations

from typing import Any

from meshlib.transport.grpc.aio_driver import Attempt, Driver

__all__ = ["UnaryDriver"]


class UnaryDriver(Driver):
    """request: the serialized message."""

    __slots__ = ("request",)

    request: bytes

    def _begin(self, attempt: Attempt, metadata: Any) -> Any:
        multicallable = attempt.lane.multicallable("unary_unary", attempt.path)
        return multicallable(self.request, timeout=self.time_left(), metadata=metadata, **self.options)
