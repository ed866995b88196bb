"""Connections are described where a log shows them, by each way in which HTTP goes out, and nowhere else."""

from __future__ import annotations

import asyncio
import http.client
import re
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.engine.call import Call
from meshlib.engine.observer import CallObserver, InboundCall
from meshlib.httpx import AsyncMeshTransport, MeshTransport
from meshlib.identity.names import Name
from meshlib.observe.access_log.addresses import host_and_port
from meshlib.observe.access_log.certificates import NOTHING, escaped_pem, read
from meshlib.observe.access_log.inbound import InboundFacts
from meshlib.observe.access_log.outbound import CallFacts
from meshlib.resources.access_log import (
    NAMED_FORMATS,
    JsonFormat,
    JsonList,
    JsonObject,
    LogFormat,
    OpenTelemetryFormat,
    TextFormat,
    shows_connections,
)
from meshlib.resources.format import parse
from meshlib.resources.tls import SanType
from meshlib.server.inbound import Inbound
from meshlib.testing import Hang, Reset, Upstream, service
from meshlib.testing import serve as serve_config
from meshlib.transport.http.description import TlsDescription
from tests.identity.ca import TestCA
from tests.observe.access_log.envoy import file_log
from tests.observe.access_log.made import MadeFacts
from tests.observe.access_log.test_formatter import text
from tests.server import http_servers
from tests.server.identities import CLIENT, SERVER, client_context, identities
from tests.transport.http.h2_server import H2Server
from tests.transport.http.support import serve

LOCAL = "%UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_LOCAL_PORT% %UPSTREAM_CONNECTION_ID% %UPSTREAM_CONNECTION_IDS_ATTEMPTED%\n"
QUIET: dict[str, Any] = {"tracing": False, "metrics": False, "recent_calls": 0}

Get = Callable[[meshlib.Mesh, int], None]


def blocking(mesh: meshlib.Mesh, times: int) -> None:
    with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
        for _ in range(times):
            client.get("http://svc/a")


def streamed(mesh: meshlib.Mesh, times: int) -> None:
    with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
        for _ in range(times):
            client.post("http://svc/a", content=iter([b"1", b"2"]))


def with_asyncio(mesh: meshlib.Mesh, times: int) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh, local_reply="response")) as client:
            for _ in range(times):
                await client.get("http://svc/a")

    asyncio.run(run())


WAYS: dict[str, Get] = {"blocking": blocking, "streamed": streamed, "asyncio": with_asyncio}


def logged(
    config: dict[str, Any], get: Get, folder: Path, *, times: int = 1, shown: str = LOCAL
) -> list[list[str]]:
    """The words of each line."""
    log = meshlib.AccessLog(format=shown, to=folder / "log", calls="outbound")
    with meshlib.Mesh(config=[config], observe=meshlib.Observe(access_log=[log], **QUIET)) as mesh:
        get(mesh, times)
    return [line.split(" ") for line in (folder / "log").read_text().splitlines()]


