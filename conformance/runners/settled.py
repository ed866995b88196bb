"""The counters of a Mesh after the requests of a case, as soon as nothing of them is under way."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from conformance.counters import BUSY, Counters, shortened
from conformance.outcome import Run

if TYPE_CHECKING:
    from conformance.case import Case
    from conformance.outcome import Outcome

TIMEOUT = 5.0
_PAUSE = 0.005


def settled(case: Case, mesh: Any, outcomes: list[Outcome]) -> Run:
    """The run, with the counters of the mesh. What may still be under way are copies, and what was cancelled."""
    until = time.monotonic() + TIMEOUT
    while _busy(found := _counters(case, mesh)) and time.monotonic() < until:
        time.sleep(_PAUSE)
    return Run(outcomes=outcomes, counters=found)


async def settled_async(case: Case, mesh: Any, outcomes: list[Outcome]) -> Run:
    """The same on an event loop, which goes on meanwhile."""
    until = time.monotonic() + TIMEOUT
    while _busy(found := _counters(case, mesh)) and time.monotonic() < until:
        await asyncio.sleep(_PAUSE)
    return Run(outcomes=outcomes, counters=found)


def _busy(found: Counters) -> bool:
    return any(value for name, value in found.items() if BUSY.match(name))


def _counters(case: Case, mesh: Any) -> Counters:
    return shortened(
        (
            (metric.name, metric.count if hasattr(metric, "buckets") else metric.value)
            for metric in mesh.stats
        ),
        case,
    )
