"""How late the machine was while a case ran.

A case is about moments: this timeout passes before that answer comes. On a machine that has other things to do either side may
miss one, and then the two differ though neither is wrong. Whether that can be so is measured: a thread sleeps for short times and
notes by how much it overslept, and Linux tells how long an Envoy was ready to run and did not. Where nothing was late, a
difference is a difference at once; where something was, `conformance.suite` asks once more.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from pathlib import Path
from typing import Self

LATE = 0.02
"""Seconds that are too much for cases whose moments lie 50 ms apart: of one sleep, or of all that an Envoy waited together."""

_NAP = 0.01
_NOTED = 0.002
"""Seconds below which nothing is worth noting."""


class Lateness:
    """Watches while the context lasts."""

    def __init__(self) -> None:
        self._overslept: deque[tuple[float, float]] = deque()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="conformance-lateness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def worst(self, since: float) -> float:
        """The most that a sleep was over its time which has ended since that monotonic second."""
        return max((late for ended, late in tuple(self._overslept) if ended >= since), default=0.0)

    def note(self, begun: float, ended: float) -> None:
        """A sleep of `_NAP` seconds."""
        late = ended - begun - _NAP
        if late > _NOTED:
            self._overslept.append((ended, late))

    def _watch(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            time.sleep(_NAP)
            self.note(begun, time.monotonic())


def kept_waiting(process: int) -> float:
    """Seconds that the threads of a process were ready to run since they began, and did not. 0 where nobody tells."""
    total = 0
    for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
        try:
            total += int(path.read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue  # a thread that has ended
    return total / 1e9
