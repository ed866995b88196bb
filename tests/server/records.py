"""A Mesh whose servers are watched, and what was seen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import meshlib
from meshlib.engine.observer import InboundCall, InboundObserver
from meshlib.runtime.clock import FakeClock

__all__ = ["QUIET", "Recorder", "watched"]

QUIET = meshlib.Observe(tracing=False, metrics=False, recent_calls=0)


class Recorder(InboundObserver):
    """What has begun, and what is over."""

    def __init__(self) -> None:
        self.begun: list[InboundCall] = []
        self.over: list[InboundCall] = []

    def inbound_begun(self, record: InboundCall) -> None:
        self.begun.append(record)

    def inbound_over(self, record: InboundCall) -> None:
        self.over.append(record)

    @property
    def only(self) -> InboundCall:
        """The only request that there was. It is over."""
        (begun,), (over,) = self.begun, self.over
        assert begun is over
        return over


@contextlib.contextmanager
def watched(
    *config: Any, clock: FakeClock | None = None, **more: Any
) -> Iterator[tuple[meshlib.Mesh, Recorder]]:
    recorder = Recorder()
    files = [{"resources": list(config)}] if config else []
    with meshlib.Mesh(config=files, clock=clock, **{"observe": QUIET, **more}) as mesh:
        mesh.start()
        mesh.engine.observe(recorder)
        yield mesh, recorder
