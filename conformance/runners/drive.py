"""Sending the requests of a case with threads: what the synchronous runners share."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from conformance.outcome import batches

if TYPE_CHECKING:
    from collections.abc import Callable

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
