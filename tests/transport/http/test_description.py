"""What is noted of connections where an access log shows them."""

from __future__ import annotations

import ssl
from typing import Any

import pytest

from meshlib.engine.call import Call
from meshlib.engine.observer import CallObserver
from meshlib.resources.cluster import HttpProtocol
from meshlib.resources.tls import TlsVersion
from meshlib.transport.http.description import Description
from tests.transport.http.drivers import Driver
from tests.transport.http.h2_server import H2Server
from tests.transport.http.secure import World


class Kept(CallObserver):
    """The connection of each attempt, when the call is over."""

    def __init__(self) -> None:
        self.found: list[Any] = []

    def over(self, call: Call, now: float) -> None:
        self.found += [attempt.connection for attempt in call.attempts]


@pytest.mark.parametrize("protocol", [HttpProtocol.HTTP1, HttpProtocol.HTTP2])
@pytest.mark.parametrize("version", [TlsVersion.TLSv1_2, TlsVersion.TLSv1_3])
def test_tls(driver: Driver, version: TlsVersion, protocol: HttpProtocol) -> None:
    world, kept = World(), Kept()
    script: Any = {} if protocol is HttpProtocol.HTTP1 else {"script": H2Server()}
    with world.serve(**script) as server:
        mesh = world.mesh(server.port, tls=world.tls(maximum=version, sni="srv.example"), protocol=protocol)
        mesh.engine.observe(kept)
        driver.open(mesh)
        driver.get()
        mesh.engine.shows_connections = True
        for _ in range(2):
            driver.get()
        driver.close_client()
    before, first, second = kept.found
    assert before is None
    assert second is first
    assert isinstance(first, Description)
    assert first.local is not None
    assert first.local.startswith("127.0.0.1:")
    tls = first.tls
    assert tls is not None
    assert first.secured is not None
    assert 0.0 < first.begun <= first.opened <= first.secured
    assert tls.version == ("TLSv1.2" if version is TlsVersion.TLSv1_2 else "TLSv1.3")
    assert tls.server_name == "srv.example"
    assert tls.peer[0] == world.server.der
    assert tls.own == world.client.der
    assert "AES" in tls.cipher or "CHACHA20" in tls.cipher


def test_no_certificate_of_our_own(driver: Driver) -> None:
    world, kept = World(), Kept()
    with world.serve(verify=ssl.CERT_NONE) as server:
        mesh = world.mesh(server.port, tls=world.tls(shows=False))
        mesh.engine.observe(kept)
        mesh.engine.shows_connections = True
        driver.open(mesh)
        driver.get()
        driver.close_client()
    assert kept.found[0].tls.own == b""
    assert kept.found[0].tls.server_name == ""