@pytest.mark.parametrize("get", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/2"])
def test_the_end_that_is_here(protocol: str, get: Get, tmp_path: Path) -> None:
    seen: list[str] = []
    h2 = H2Server()

    def script(sock: socket.socket, number: int) -> None:
        host, port = sock.getpeername()
        seen.append(f"{host}:{port}")
        if protocol == "HTTP/2":
            h2(sock, number)
            return
        data = b""
        while part := sock.recv(65536):
            data += part
            while match := re.search(rb"\r\n\r\n(1\r\n1\r\n1\r\n2\r\n0\r\n\r\n)?", data):
                if b"chunked" in data and match[1] is None:
                    break
                data = data[match.end() :]
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    with serve(script) as server:
        config = service("svc", f"127.0.0.1:{server.port}")
        if protocol == "HTTP/2":
            config["resources"][2]["http2_protocol_options"] = {}
        lines = logged(config, get, tmp_path, times=2)
    first, second = lines
    assert first == second
    assert first[0] == seen[0]
    assert first[1] == seen[0].rpartition(":")[2]
    assert first[2] == first[3]
    assert int(first[2]) > 0
    assert len(seen) == 1


@pytest.mark.parametrize("get", WAYS.values(), ids=WAYS)
def test_attempts_that_are_given_up_had_a_connection(get: Get, tmp_path: Path) -> None:
    """The first is reset, the second is waited for in vain."""
    with Upstream([Reset(), Hang()]) as upstream:
        config = service("svc", upstream.address)
        route = config["resources"][1]["virtual_hosts"][0]["routes"][0]["route"]
        route |= {"timeout": "0.3s", "retry_policy": {"retry_on": "reset", "num_retries": 1}}
        ((local, _, number, numbers),) = logged(config, get, tmp_path)
    assert local.startswith("127.0.0.1:")
    first, second = numbers.split(",")
    assert first != second == number


@pytest.mark.parametrize(("get", "whole"), [(blocking, True), (with_asyncio, True), (streamed, False)])
def test_when_the_request_was_sent(get: Get, whole: bool, tmp_path: Path) -> None:
    shown = (
        "%COMMON_DURATION(DS_RX_BEG:US_TX_BEG:us)% %COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%"
        " %COMMON_DURATION(US_TX_BEG:US_TX_END)% %REQUEST_TX_DURATION% %UPSTREAM_CONNECTION_POOL_READY_DURATION%\n"
    )
    with Upstream() as upstream:
        ((until_sent, until_answered, *rest),) = logged(
            service("svc", upstream.address), get, tmp_path, shown=shown
        )
    assert int(until_sent) > 0
    assert int(until_answered) > 0
    assert all((word != "-") is whole for word in rest[:2])
    assert rest[2].isdecimal()


@pytest.mark.parametrize("get", WAYS.values(), ids=WAYS)
def test_when_the_connection_was_opened(get: Get, tmp_path: Path) -> None:
    """That of a second call was open before it began."""
    shown = (
        "%COMMON_DURATION(DS_RX_BEG:US_CX_BEG:us)% %COMMON_DURATION(US_CX_BEG:US_CX_END:us)%"
        " %COMMON_DURATION(US_CX_END:US_HS_END)%\n"
    )
    with Upstream() as upstream:
        first, second = logged(service("svc", upstream.address), get, tmp_path, shown=shown, times=2)
    assert int(first[0]) > 0
    assert int(first[1]) > 0
    assert first[2] == "-"
    assert second == ["-", first[1], "-"]


def test_no_connection(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        config = service("svc", f"127.0.0.1:{closed.getsockname()[1]}")
        assert logged(config, blocking, tmp_path) == [["-", "-", "0", "-"]]


def test_a_unix_socket_has_no_address_at_this_end(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()

        def answer() -> None:
            sock, _ = listening.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
                sock.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        config = service("svc", "127.0.0.1:1")
        endpoint = config["resources"][3]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        endpoint["address"] = {"pipe": {"path": path}}
        ((local, port, number, _),) = logged(config, blocking, tmp_path)
        thread.join()
    assert (local, port) == ("-", "-")
    assert number != "0"


class Kept(CallObserver):
    def __init__(self) -> None:
        self.connections: list[object] = []

    def over(self, call: Call, now: float) -> None:
        self.connections += [attempt.connection for attempt in call.attempts]


def of_listener(upstream: Upstream, shown: str) -> dict[str, Any]:
    config = service("svc", upstream.address)
    config["resources"][0]["api_listener"]["api_listener"]["access_log"] = [
        file_log("/dev/null", log_format={"text_format_source": {"inline_string": shown}})
    ]
    return config


@pytest.mark.parametrize(
    ("observe", "shown", "expected"),
    [
        ({}, LOCAL, True),
        ({}, "%UPSTREAM_HOST% %DOWNSTREAM_LOCAL_ADDRESS%\n", False),
        ({"access_log": "envoy"}, "", False),
        ({"access_log": "istio"}, "", True),
        ({"access_log": "json"}, "", True),
        ({"access_log": meshlib.AccessLog(format=LOCAL, calls="inbound")}, "", False),
    ],
)
def test_nothing_is_kept_that_no_log_shows(observe: dict[str, Any], shown: str, expected: bool) -> None:
    kept = Kept()
    with Upstream() as upstream:
        config = of_listener(upstream, shown) if shown else service("svc", upstream.address)
        with meshlib.Mesh(config=[config], observe=meshlib.Observe(**QUIET, **observe)) as mesh:
            mesh.start()
            mesh.engine.observe(kept)
            blocking(mesh, 1)
            with_asyncio(mesh, 1)
            assert mesh.engine.shows_connections is expected
    assert len(kept.connections) == 2
    assert all((connection is not None) is expected for connection in kept.connections)


def test_the_first_call_of_a_new_listener_is_described(tmp_path: Path) -> None:
    """As it comes from a control plane: what its log shows is known before a call can have it."""
    with Upstream() as upstream, serve_config(of_listener(upstream, LOCAL)) as control_plane:
        found = Kept()
        with meshlib.Mesh(bootstrap=control_plane.bootstrap(), observe=meshlib.Observe(**QUIET)) as mesh:
            mesh.start()
            mesh.engine.observe(found)
            blocking(mesh, 1)
    assert found.connections[0] is not None


NESTED = JsonObject((("a", JsonList((1.0, JsonObject((("b", parse("<%UPSTREAM_TLS_VERSION%>")),))))),))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (NAMED_FORMATS["envoy"], False),
        (NAMED_FORMATS["istio"], True),
        (TextFormat(format=parse("%UPSTREAM_PEER_URI_SAN%")), True),
        (JsonFormat(root=NESTED), True),
        (JsonFormat(root=JsonObject((("a", JsonList((parse("%UPSTREAM_HOST%"), None, True))),))), False),
        (OpenTelemetryFormat(), False),
        (OpenTelemetryFormat(body=parse("%UPSTREAM_LOCAL_PORT%")), True),
        (OpenTelemetryFormat(attributes=NESTED), True),
        (TextFormat(format=parse("%COMMON_DURATION(DS_RX_BEG:DS_TX_END)%")), False),
        (TextFormat(format=parse("%COMMON_DURATION(US_TX_BEG:US_RX_BEG)%")), True),
        (TextFormat(format=parse("%COMMON_DURATION(DS_RX_BEG:US_CX_END:us)%")), True),
    ],
)
def test_which_formats_show_connections(shown: LogFormat, expected: bool) -> None:
    assert shows_connections(shown) is expected


# --- certificates and addresses ------------------------------------------------------------------------------------------


def tls(**given: Any) -> TlsDescription:
    values: dict[str, Any] = {
        "version": "TLSv1.3", "cipher": "TLS_AES_128_GCM_SHA256", "server_name": "",
        "peer": (), "own": b"",
    }  # fmt: skip
    return TlsDescription(**values | given)


def test_operators_of_certificates() -> None:
    ca = TestCA("td.example")
    peer = ca.issue("spiffe://td.example/a", "https://b", dns=["a.example", "b.example"], ips=["10.0.0.1"])
    own = ca.issue("spiffe://td.example/me", emails=["me@td.example"])
    facts = MadeFacts(
        upstream_tls=tls(peer=(peer.der, ca.der), own=own.der, server_name="a.example"),
        downstream_tls=tls(peer=(peer.der, ca.der), own=own.der, server_name="here.example"),
    )
    assert text("%UPSTREAM_TLS_VERSION% %UPSTREAM_TLS_CIPHER% %UPSTREAM_TLS_SESSION_ID%", facts) == (
        "TLSv1.3 TLS_AES_128_GCM_SHA256 -"
    )
    assert text("%UPSTREAM_SERVER_NAME% %REQUESTED_SERVER_NAME%", facts) == "a.example here.example"
    for side in ("UPSTREAM", "DOWNSTREAM"):
        assert text(f"%{side}_PEER_URI_SAN% %{side}_LOCAL_URI_SAN%", facts) == (
            "spiffe://td.example/a,https://b spiffe://td.example/me"
        )
        assert text(f"%{side}_PEER_DNS_SAN% %{side}_LOCAL_DNS_SAN% %{side}_PEER_IP_SAN%", facts) == (
            "a.example,b.example - 10.0.0.1"
        )
    assert text("%DOWNSTREAM_LOCAL_EMAIL_SAN%|%DOWNSTREAM_PEER_EMAIL_SAN%", facts) == "me@td.example|-"
    both = f"{read(peer.der).sha256},{read(ca.der).sha256}"
    assert text("%DOWNSTREAM_PEER_CHAIN_FINGERPRINTS_256%", facts) == both
    assert text("%DOWNSTREAM_PEER_ISSUER_FINGERPRINT_256%", facts) == read(ca.der).sha256


def test_no_certificate() -> None:
    facts = MadeFacts(downstream_tls=tls())
    for name in ("PEER_SUBJECT", "LOCAL_SUBJECT", "PEER_CERT", "PEER_CERT_V_START", "PEER_CHAIN_SERIALS"):
        assert text(f"%DOWNSTREAM_{name}%", facts) == "-"
        assert text(f"%DOWNSTREAM_{name}%", MadeFacts()) == "-"
    assert text("%DOWNSTREAM_PEER_ISSUER_SERIAL%", facts) == "-"


def test_certificates_that_can_not_be_read() -> None:
    assert read(b"nonsense") == NOTHING
    facts = MadeFacts(downstream_tls=tls(peer=(b"nonsense",)))
    assert text("%DOWNSTREAM_PEER_SUBJECT% %DOWNSTREAM_PEER_CERT_V_END%", facts) == "- -"


def test_a_certificate() -> None:
    issued = TestCA("td.example").issue("spiffe://td.example/a", dns=["a", "b"], subject="x y")
    found = read(issued.der)
    assert found.sans(SanType.DNS) == "a,b"
    assert found.names[0] == Name(SanType.URI, "spiffe://td.example/a")
    assert int(found.serial, 16) == issued.certificate.serial_number
    assert len(found.serial) % 2 == 0
    assert found.not_after == issued.not_after
    assert escaped_pem(issued.der).startswith("-----BEGIN%20CERTIFICATE-----%0A")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.1.2.3:5", ("10.1.2.3", 5)),
        ("[::1]:5", ("::1", 5)),
        ("/run/socket", ("/run/socket", None)),
        ("10.1.2.3", ("10.1.2.3", None)),
        ("2001:db8::1", ("2001:db8::1", None)),
        (None, (None, None)),
    ],
)
def test_addresses(address: str | None, expected: tuple[str | None, int | None]) -> None:
    assert host_and_port(address) == expected


