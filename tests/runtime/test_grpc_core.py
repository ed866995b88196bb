"""How long a fork waits for grpc's core: as long as its threads end by themselves, and not where somebody needs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from meshlib.runtime import grpc_core
from meshlib.runtime.grpc_core import LONGEST, POLL, await_shutdown


class Core:
    """What the kernel tells of the threads; `ends` says after how many looks the last one of grpc is gone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.ends: int | None = None
        self.slept = 0
        for number, name in enumerate(("python", "event_engine")):
            (folder / str(number)).mkdir()
            (folder / str(number) / "comm").write_text(name + "\n")

    def sleep(self, seconds: float) -> None:
        assert seconds == POLL
        self.slept += 1
        if self.slept == self.ends:
            (self._folder / "1" / "comm").write_text("meshlib-xds\n")


@pytest.fixture
def core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Core:
    found = Core(tmp_path)
    monkeypatch.setattr(grpc_core, "_TASKS", tmp_path)
    monkeypatch.setattr("meshlib.runtime.grpc_core.time.sleep", found.sleep)
    monkeypatch.setattr(grpc_core, "_is_needed", lambda: False)
    return found


@pytest.fixture
def channel() -> Iterator[grpc.Channel]:
    with grpc.insecure_channel("127.0.0.1:1") as found:
        yield found


@pytest.mark.parametrize("ends", [1, 50, 500, 4000])
def test_it_waits_for_a_core_that_nobody_needs(core: Core, ends: int) -> None:
    core.ends = ends
    await_shutdown(0.1)
    assert core.slept == ends


def test_but_not_for_ever(core: Core) -> None:
    await_shutdown(0.1)
    assert core.slept == 100 + LONGEST / POLL


def test_it_does_not_wait_long_for_one_that_is_needed(core: Core, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_core, "_is_needed", lambda: True)
    await_shutdown(0.1)
    assert core.slept == 100


def test_a_channel_needs_the_core(channel: grpc.Channel) -> None:
    assert grpc_core._is_needed()
