"""What a check of `meshlib doctor` is asked and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

__all__ = ["Check", "Finding", "Level", "Question", "broken", "warning", "well"]


class Level(Enum):
    WELL = "ok"
    WARNING = "warning"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Question:
    """config: files to look at. offline: connect to nothing."""

    config: tuple[str, ...] = ()
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """subject: a stable name, for scripts. text: what is the matter. repair: what to do, empty where nothing is to be done."""

    level: Level
    subject: str
    text: str
    repair: str = ""


Check = Callable[[Question], Iterable[Finding]]
"""Finds something, or nothing where it does not apply. Never raises."""


def well(subject: str, text: str) -> Finding:
    return Finding(Level.WELL, subject, text)


def warning(subject: str, text: str, repair: str) -> Finding:
    return Finding(Level.WARNING, subject, text, repair)


def broken(subject: str, text: str, repair: str) -> Finding:
    return Finding(Level.BROKEN, subject, text, repair)
