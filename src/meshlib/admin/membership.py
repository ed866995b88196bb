"""The place of one process in its application: the directory by which the others are found, and the totals over all of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from meshlib.admin.client import AdminError
from meshlib.admin.processes import Process, ProcessDirectory
from meshlib.engine.observer import Observers
from meshlib.observe.document import Document
from meshlib.observe.group import GroupTotals, Member
from meshlib.observe.tally import Tally
from meshlib.stats import Registry

__all__ = ["Membership"]

logger = logging.getLogger("meshlib.admin")

ASK_TIMEOUT = 2.0
"""Seconds that another process has for its numbers; after that those count that it has written last."""

DOCUMENT = "/stats/prometheus?format=document"


class Membership:
    """Made when the process can be asked already, closed before it no longer can be.

    Raises:
        OSError: what it counts can't be kept in the directory.
    """

    def __init__(
        self, registry: Registry, observers: Observers, directory: ProcessDirectory, process: Process
    ) -> None:
        self._directory = directory
        self._process = process
        self._totals = GroupTotals(
            registry,
            folder=Path(directory.path),
            name=process.name,
            started=process.started,
            group=process.group,
        )
        for member in observers.members:
            if isinstance(member, Tally):
                self._totals.follow(member)

    def own(self) -> Document:
        """What this process has counted, for another one that adds up.

        Raises:
            RuntimeError: it is ending.
        """
        return self._totals.answer()

    def whole(self) -> Document:
        """What all processes of the application have counted, exactly, those included that have ended.

        Raises:
            RuntimeError: this process is ending.
        """
        return self._totals.whole(
            self._members(), lambda: {process.name for process in self._directory.list()}
        )

    def close(self) -> None:
        """Idempotent."""
        self._totals.close()

    def _members(self) -> Iterator[Member]:
        for process in self._directory.list(self._process.group):
            if process.name == self._process.name:
                continue
            try:
                answer = self._directory.ask(process, DOCUMENT, timeout=ASK_TIMEOUT)
                if answer.status == 200:
                    yield Member(process.name, process.started, Document.from_json(answer.body))
            except (AdminError, ValueError) as error:
                logger.info("%s; what it has written last counts", error)
