"""The figures of a cluster's members, and when its membership has changed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from meshlib.balance.membership import COMPARED, changed_priorities
from meshlib.resources.endpoint import ClusterLoadAssignment, LocalityEndpoints
from tests.balance.support import Balanced, locality, wire


def assignment(*localities: LocalityEndpoints) -> ClusterLoadAssignment:
    return ClusterLoadAssignment(cluster_name="c", localities=localities)


ONE = locality(0, 3)


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        (None, None, 0),
        (None, (), 0),
        (None, (ONE,), 1),
        (None, (ONE, locality(9, 1, priority=1)), 2),
        ((ONE,), (ONE,), 0),
        ((ONE,), (locality(0, 3),), 0),
        ((ONE,), (locality(0, 3, bad=2),), 0),
        ((ONE,), (locality(0, 2), locality(2, 1)), 0),
        ((ONE,), (locality(1, 3),), 1),
        ((ONE,), (locality(0, 4),), 1),
        ((ONE,), (), 1),
        ((ONE,), None, 1),
        ((ONE,), (locality(0, 3, priority=1),), 2),
        ((locality(0, COMPARED + 1),), (locality(0, COMPARED + 1),), 1),
    ],
)
def test_changes(
    before: Sequence[LocalityEndpoints] | None, after: Sequence[LocalityEndpoints] | None, changes: int
) -> None:
    """In how many priorities endpoints have come or gone; health is no matter."""
    old, new = (None if each is None else assignment(*each) for each in (before, after))
    assert changed_priorities(old, new) == changes


@pytest.mark.parametrize(
    ("first", "ipv6", "changes", "pauses"),
    [
        pytest.param(0, False, 0, 20, id="the same: all are compared"),
        pytest.param(1, False, 1, 19, id="one of the last slice is new"),
        pytest.param(COMPARED, False, 1, 10, id="all are new: one slice tells"),
        pytest.param(0, True, 0, 20 + 2 * 157, id="the same, read one by one"),
    ],
)
def test_calls_are_let_through_while_many_are_compared(
    first: int, ipv6: bool, changes: int, pauses: int
) -> None:
    paused: list[None] = []
    old, new = wire(COMPARED, ipv6=ipv6), wire(COMPARED, first=first, ipv6=ipv6)
    assert changed_priorities(old, new, lambda: paused.append(None)) == changes
    assert len(paused) == pauses
    assert not new.localities[0].endpoints._made  # type: ignore[attr-defined]


def test_figures() -> None:
    made = Balanced([locality(0, 10, bad=4, degraded=1, draining=2), locality(20, 5, priority=1)])
    assert _figures(made) == {"total": 15, "healthy": 10, "degraded": 1, "excluded": 2}
    made.eject(0)
    assert _figures(made)["healthy"] == 9


def _figures(made: Balanced) -> dict[str, float]:
    names = ("total", "healthy", "degraded", "excluded")
    return {name: made.state.gauge(f"membership_{name}").value for name in names}
