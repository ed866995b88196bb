"""How many calls have a fault: the limit, what is given back, forks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshlib.state import ActiveFault, StateStore
from meshlib.stats import Registry

GAUGE = "http.s.fault.active_faults"


def test_the_limit() -> None:
    faults = StateStore(Registry()).active_faults(GAUGE)
    first = faults.enter(1)
    assert first is not None
    assert faults.enter(1) is None
    assert faults.enter(2) is not None
    first.release()
    first.release()
    assert faults.gauge.value == 1


def test_a_limit_of_0_lets_nobody_in() -> None:
    faults = StateStore(Registry()).active_faults(GAUGE)
    assert faults.enter(0) is None
    assert faults.gauge.value == 0


def test_one_gauge_for_each_name() -> None:
    registry = Registry()
    store = StateStore(registry)
    assert store.active_faults(GAUGE) is store.active_faults(GAUGE)
    store.active_faults(GAUGE).enter(None)
    assert store.active_faults("http.other.fault.active_faults").gauge.value == 0
    assert registry.gauge(GAUGE).value == 1


def test_a_fork_forgets_the_parents_calls() -> None:
    store = StateStore(Registry())
    faults = store.active_faults(GAUGE)
    parents = faults.enter(None)
    assert parents is not None
    store.renew_locks()
    assert faults.gauge.value == 0
    assert faults.enter(1) is not None
    parents.release()
    assert faults.gauge.value == 1


@given(st.lists(st.one_of(st.just(-1), st.integers(0, 9)), max_size=60), st.integers(0, 5))
def test_it_counts_those_that_entered_and_were_not_released(steps: list[int], limit: int) -> None:
    faults = StateStore(Registry()).active_faults(GAUGE)
    entered: list[ActiveFault] = []
    active: set[int] = set()
    for step in steps:
        if step < 0:
            fault = faults.enter(limit)
            assert (fault is None) == (len(active) >= limit)
            if fault is not None:
                active.add(len(entered))
                entered.append(fault)
        elif step < len(entered):
            entered[step].release()
            active.discard(step)
        assert faults.gauge.value == len(active)
