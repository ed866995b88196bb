"""The interleaved run: in every round all cases take turns in a new random order.

What the machine does meanwhile (another tenant, a change of clock frequency) then falls on all cases alike.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import random
import time
from dataclasses import dataclass
from typing import TypeVar

from benchmarks.cases import AsyncFetch, Case, SyncFetch
from benchmarks.processes import cpu_seconds, segments
from benchmarks.samples import Sample, Samples

_WARM_UP_CALLS = 5
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meter:
    """CPU clocks of all processes of a case, read at the start of its turn."""

    case: Case[SyncFetch] | Case[AsyncFetch]
    upstream: int
    client: float
    envoys: float
    server: float
    sent: int
    started: float

    def stop(self, latencies: list[float]) -> Sample:
        elapsed = time.perf_counter() - self.started
        return Sample(
            latencies=tuple(latencies),
            rps=len(latencies) / elapsed,
            client_cpu=time.process_time() - self.client,
            envoy_cpu=cpu_seconds(self.case.envoys) - self.envoys,
            upstream_cpu=cpu_seconds([self.upstream]) - self.server,
            sent=segments() - self.sent,
        )


def _meter(case: Case[SyncFetch] | Case[AsyncFetch], upstream: int) -> _Meter:
    gc.collect()
    return _Meter(
        case=case,
        upstream=upstream,
        envoys=cpu_seconds(case.envoys),
        server=cpu_seconds([upstream]),
        sent=segments(),
        client=time.process_time(),
        started=time.perf_counter(),
    )


def shuffled(items: list[_T], order: random.Random) -> list[_T]:
    return order.sample(items, len(items))


def run_sync(
    cases: list[Case[SyncFetch]], upstream: int, *, rounds: int, calls: int, order: random.Random
) -> Samples:
    """`calls` calls one after the other by each case in each round."""
    samples = Samples()
    clock = time.perf_counter
    for _ in range(rounds):
        for case in shuffled(cases, order):
            fetch = case.fetch
            for _ in range(_WARM_UP_CALLS):
                fetch()
            latencies = []
            meter = _meter(case, upstream)
            for _ in range(calls):
                before = clock()
                fetch()
                latencies.append(clock() - before)
            samples.add(f"sync/{case.name}", meter.stop(latencies))
    return samples


async def _sequential(fetch: AsyncFetch, calls: int) -> list[float]:
    clock = time.perf_counter
    latencies = []
    for _ in range(calls):
        before = clock()
        await fetch()
        latencies.append(clock() - before)
    return latencies


async def _concurrent(fetch: AsyncFetch, tasks: int, seconds: float) -> tuple[list[float], int]:
    """The latencies of all calls, and how many of them ended inside a window of `seconds`.

    The window opens when every task has had its first answer, so that it begins as it ends: with all tasks in the middle of a
    call. One that began with none under way would not count the calls that are under way at its end, a tenth at 512.
    """
    clock = time.perf_counter
    latencies: list[float] = []
    inside = 0
    unanswered = tasks
    end = float("inf")

    async def work() -> None:
        nonlocal inside, unanswered, end
        first = True
        while (before := clock()) < end:
            await fetch()
            after = clock()
            latencies.append(after - before)
            if first:
                first = False
                unanswered -= 1
                if not unanswered:
                    end = after + seconds
            elif not unanswered:
                inside += after < end

    await asyncio.gather(*(work() for _ in range(tasks)))
    return latencies, inside


async def run_async(
    cases: list[Case[AsyncFetch]], upstream: int, *, rounds: int, calls: int, order: random.Random
) -> Samples:
    """As `run_sync`, on the running event loop."""
    samples = Samples()
    for _ in range(rounds):
        for case in shuffled(cases, order):
            for _ in range(_WARM_UP_CALLS):
                await case.fetch()
            meter = _meter(case, upstream)
            samples.add(f"async/{case.name}", meter.stop(await _sequential(case.fetch, calls)))
    return samples


async def run_concurrent(
    turns: list[tuple[Case[AsyncFetch], int]],
    upstream: int,
    *,
    rounds: int,
    seconds: float,
    order: random.Random,
) -> Samples:
    """For each (case, level): that many tasks call again and again for `seconds`.

    A first wave, not counted, opens the connections.
    """
    samples = Samples()
    for _ in range(rounds):
        for case, level in shuffled(turns, order):
            await asyncio.gather(*(case.fetch() for _ in range(level)))
            meter = _meter(case, upstream)
            latencies, inside = await _concurrent(case.fetch, level, seconds)
            sample = dataclasses.replace(meter.stop(latencies), rps=inside / seconds)
            samples.add(f"async{level}/{case.name}", sample)
    return samples
