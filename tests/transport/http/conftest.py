"""Every scenario runs four times: httpx and httpx2, blocking and asyncio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.transport.http.drivers import DRIVERS, Driver


@pytest.fixture(params=sorted(DRIVERS))
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    made = DRIVERS[request.param]()
    yield made
    made.close()
