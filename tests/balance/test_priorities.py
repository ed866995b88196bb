"""How traffic is spread over priorities: Envoy's arithmetic, with the figures seen on 1.40."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.balance.priorities import Loads, Membership, spread

H = Membership


@pytest.mark.parametrize(
    ("priorities", "healthy", "panic"),
    [
        ([H(4, 4), H(4, 4)], (100, 0), (False, False)),
        ([H(4, 3), H(4, 4)], (100, 0), (False, False)),
        ([H(4, 2), H(4, 4)], (70, 30), (False, False)),
        ([H(4, 1), H(4, 4)], (35, 65), (False, False)),
        ([H(4, 0), H(4, 4)], (0, 100), (False, False)),
        ([H(4, 2), H(4, 2)], (70, 30), (False, False)),
        ([H(4, 1), H(4, 1)], (50, 50), (True, True)),
        ([H(4, 1), H(4, 1), H(4, 4)], (35, 35, 30), (False, False, False)),
        ([H(4, 1), H(4, 0), H(4, 1)], (34, 33, 33), (True, True, True)),
        ([H(4, 0), H(4, 0)], (50, 50), (True, True)),
        ([H(2, 0), H(6, 0)], (25, 75), (True, True)),
        ([H(4, 1)], (100,), (True,)),
        ([H(4, 2)], (100,), (False,)),
        ([H(4, 4)], (100,), (False,)),
        ([H(0, 0), H(4, 4)], (0, 100), (False, False)),
        ([H(0, 0), H(4, 0)], (0, 100), (True, True)),
        ([H(4, 1), H(4, 2, 0)], (35, 65), (False, False)),
        ([H(10, 3), H(10, 2)], (50, 50), (True, True)),
        ([H(10, 6), H(10, 1)], (86, 14), (False, True)),
    ],
)
def test_the_seen_loads(
    priorities: list[Membership], healthy: tuple[int, ...], panic: tuple[bool, ...]
) -> None:
    loads = spread(priorities)
    assert (loads.healthy, loads.panic) == (healthy, panic)
    assert loads.degraded == (0,) * len(priorities)


def test_hosts_that_are_draining_count_only_where_all_are_in_panic() -> None:
    assert spread([H(2, 2, hosts=10), H(4, 4)]).healthy == (100, 0)
    loads = spread([H(2, 0, hosts=6), H(2, 0)])
    assert (loads.healthy, loads.panic) == ((75, 25), (True, True))
    assert spread([H(0, 0, hosts=3), H(1, 0)]).healthy == (75, 25)


def test_panic_goes_by_the_number_of_hosts_and_not_by_their_weight() -> None:
    """Seen: the one healthy host of three has 60 % of the weight, and all three get traffic."""
    assert spread([H(10, 6, hosts=3, percent_up=100 / 3)]).panic == (True,)
    assert spread([H(10, 2, percent_up=200 / 3)]).panic == (False,)
    assert spread([H(100, 40, percent_up=100 / 3), H(100, 20, percent_up=100.0)]).panic == (True, False)


def test_healthy_priorities_are_filled_before_degraded_ones() -> None:
    """Seen: P0 with 1 healthy, 2 degraded and 1 bad host, P1 with 4 healthy ones: 35/65, and nothing for the degraded."""
    loads = spread([H(4, 1, 2), H(4, 4)])
    assert (loads.healthy, loads.degraded) == ((35, 65), (0, 0))


def test_degraded_hosts_take_what_is_left() -> None:
    loads = spread([H(4, 1, 3)])
    assert (loads.healthy, loads.degraded) == ((35,), (65,))
    loads = spread([H(4, 0, 4)])
    assert (loads.healthy, loads.degraded) == ((0,), (100,))
    assert loads.panic == (False,)


def test_what_rounding_leaves_goes_to_the_first_that_has_any() -> None:
    loads = spread([H(10, 0), H(10, 1), H(10, 1), H(10, 1)], panic_threshold=0)
    assert loads.healthy == (0, 34, 33, 33)


def test_without_a_threshold_there_is_no_panic() -> None:
    assert spread([H(4, 1)], panic_threshold=0) == Loads((100,), (0,), (False,))
    assert spread([H(4, 0), H(4, 0)], panic_threshold=0) == Loads((100, 0), (0, 0), (False, False))


def test_the_overprovisioning_factor() -> None:
    assert spread([H(4, 2), H(4, 4)], factor=100).healthy == (50, 50)
    assert spread([H(4, 2), H(4, 4)], factor=200).healthy == (100, 0)


@st.composite
def memberships(draw: st.DrawFn) -> Membership:
    total = draw(st.integers(0, 40))
    healthy = draw(st.integers(0, total))
    return Membership(total, healthy, draw(st.integers(0, total - healthy)))


@given(
    st.lists(memberships(), min_size=1, max_size=5),
    st.integers(100, 300),
    st.sampled_from([0.0, 30.0, 50.0, 100.0]),
)
def test_loads_always_add_up(priorities: list[Membership], factor: int, threshold: float) -> None:
    loads = spread(priorities, factor=factor, panic_threshold=threshold)
    assert sum(loads.healthy) + sum(loads.degraded) == 100
    assert min((*loads.healthy, *loads.degraded)) >= 0
    if threshold == 0:
        assert not any(loads.panic)
    for priority, healthy, degraded, panic in zip(priorities, loads.healthy, loads.degraded, loads.panic):
        if panic or not any(each.healthy + each.degraded for each in priorities):
            continue
        assert not healthy or priority.healthy
        assert not degraded or priority.degraded
