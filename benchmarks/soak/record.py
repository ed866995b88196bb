"""What the callers of one client have met."""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.samples import percentile
from benchmarks.soak.rotations import Rotations
from benchmarks.soak.verdict import PIECE, PIECES, Question, Verdict

__all__ = ["AROUND", "Call", "Record", "other_seconds", "spread", "summary"]

AHEAD, AROUND = 0.1, 1.0
"""A call is around a rotation when it is under way in so many seconds ahead of it, in which contexts are built, or after it."""

DRAWS = 200
"""How often as many seconds as there were rotations are drawn from the others."""

SHOWN = 10
"""Failures that are told in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One that is under way. newest: the number of the own certificate when it began."""

    question: Question
    newest: int

    @property
    def long(self) -> bool:
        """It takes its time on purpose."""
        return self.question.seconds > 0


@dataclass(slots=True, kw_only=True)
class Record:
    """One for each caller. oldest_own, oldest_peer: rotations since the connection of a call was made, at the call's begin."""

    rotations: Rotations
    begun: array[float] = field(default_factory=lambda: array("d"))
    took: array[float] = field(default_factory=lambda: array("d"))
    long: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    oldest_own: int = 0
    oldest_peer: int = 0
    seen: set[str] = field(default_factory=set)

    def begin(self, seconds: float) -> Call:
        now = time.monotonic()
        return Call(question=Question(begun=now, seconds=seconds), newest=self.rotations.newest(now))

    def end(self, call: Call, answer: bytes) -> None:
        """Raises ValueError: not the whole answer."""
        took = time.monotonic() - call.question.begun
        verdict = Verdict.decode(answer[len(PIECE) * PIECES :] if call.long else answer)
        self.seen.add(verdict.certificate)
        number = self.rotations.certificates.get(verdict.certificate, call.newest)
        self.oldest_own = max(self.oldest_own, call.newest - number)
        self.oldest_peer = max(self.oldest_peer, verdict.age)
        if call.long:
            self.long += 1
        else:
            self.begun.append(call.question.begun)
            self.took.append(took)

    def fail(self, call: Call, error: Exception) -> None:
        self.failed += 1
        if len(self.failures) < SHOWN:
            since = min(
                (at for at in map(call.question.begun.__sub__, self.rotations.times) if at >= 0), default=-1.0
            )
            kind = "a long call" if call.long else "a call"
            details = getattr(error, "details", None)
            told = details() if callable(details) else details
            self.failures.append(
                f"{kind} that began {since:.3f} s after a rotation: {type(error).__name__}: {error} [{told}]"
            )


def summary(records: Sequence[Record], begun: float) -> dict[str, Any]:
    """Of all callers of a client. begun: calls before that warmed up. Times in milliseconds.

    others: between which values nine in ten p99 lie of as many seconds as there were rotations, but without one: what the machine
    does by itself. None: there are not enough of them.
    """
    rotations = records[0].rotations
    calls = ((at, took) for record in records for at, took in zip(record.begun, record.took) if at >= begun)
    seconds = other_seconds(calls, [at for at in rotations.times if at >= begun], begun)
    others = spread(seconds, len(rotations.times), 0.99)
    times = [at - AHEAD for at in rotations.times if at >= begun]
    around, between = array("d"), array("d")
    for record in records:
        coming = iter([*times, float("inf")])
        following = next(coming)
        last = float("-inf")
        for at, took in zip(record.begun, record.took):
            if at < begun:
                continue
            while following <= at + took:
                last, following = following, next(coming)
            (around if at <= last + AHEAD + AROUND else between).append(took)
    seen = set().union(*(record.seen for record in records))
    return {
        "calls": sum(len(record.took) for record in records),
        "long_calls": sum(record.long for record in records),
        "failed": sum(record.failed for record in records),
        "failures": [text for record in records for text in record.failures][:SHOWN],
        "rotations": len(rotations.times),
        "certificates": len(seen),
        "unknown_certificates": len(seen - rotations.certificates.keys()),
        "oldest_own": max(record.oldest_own for record in records),
        "oldest_peer": max(record.oldest_peer for record in records),
        "around": _quantiles(around),
        "between": _quantiles(between),
        "all": _quantiles(around + between),
        "others": None if others is None else [value * 1000 for value in others],
    }


def other_seconds(
    calls: Iterable[tuple[float, float]], rotations: Iterable[float], begun: float
) -> list[list[float]]:
    """What calls took, by the second (AROUND) after `begun` in which they were under way; seconds around rotations are left out.

    calls: when each began, and what it took.
    """
    found: dict[int, list[float]] = {}
    for at, took in calls:
        for second in range(int((at - begun) / AROUND), int((at + took - begun) / AROUND) + 1):
            found.setdefault(second, []).append(took)
    around = {
        second
        for at in rotations
        for second in range(int((at - AHEAD - begun) / AROUND), int((at - begun) / AROUND) + 2)
    }
    return [found[second] for second in sorted(found.keys() - around)]


def spread(seconds: Sequence[Sequence[float]], count: int, share: float) -> tuple[float, float] | None:
    """Between which values nine in ten such percentiles of `count` seconds lie; None: there are fewer than twice as many."""
    if not 0 < count * 2 <= len(seconds):
        return None
    draw = random.Random(0)
    found = [
        percentile([took for second in draw.sample(seconds, count) for took in second], share)
        for _ in range(DRAWS)
    ]
    return percentile(found, 0.05), percentile(found, 0.95)


def _quantiles(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {name: percentile(values, share) * 1000 for name, share in (("p50", 0.50), ("p99", 0.99))}
