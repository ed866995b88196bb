from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

import meshlib
from tests.mesh.callers import CALLERS, Caller

Call = Callable[..., Caller]
Until = Callable[[meshlib.Mesh, Callable[[], bool]], None]


@pytest.fixture(params=sorted(CALLERS))
def caller(request: pytest.FixtureRequest) -> Iterator[Call]:
    """Makes clients of a mesh, blocking or asyncio; closes them at the end."""
    with ExitStack() as stack:

        def make(mesh: meshlib.Mesh | None, **options: Any) -> Caller:
            made = CALLERS[request.param](mesh, **options)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture
def until() -> Until:
    """Waits, from one configuration to the next, until a condition is true."""

    def wait(mesh: meshlib.Mesh, condition: Callable[[], bool]) -> None:
        while True:
            seen, woken = mesh.engine.program, threading.Event()
            if condition():
                return
            mesh.engine.await_program(woken.set, seen)
            assert woken.wait(20.0), mesh.status()

    return wait