@pytest.mark.parametrize(
    ("bits", "address", "expected"),
    [
        ("8", "10.1.2.3:5", "10.0.0.0/8"),
        ("64", "[2001:db8::1:2]:5", "2001:db8::/64"),
        ("33", "10.1.2.3:5", "-"),
        ("8", "/run/socket", "-"),
        ("8", None, "-"),
    ],
)
def test_networks(bits: str, address: str | None, expected: str) -> None:
    assert text(f"%DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT({bits})%", MadeFacts(local=address)) == expected


@pytest.mark.parametrize(
    ("argument", "headers", "sni", "expected"),
    [
        ("", [], "sni.example", "sni.example"),
        ("", [], "", "-"),
        ("(SNI_FIRST)", [], "", "svc"),
        ("(SNI_FIRST:ORIG)", [], "", "-"),
        ("(HOST_FIRST)", [("x-envoy-original-host", "was.example:80")], "sni.example", "was.example"),
        ("(HOST_FIRST:HOST)", [("x-envoy-original-host", "was.example")], "sni.example", "svc"),
        ("(HOST_FIRST:ORIG)", [], "sni.example", "sni.example"),
    ],
)
def test_the_server_name_that_was_asked_for(
    argument: str, headers: list[tuple[str, str]], sni: str, expected: str
) -> None:
    facts = MadeFacts(headers, downstream_tls=tls(server_name=sni))
    assert text(f"%REQUESTED_SERVER_NAME{argument}%", facts) == expected


