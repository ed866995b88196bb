"""What the client reported over some time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

__all__ = ["Window"]


class Window:
    """Sums reports. size: how many of the latest ones count, None for all."""

    def __init__(self, versions: tuple[str, ...], size: int | None = None) -> None:
        self._versions = versions
        self._reports: deque[Mapping[str, Any]] = deque(maxlen=size)

    def add(self, report: Mapping[str, Any]) -> None:
        self._reports.append(report)

    @property
    def answers(self) -> Counter[str]:
        """Answers by version."""
        total: Counter[str] = Counter()
        for report in self._reports:
            total.update(report["answers"])
        return total

    @property
    def failed(self) -> int:
        """Requests that the application saw fail."""
        return sum(report["failed"] for report in self._reports)

    @property
    def rejected(self) -> int:
        """Attempts that met a 500, whether or not a retry made up for it."""
        return sum(report["rejected"] for report in self._reports)

    @property
    def requests(self) -> int:
        return self.answers.total() + self.failed

    @property
    def last_failure(self) -> str:
        return next((report["last"] for report in reversed(self._reports) if report["last"]), "")

    def shares(self) -> dict[str, float]:
        """Share of the answers by version, 0 .. 1."""
        answers = self.answers
        total = answers.total() or 1
        return {version: answers[version] / total for version in self._versions}
