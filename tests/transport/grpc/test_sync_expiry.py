"""Who ends the blocking calls that were sent without a deadline."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from meshlib.runtime.clock import FakeClock
from meshlib.transport.grpc import sync_expiry
from meshlib.transport.grpc.sync_expiry import Expiry


class Bench:
    """An Expiry whose timers fire when the clock is moved."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.armed = 0
        self.expiry = Expiry(self.clock.monotonic, self.later)

    def later(self, delay: float, task: Callable[[], None]) -> None:
        assert 0 <= delay <= sync_expiry.PAUSE
        self.armed += 1
        self.timers.append((self.clock.monotonic() + delay, task))

    def move(self, until: float) -> None:
        while self.timers and min(self.timers, key=lambda each: each[0])[0] <= until:
            due = min(self.timers, key=lambda each: each[0])
            self.timers.remove(due)
            self.clock.advance_to(max(due[0], self.clock.monotonic()))
            due[1]()
        self.clock.advance_to(until)


class Call:
    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.cancelled: list[float] = []

    def cancel(self, code: int, details: str) -> None:
        assert (code, details) == (4, "Deadline Exceeded")
        self.cancelled.append(self.bench.clock.monotonic())


def test_a_call_in_time_is_left_alone() -> None:
    bench = Bench()
    now = bench.clock.monotonic()
    call = Call(bench)
    bench.expiry.begin(call, now + 2)
    bench.expiry.end(call)
    bench.move(now + 10)
    assert call.cancelled == []
    assert bench.timers == [], "nothing is armed without calls"
    assert bench.armed == 1


def test_many_calls_share_a_timer() -> None:
    bench = Bench()
    for _ in range(1000):
        call = Call(bench)
        bench.expiry.begin(call, bench.clock.monotonic() + 2)
        bench.expiry.end(call)
        bench.move(bench.clock.monotonic() + 0.001)
    assert bench.armed <= 1 / sync_expiry.PAUSE + 1


def test_a_nearer_end_is_met() -> None:
    bench = Bench()
    now = bench.clock.monotonic()
    slow, quick = Call(bench), Call(bench)
    bench.expiry.begin(slow, now + 5)
    bench.expiry.begin(quick, now + 0.1)
    bench.move(now + 0.1)
    assert quick.cancelled == [now + 0.1]
    bench.expiry.end(quick)
    bench.move(now + 6)
    assert slow.cancelled[0] == now + 5


@given(
    st.lists(
        st.tuples(st.floats(0.01, 3), st.floats(0.01, 3), st.floats(0, 1)),
        max_size=20,
    )
)
def test_each_call_is_ended_at_its_end(script: list[tuple[float, float, float]]) -> None:
    """(how long the call may take, how long it takes, the pause before the next one begins)"""
    bench = Bench()
    start = bench.clock.monotonic()
    events: list[tuple[float, int]] = []
    begins = start
    calls: list[tuple[Call, float, float, float]] = []
    for index, (limit, takes, pause) in enumerate(script):
        calls.append((Call(bench), begins, begins + limit, begins + takes))
        events += [(begins, index), (begins + takes, ~index)]
        begins += pause
    for moment, index in sorted(events):
        bench.move(max(moment, bench.clock.monotonic()))
        if index >= 0:
            bench.expiry.begin(calls[index][0], calls[index][2])
        else:
            bench.expiry.end(calls[~index][0])
    for call, _, until, ends in calls:
        if ends < until:
            assert call.cancelled == []
        elif ends > until:
            assert call.cancelled
            assert abs(call.cancelled[0] - until) < 1e-6
    bench.move(bench.clock.monotonic() + sync_expiry.PAUSE)
    assert bench.timers == []


def test_a_forked_child_knows_none_of_them() -> None:
    bench = Bench()
    call = Call(bench)
    bench.expiry.begin(call, bench.clock.monotonic() + 1)
    bench.expiry.after_fork_in_child()
    bench.move(bench.clock.monotonic() + 5)
    assert call.cancelled == []
    bench.expiry.begin(call, inf)
