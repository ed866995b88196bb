"""A second look at large assignments, after they are in force.

Above a number of endpoints, only what decides where traffic goes is read before an assignment takes effect; addresses are
looked at here, on a thread of their own and in slices. An endpoint that can't be used is left out, counted and listed. A newer
version of the assignment ends the look at an older one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from meshlib.resources.decode_endpoint import CHECKED, EndpointProblem, check_addresses, without
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.runtime.threads import Executor, Slicer
from meshlib.snapshot import Accepted

__all__ = ["Amended", "Inspector", "inspected", "note"]

LISTED = 100
"""How many endpoints of one assignment are listed; all are counted."""

Check = Callable[[ClusterLoadAssignment, Callable[[], None]], list[EndpointProblem]]


@dataclass(frozen=True, slots=True)
class Amended:
    """An accepted assignment without its bad endpoints."""

    resource: ClusterLoadAssignment
    unsupported: tuple[str, ...]
    warnings: tuple[str, ...] = ()


class _SupersededError(Exception):
    """A newer version is there."""


class Inspector:
    """on_problems: called on the executor's thread with an assignment, the same without its bad endpoints, and the problems.

    All methods are for the executor's thread.
    """

    def __init__(
        self,
        executor: Executor,
        on_problems: Callable[
            [ClusterLoadAssignment, ClusterLoadAssignment, Sequence[EndpointProblem]], None
        ],
        *,
        check: Check = check_addresses,
        threshold: int = CHECKED,
    ) -> None:
        self._executor = executor
        self._on_problems = on_problems
        self._check = check
        self._threshold = threshold
        self._latest: dict[str, ClusterLoadAssignment] = {}

    def begin(self, assignment: ClusterLoadAssignment) -> None:
        """The assignment is in force now."""
        name = assignment.cluster_name
        if self._latest.get(name) is assignment:
            return
        if assignment.size > self._threshold:
            self._latest[name] = assignment
            run = partial(self._run, assignment)
            threading.Thread(target=run, name="meshlib-xds-inspection", daemon=True).start()
        else:
            self._latest.pop(name, None)

    def stop(self) -> None:
        """End what is under way."""
        self._latest.clear()

    def _run(self, assignment: ClusterLoadAssignment) -> None:
        slicer = Slicer()

        def pause() -> None:
            if self._latest.get(assignment.cluster_name) is not assignment:
                raise _SupersededError
            slicer.pause()

        try:
            problems = self._check(assignment, pause)
            if problems:
                rest = without(assignment, problems)
                self._executor.post(partial(self._on_problems, assignment, rest, problems))
        except _SupersededError:
            pass


def inspected(item: Accepted) -> Accepted:
    """The same at once, for a configuration from files: the resource as it was, or an assignment without bad endpoints."""
    assignment = item.resource
    if not isinstance(assignment, ClusterLoadAssignment) or assignment.size <= CHECKED:
        return item
    problems = check_addresses(assignment)
    if not problems:
        return item
    return Amended(without(assignment, problems), item.unsupported + note(problems), item.warnings)


def note(problems: Sequence[EndpointProblem]) -> tuple[str, ...]:
    """One line for each of the first problems: the path and what is wrong."""
    return tuple(
        f"endpoints[{problem.locality}].lb_endpoints[{problem.index}]: left out: {problem.reason}"
        for problem in problems[:LISTED]
    )
