"""How many calls have a fault: the limit, what is given back, forks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshlib.state import ActiveFault, ActiveFaults, StateStore
from meshlib.stats import Registry, Scope

GAUGE = "http.s.fault.active_faults"


def place(registry: Registry, stat_prefix: str = "s") -> Scope:
    return registry.scope("http", ("envoy_http_conn_manager_prefix", stat_prefix)).scope("fault")


def active_faults() -> ActiveFaults:
    store = StateStore(Registry())
    return store.active_faults(place(store.registry))


def test_the_limit() -> None:
    faults = active_faults()
    first = faults.enter(1)
    assert first is not None
    assert faults.enter(1) is None
    assert faults.enter(2) is not None
    first.release()
    first.release()
    assert faults.gauge.value == 1


def test_a_limit_of_0_lets_nobody_in() -> None:
    faults = active_faults()
    assert faults.enter(0) is None
    assert faults.gauge.value == 0


def test_one_gauge_for_each_name() -> None:
    registry = Registry()
    store = StateStore(registry)
    assert store.active_faults(place(registry)) is store.active_faults(place(registry))
    store.active_faults(place(registry)).enter(None)
    assert store.active_faults(place(registry, "other")).gauge.value == 0
    assert registry.gauge(GAUGE).value == 1


def test_a_fork_forgets_the_parents_calls() -> None:
    store = StateStore(Registry())
    faults = store.active_faults(place(store.registry))
    parents = faults.enter(None)
    assert parents is not None
    store.renew_locks()
    assert faults.gauge.value == 0
    assert faults.enter(1) is not None
    parents.release()
    assert faults.gauge.value == 1


@given(st.lists(st.one_of(st.just(-1), st.integers(0, 9)), max_size=60), st.integers(0, 5))
def test_it_counts_those_that_entered_and_were_not_released(steps: list[int], limit: int) -> None:
    faults = active_faults()
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
