"""Rules for every test: nothing may be left behind, and property-based tests give the same answer each time."""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from meshlib.policy import rotation
from meshlib.runtime import timers

GRACE = float(os.environ.get("MESHLIB_TEST_GRACE", "3"))
"""Seconds that threads and sockets of a closed object may take to end (grpc closes its sockets in the background)."""

hypothesis.settings.register_profile(
    "meshlib",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("meshlib")

# grpc starts a poller for asyncio at first use and keeps it until the last of its objects is gone, which may be never; its core
# keeps its own wake-up descriptors in the same way. (asyncio loops hold an event poll too; an unclosed loop shows by its socket
# pair.)
_LASTING_THREADS = ("_poll_wrapper",)
_LASTING_DESCRIPTORS = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/dev/null", "/dev/urandom")


@dataclass(frozen=True, slots=True)
class _Held:
    threads: frozenset[threading.Thread]
    pollers: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    children: frozenset[int]


def _descriptors() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only, a thousand times a run
        try:
            target = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except OSError:
            continue  # the descriptor of this very listing
        if not target.startswith(_LASTING_DESCRIPTORS):
            yield int(name), target


def _children() -> Iterator[int]:
    for task in Path("/proc/self/task").iterdir():
        try:
            yield from map(int, (task / "children").read_text().split())
        except OSError:
            continue


def _held() -> _Held:
    threads = frozenset(threading.enumerate())
    pollers = frozenset(thread for thread in threads if any(name in thread.name for name in _LASTING_THREADS))
    return _Held(
        threads=threads - pollers,
        pollers=pollers,
        descriptors=frozenset(_descriptors()),
        children=frozenset(_children()),
    )


def _describe(before: _Held, after: _Held) -> list[str]:
    return [
        *(f"thread {thread.name}" for thread in after.threads - before.threads),
        *(
            f"descriptor {number} -> {target}"
            for number, target in sorted(after.descriptors - before.descriptors)
        ),
        *(f"child process {pid}" for pid in sorted(after.children - before.children)),
    ]


def _timers_to_come() -> list[str]:
    """What keeps the thread of the timers, if that is what is left."""
    now = time.monotonic()
    return [
        f"{timer.task!r} in {when - now:.1f} s"
        for when, _, timer in sorted(timers.timers()._heap)
        if timer.task is not None
    ]


def pytest_collection_finish() -> None:
    """Spare the collector all that lives as long as the run: modules, and thousands of collected tests."""
    gc.collect()
    gc.freeze()


def _are_of_pollers(before: _Held, after: _Held) -> bool:
    """Whether all that is left is the pair of sockets by which a poller that began meanwhile wakes its loop."""
    if after.threads - before.threads or after.children - before.children:
        return False
    left = after.descriptors - before.descriptors
    pairs = len(after.pollers - before.pollers)
    return len(left) <= 2 * pairs and all(target.startswith("socket:") for _, target in left)


@pytest.fixture
def exchanged_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections of a certificate that was renewed are exchanged at once, not within some time."""
    monkeypatch.setattr(rotation, "WITHIN", 0.0)


@pytest.fixture
def exchanged_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections of a certificate that was renewed are exchanged as late as possible."""
    monkeypatch.setattr(rotation, "draw", lambda: 0.999)


@pytest.fixture(autouse=True, scope="session")
def hasty_timers() -> Iterator[None]:
    """Their thread ends soon after its last work, so that the check for what is left behind need not wait for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timers, "LINGER", 0.02)
        yield


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread, a socket, a file descriptor or a child process.

    A test that uses a server of a wider scope, whose workers start on demand, says so: ``@pytest.mark.shared_workers``.
    """
    if request.node.get_closest_marker("shared_workers") is not None:
        yield
        return
    before = _held()
    yield
    left = _describe(before, _held())
    if not left:
        return
    limit = time.monotonic() + GRACE
    for turn in itertools.count():
        if turn % 10 == 3:
            gc.collect()  # a thread that ends may leave a cycle
        left = _describe(before, _held())
        if not left or time.monotonic() >= limit:
            break
        time.sleep(0.01)
    if left and not _are_of_pollers(before, _held()):
        pytest.fail("the test left behind: " + ", ".join([*left, *_timers_to_come()]), pytrace=False)