def inbound(**given: Any) -> InboundFacts:
    values: dict[str, Any] = {
        "method": "GET", "scheme": "http", "authority": "svc", "path": "/", "headers": (), "protocol": "HTTP/1.1",
        "remote": "10.0.0.9:1234", "started": 0.0, "epoch": 0.0,
    }  # fmt: skip
    return InboundFacts(InboundCall(**values | given))


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ("10.0.0.9", "10.0.0.9:1234"),
        ("", "10.0.0.9:1234"),
        ("192.0.2.1", "192.0.2.1:0"),
        ("2001:db8::1", "[2001:db8::1]:0"),
    ],
)
def test_who_called_behind_a_proxy(client: str, expected: str) -> None:
    facts = inbound(client=client)
    assert (facts.remote, facts.direct) == (expected, "10.0.0.9:1234")


def test_a_caller_without_a_port() -> None:
    assert inbound(remote="::1", client="::1").remote == "::1"


def test_a_request_of_which_no_arrival_is_known() -> None:
    facts = inbound()
    assert (facts.local, facts.downstream_tls, facts.metadata("ROUTE")) == (None, None, None)


def test_facts_of_both_directions_are_told_by_the_same_names() -> None:
    """What one has the other has too, and tests make up all of it."""
    names = [{name for name in dir(facts) if not name.startswith("_")} for facts in (CallFacts, InboundFacts)]
    assert names[0] == names[1]
    made = MadeFacts()
    assert all(hasattr(made, name) for name in names[0])


# --- servers -------------------------------------------------------------------------------------------------------------

SERVED = (
    "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_PEER_URI_SAN% %DOWNSTREAM_LOCAL_URI_SAN% %DOWNSTREAM_LOCAL_ADDRESS%"
    " %REQUESTED_SERVER_NAME%\n"
)


@pytest.mark.parametrize("kind", sorted(http_servers.SERVERS))
def test_each_server_tells_its_connections(kind: str, tmp_path: Path) -> None:
    log = meshlib.AccessLog(format=SERVED, to=tmp_path / "log", calls="inbound")
    observe = meshlib.Observe(access_log=[log], **QUIET)
    with identities(observe=observe) as made:
        context = client_context(tmp_path, made.ca, made.ca.issue(CLIENT))
        with http_servers.SERVERS[kind](Inbound(made.mesh)) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.sock = context.wrap_socket(
                socket.create_connection(("127.0.0.1", port)), server_hostname="srv.example"
            )
            connection.request("GET", "/", headers={"connection": "close"})
            assert connection.getresponse().read()
            connection.close()
    line = (tmp_path / "log").read_text()
    assert line == f"TLSv1.3 {CLIENT} {SERVER} 127.0.0.1:{port} srv.example\n"
