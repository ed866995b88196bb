"""The figures of a cluster's members, and when its membership has changed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from meshlib.balance.membership import COMPARED, changed_priorities
from meshlib.resources.endpoint import ClusterLoadAssignment, LocalityEndpoints
from tests.balance.support import Balanced, locality


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
    pair = [None if each is None else assignment(*each) for each in (before, after)]
    assert changed_priorities(*pair) == changes


def test_figures() -> None:
    made = Balanced([locality(0, 10, bad=4, degraded=1, draining=2), locality(20, 5, priority=1)])
    assert _figures(made) == {"total": 15, "healthy": 10, "degraded": 1, "excluded": 2}
    made.eject(0)
    assert _figures(made)["healthy"] == 9


def _figures(made: Balanced) -> dict[str, float]:
    names = ("total", "healthy", "degraded", "excluded")
    return {name: made.state.gauge(f"membership_{name}").value for name in names}
