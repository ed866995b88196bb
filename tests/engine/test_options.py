"""`with meshlib.call(...)`: nesting, tasks and threads, tenacity's objects."""

from __future__ import annotations

import asyncio
import threading

import pytest
import tenacity

from meshlib.engine.options import CallOptions, call, current_options, deadline_of
from tests.engine.builders import cluster, forward, retry
from tests.engine.wire import FakeMesh


def test_a_block_applies_inside_and_only_there() -> None:
    assert current_options() is None
    with call(timeout=0.2, retries=0) as options:
        assert current_options() is options
        assert (options.timeout, options.retries) == (0.2, 0)
    assert current_options() is None


def test_the_inner_block_wins_field_by_field() -> None:
    with call(timeout=1.0, retries=3, retry_on="5xx"), call(timeout=2.0, per_try_timeout=0.5) as options:
        assert options == CallOptions(timeout=2.0, per_try_timeout=0.5, retries=3, retry_on="5xx")


@pytest.mark.parametrize(
    ("own", "timeout", "deadline", "ends"),
    [
        (None, None, None, None),
        (5.0, None, None, 105.0),
        (None, 3.0, None, 103.0),
        (None, None, 90.0, 90.0),
        (5.0, 3.0, 107.0, 103.0),
        (5.0, 8.0, 107.0, 105.0),
        (5.0, 8.0, 101.0, 101.0),
    ],
)
def test_the_callers_deadline_is_the_earliest(
    own: float | None, timeout: float | None, deadline: float | None, ends: float | None
) -> None:
    with call(timeout=timeout, deadline=deadline):
        assert deadline_of(own, lambda: 100.0) == ends
    assert deadline_of(own, lambda: 100.0) == (None if own is None else 100.0 + own)


@pytest.mark.parametrize(
    ("outer", "inner", "seen"), [(10.0, 20.0, 10.0), (20.0, 10.0, 10.0), (10.0, None, 10.0)]
)
def test_a_deadline_can_only_come_nearer(outer: float, inner: float | None, seen: float) -> None:
    with call(deadline=outer), call(deadline=inner) as options:
        assert options.deadline == seen


def test_an_exception_ends_the_block() -> None:
    with pytest.raises(KeyError), call(timeout=1.0):
        raise KeyError
    assert current_options() is None


def test_a_block_can_be_used_again_but_not_inside_itself() -> None:
    block = call(timeout=1.0)
    for _ in range(2):
        with block:
            with pytest.raises(RuntimeError, match="in use already"):
                block.__enter__()
    assert current_options() is None


@pytest.mark.parametrize(
    "wrong",
    [{"timeout": 0}, {"timeout": -1.0}, {"timeout": float("nan")}, {"per_try_timeout": 0.0}, {"retries": -1}],
)
def test_wrong_values(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        call(**wrong)  # type: ignore[arg-type]


def test_threads_have_their_own() -> None:
    seen: list[CallOptions | None] = []
    with call(timeout=1.0):
        thread = threading.Thread(target=lambda: seen.append(current_options()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_tasks_have_their_own() -> None:
    async def one(timeout: float, gate: asyncio.Event) -> float | None:
        async with call(timeout=timeout):
            await gate.wait()
            options = current_options()
            assert options is not None
            return options.timeout

    async def main() -> list[float | None]:
        gate = asyncio.Event()
        async with call(retries=2):
            tasks = [asyncio.create_task(one(timeout, gate)) for timeout in (1.0, 2.0)]
        await asyncio.sleep(0)
        gate.set()
        return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [1.0, 2.0]


def test_a_call_takes_the_options_of_its_block() -> None:
    mesh = FakeMesh(cluster())
    with call(timeout=0.2):
        inside = mesh.call()
    assert inside.tick() == pytest.approx(0.2)


class TestTenacity:
    def test_stop_replaces_the_number(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(retry_policy=retry("5xx", times=1)))
        with call(stop=tenacity.stop_after_attempt(4)):
            it = mesh.call()
        while it.status is None:
            if it.live:
                it.answer(503)
            else:
                it.tick()
        assert (len(it.starts), it.flags) == (4, "URX")
        assert mesh.held() == {}

    def test_wait_replaces_the_back_off(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(timeout=0.0, retry_policy=retry("5xx", times=3)))
        with call(wait=tenacity.wait_incrementing(start=1, increment=2)):
            it = mesh.call()
        waits = []
        for _ in range(3):
            it.answer(503)
            waits.append(it.tick())
        assert waits == pytest.approx([1, 3, 5])

    def test_stop_after_a_delay(self) -> None:
        mesh = FakeMesh(cluster(), action=forward(timeout=0.0, retry_policy=retry("5xx")))
        with call(stop=tenacity.stop_after_delay(2.5), wait=tenacity.wait_fixed(1)):
            it = mesh.call()
        while it.status is None:
            if it.live:
                it.answer(503)
            else:
                it.tick()
        assert len(it.starts) == 4, "the attempt at 3 s is the first that ends after the delay"
