"""Make before break: no call waits for the handshake of a connection that takes the place of another one."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import meshlib
import meshlib.grpc
from meshlib.transport.grpc.tunnel import Tunnel
from tests.identity.ca import Issued, TestCA
from tests.transport.grpc.secure.test_rotation import LIMIT, SERIAL, Rotating, _await, _held

ONE_CONNECTION = {"thresholds": [{"max_connections": 1}]}

Call = Callable[[], bytes]
"""Makes one, and returns the certificate that the server has seen."""


class Gate:
    """Holds up connections that are to be opened while it is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.closed = False
        self.waiting: list[Callable[[], None]] = []
        self.tunnels: list[Tunnel] = []
        begin = Tunnel.begin

        def held(tunnel: Tunnel, limit: float) -> None:
            if self.closed:
                self.tunnels.append(tunnel)
                self.waiting.append(partial(begin, tunnel, limit))
            else:
                begin(tunnel, limit)

        monkeypatch.setattr(Tunnel, "begin", held)

    def open(self) -> None:
        self.closed = False
        for begin in self.waiting:
            begin()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


@pytest.fixture
def rotating() -> Rotating:
    return Rotating()


@contextlib.contextmanager
def _blocking(mesh: meshlib.Mesh) -> Iterator[Call]:
    with meshlib.grpc.channel("echo:80", mesh=mesh) as channel:
        yield partial(channel.unary_unary(SERIAL), b"", timeout=LIMIT)


@contextlib.contextmanager
def _asyncio(mesh: meshlib.Mesh) -> Iterator[Call]:
    """On a loop of another thread, so that one text of a test does for both."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(2 * LIMIT)

    async def opened() -> Any:
        return meshlib.grpc.aio_channel("echo:80", mesh=mesh)

    channel = on_loop(opened())

    async def call() -> Any:
        return await channel.unary_unary(SERIAL)(b"", timeout=LIMIT)

    try:
        yield lambda: on_loop(call())
    finally:
        on_loop(channel.close())
        on_loop(loop.shutdown_asyncgens())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(params=[_blocking, _asyncio], ids=["sync", "aio"])
def calls(request: pytest.FixtureRequest) -> Callable[[meshlib.Mesh], Any]:
    return request.param  # type: ignore[no-any-return]


def _certificates(call: Call, count: int = 5) -> set[bytes]:
    return {call() for _ in range(count)}


def _renew(rotating: Rotating, gate: Gate) -> Issued:
    """A renewal whose successor has begun, and does not get on."""
    gate.closed = True
    issued = rotating.renew()
    _await(lambda: len(gate.waiting) > 0)
    return issued


@pytest.mark.usefixtures("exchanged_at_once")
def test_no_call_waits_for_a_handshake(rotating: Rotating, gate: Gate, calls: Any) -> None:
    """Calls that begin before the successor is READY go over its predecessor, all others over the successor."""
    with rotating.mesh() as mesh, calls(mesh) as call:
        assert call() == rotating.client.chain
        issued = _renew(rotating, gate)
        assert _certificates(call) == {rotating.client.chain}
        assert _held(mesh) == 2
        assert len(gate.waiting) == 1
        gate.open()
        _await(lambda: call() == issued.chain)
        assert _certificates(call) == {issued.chain}
        _await(lambda: _held(mesh) == 1)
        assert mesh.engine.store.cluster("echo").stats.upstream_cx_total.value == 2


@pytest.mark.usefixtures("exchanged_at_once")
def test_a_connection_that_was_not_used_is_not_exchanged(rotating: Rotating, calls: Any) -> None:
    with rotating.mesh() as mesh, calls(mesh) as call:
        call()
        opened = mesh.engine.store.cluster("echo").stats.upstream_cx_total
        rotating.renew()
        _await(lambda: opened.value == 2 and _held(mesh) == 1)
        rotating.renew()
        _await(lambda: _held(mesh) == 0)
        assert opened.value == 2


@pytest.mark.usefixtures("exchanged_at_once")
def test_a_successor_is_a_connection_like_others(rotating: Rotating, gate: Gate, calls: Any) -> None:
    """Where it would be one too many, the next call opens one, and waits."""
    with rotating.mesh(circuit_breakers=ONE_CONNECTION) as mesh, calls(mesh) as call:
        call()
        gate.closed = True
        issued = rotating.renew()
        _await(lambda: _held(mesh) == 0)
        assert gate.waiting == []
        gate.closed = False
        assert call() == issued.chain


@pytest.mark.usefixtures("exchanged_at_once")
def test_a_successor_that_can_not_be_opened(rotating: Rotating, gate: Gate, calls: Any) -> None:
    """Calls go on over its predecessor until the next renewal, and then as they would without."""
    with rotating.mesh() as mesh, calls(mesh) as call:
        call()
        _renew(rotating, gate)
        (tunnel,) = gate.tunnels
        tunnel._fail(ConnectionResetError("by the test"))
        _await(lambda: _held(mesh) == 1)
        assert _certificates(call) == {rotating.client.chain}
        assert mesh.engine.store.cluster("echo").stats.upstream_cx_connect_fail.value == 1
        gate.closed = False
        issued = rotating.renew()
        _await(lambda: _held(mesh) == 0)
        assert _certificates(call) == {issued.chain}


@pytest.mark.usefixtures("exchanged_at_once")
def test_another_renewal_before_the_successor_is_ready(rotating: Rotating, gate: Gate, calls: Any) -> None:
    """No call begins on a connection that is more than one rotation old."""
    with rotating.mesh() as mesh, calls(mesh) as call:
        call()
        _renew(rotating, gate)
        issued = rotating.renew()
        _await(lambda: _held(mesh) == 1)
        gate.open()
        assert call() == issued.chain


@pytest.mark.usefixtures("exchanged_at_once")
def test_what_is_trusted_changes_before_the_successor_is_ready(
    rotating: Rotating, gate: Gate, calls: Any
) -> None:
    """No call goes over the predecessor, nor over the successor, which were made for the trust of before."""
    with rotating.mesh() as mesh, calls(mesh) as call:
        call()
        _renew(rotating, gate)
        rotating.source.give(rotating.client, TestCA("td.example"))
        gate.open()
        with pytest.raises(meshlib.IdentityError):
            call()
        _await(lambda: _held(mesh) == 0)


@pytest.mark.usefixtures("exchanged_at_once")
def test_closing_with_a_successor_under_way(rotating: Rotating, gate: Gate, calls: Any) -> None:
    with rotating.mesh() as mesh:
        with calls(mesh) as call:
            call()
            _renew(rotating, gate)
        assert _held(mesh) == 0
