"""Envoy's earliest-deadline-first scheduler.

Each entry has a deadline; the pick takes the earliest and puts it back 1 / weight later, so that an entry is picked in
proportion to its weight, as evenly as possible. Entries with equal deadlines are taken in the order they were added.
"""

from __future__ import annotations

import heapq
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from math import gcd, lcm

__all__ = ["EdfScheduler", "cycle_of"]

MAX_CYCLE = 4096
"""The longest cycle that is worked out in advance."""


class EdfScheduler:
    """Picks entries by weights that may change between picks. Thread safe; a pick is O(log n)."""

    __slots__ = ("__weakref__", "_heap", "_lock", "_order", "_weight")

    def __init__(self, entries: Sequence[int], weight: Callable[[int], float]) -> None:
        """entries: what is picked. weight: of an entry at this moment, more than 0; asked when the entry is put back."""
        self._lock = threading.Lock()
        self._weight = weight
        self._heap = [(1.0 / weight(entry), order, entry) for order, entry in enumerate(entries)]
        self._order = len(entries)
        heapq.heapify(self._heap)
        _schedulers.add(self)

    def pick(self) -> int:
        with self._lock:
            deadline, _, entry = self._heap[0]
            heapq.heapreplace(self._heap, (deadline + 1.0 / self._weight(entry), self._order, entry))
            self._order += 1
            return entry

    def renew_lock(self) -> None:
        """In a forked child: another thread of the parent may have been in `pick`."""
        self._lock = threading.Lock()


_schedulers: weakref.WeakSet[EdfScheduler] = weakref.WeakSet()


def _renew_all() -> None:
    for scheduler in _schedulers:
        scheduler.renew_lock()


os.register_at_fork(after_in_child=_renew_all)


def cycle_of(entries: Sequence[int], weights: Sequence[int]) -> list[int] | None:
    """One whole cycle of the scheduler for weights that do not change; None when it is longer than MAX_CYCLE."""
    divisor = gcd(*weights)
    length = sum(weights) // divisor
    if length > MAX_CYCLE:
        return None
    # 1 / weight, all times their least common multiple: whole numbers, so that ties are exact.
    scale = lcm(*(weight // divisor for weight in weights))
    steps = [scale * divisor // weight for weight in weights]
    heap = [(step, order) for order, step in enumerate(steps)]
    heapq.heapify(heap)
    index_of = list(range(len(entries)))
    cycle = []
    for _ in range(length):
        deadline, order = heap[0]
        index = index_of[order]
        cycle.append(entries[index])
        index_of.append(index)
        heapq.heapreplace(heap, (deadline + steps[index], len(index_of) - 1))
    return cycle
