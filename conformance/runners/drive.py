"""Sending the requests of a case, with threads or with tasks: what the runners share."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from conformance.outcome import batches

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conformance.case import Case
    from conformance.outcome import Outcome, Sent


def drive(case: Case, send: Callable[[Sent], Outcome]) -> list[Outcome]:
    """Send every request of ``case``, concurrent ones from as many threads; outcomes in the order of the requests."""
    outcomes: list[Outcome] = []
    for request, batch in batches(case):
        if request.pause:
            time.sleep(request.pause)
        if request.concurrency == 1:
            for sent in batch:
                outcomes.append(send(sent))
                time.sleep(request.stagger)
        else:
            with ThreadPoolExecutor(request.concurrency) as pool:
                futures = []
                for sent in batch:
                    futures.append(pool.submit(send, sent))
                    time.sleep(request.stagger)
                outcomes += [future.result() for future in futures]
    return outcomes


async def drive_async(case: Case, send: Callable[[Sent], Awaitable[Outcome]]) -> list[Outcome]:
    """Send every request of ``case``, concurrent ones from tasks; outcomes in the order of the requests."""
    outcomes: list[Outcome] = []
    for request, batch in batches(case):
        await asyncio.sleep(request.pause)
        gate = asyncio.Semaphore(request.concurrency)

        async def one(sent: Sent, gate: asyncio.Semaphore = gate) -> Outcome:
            async with gate:
                return await send(sent)

        if request.concurrency == 1:
            for sent in batch:
                outcomes.append(await send(sent))
                await asyncio.sleep(request.stagger)
        else:
            tasks = []
            for sent in batch:
                tasks.append(asyncio.ensure_future(one(sent)))
                await asyncio.sleep(request.stagger)
            outcomes += await asyncio.gather(*tasks)
    return outcomes
