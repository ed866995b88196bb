"""The interoperability test cases through an asyncio channel: plain grpcio's, which shows that a case is right, and the mesh's,
in plaintext and with mutual TLS.

test_sync.py says which published cases have no place here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import pytest

import meshlib.grpc
from tests.transport.grpc.interop.aio_cases import CASES
from tests.transport.grpc.interop.conftest import HOST
from tests.transport.grpc.interop.tap import Tap

Make = Callable[[], grpc.aio.Channel]


@pytest.fixture(params=["grpcio", "mesh", "secure_mesh"])
def make(request: pytest.FixtureRequest, tap: Tap) -> Make:
    if request.param == "grpcio":
        return lambda: grpc.aio.insecure_channel(f"ipv4:{tap.address}")
    mesh = request.getfixturevalue(request.param)
    return lambda: meshlib.grpc.aio_channel(HOST, mesh=mesh)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_case(case: Callable[[grpc.aio.Channel, Tap], Awaitable[None]], make: Make, tap: Tap) -> None:
    async def run() -> None:
        async with make() as channel:
            await case(channel, tap)

    asyncio.run(run())
