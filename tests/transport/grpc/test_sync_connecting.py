"""Calls that end while their connection opens: the endpoint takes it and never speaks."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

import meshlib
from meshlib.grpc import channel
from tests.transport.grpc.support import config, mesh_for

CALLS: dict[str, Callable[[grpc.Channel], Any]] = {
    "future": lambda chan: chan.unary_unary("/test.Echo/echo").future(b""),
    "unary_stream": lambda chan: chan.unary_stream("/test.Echo/count")(b""),
    "stream_unary": lambda chan: chan.stream_unary("/test.Echo/join").future(iter([b""])),
    "stream_stream": lambda chan: chan.stream_stream("/test.Echo/each")(iter([b""])),
}


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


def held(mesh: meshlib.Mesh) -> tuple[int, int, int, int]:
    permits = mesh.engine.store.cluster("echo").default
    return permits.connections, permits.pending, permits.requests, permits.retries


@pytest.mark.parametrize("kind", CALLS)
@pytest.mark.parametrize("how", ["cancelled", "dropped", "closed", "mesh"])
@pytest.mark.parametrize("accepted", [False, True])
def test_a_call_that_ends_while_it_connects(
    silent: socket.socket, kind: str, how: str, accepted: bool
) -> None:
    host, port = silent.getsockname()
    with mesh_for(config(f"{host}:{port}", cluster={"connect_timeout": "60s"})) as mesh:
        with channel("echo:80", mesh=mesh) as chan:
            call = CALLS[kind](chan)
            taken = silent.accept()[0] if accepted else None
            if how == "cancelled":
                assert call.cancel()
                assert call.cancelled()
            elif how == "dropped":
                del call
                gc.collect()
            elif how == "mesh":
                mesh.close()
        if how != "dropped":
            assert call.code() is grpc.StatusCode.CANCELLED
        while any(held(mesh)):  # one that was dropped ends a little later
            time.sleep(0.001)
        if taken is not None:
            taken.close()
