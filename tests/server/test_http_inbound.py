"""WSGI and ASGI on real servers: who is let in, who is said to call, and what rotates."""

from __future__ import annotations

import hashlib
import http.client
import json
import socket
import ssl
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from meshlib.identity.material import BundleSet, TrustBundle
from meshlib.identity.source import IdentityUpdate
from meshlib.server.inbound import Inbound
from meshlib.server.xfcc import TrustedPeers
from tests.identity.ca import Issued, TestCA
from tests.server.http_servers import ASGI, SERVERS, serving
from tests.server.identities import CLIENT, OTHER, Identities, allow, client_context, identities
from tests.server.test_inbound import NAME, chain, listener

XFCC = "x-forwarded-client-cert"
DENIED = (403, "RBAC: access denied")


class Caller:
    """Calls one server, each time over a connection of its own unless `client` is used."""

    def __init__(self, port: int, known: Identities, tmp_path: Path) -> None:
        self.port, self._known, self._tmp_path = port, known, tmp_path

    def client(self, issued: Issued | None, *, ca: TestCA | None = None, http2: bool = False) -> httpx.Client:
        context = client_context(self._tmp_path, ca or self._known.ca, issued)
        return httpx.Client(
            verify=context, http2=http2, base_url=f"https://127.0.0.1:{self.port}", timeout=10
        )

    def get(self, issued: Issued | None, path: str = "/", **options: Any) -> httpx.Response:
        with self.client(issued, ca=options.pop("ca", None), http2=options.pop("http2", False)) as client:
            return client.get(path, **options)

    def plain(self, path: str = "/", **options: Any) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=10, **options)


def said(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    found: dict[str, Any] = json.loads(response.text)
    return found


@pytest.mark.parametrize("kind", SERVERS)
def test_strict(kind: str, tmp_path: Path) -> None:
    with identities() as known, serving(kind, Inbound(known.mesh, rbac=allow(CLIENT))) as port:
        caller = Caller(port, known, tmp_path)
        with caller.client(known.ca.issue(CLIENT)) as client:
            for _ in range(3):  # the same connection, where it is kept
                answer = said(client.get("/"))
                assert (answer["id"], answer["tls"], answer["scheme"]) == (CLIENT, True, "https")
                assert answer["address"] == "127.0.0.1"
        refused = caller.get(known.ca.issue(OTHER))
        assert (refused.status_code, refused.text) == DENIED
        assert refused.headers["content-type"] == "text/plain"
        for issued in (None, TestCA("td.example").issue(CLIENT), known.ca.issue(CLIENT, lifetime=-10)):
            with pytest.raises(httpx.TransportError):
                caller.get(issued)
        with pytest.raises(httpx.TransportError):
            caller.plain()


@pytest.mark.parametrize("kind", SERVERS)
def test_who_is_refused_before_a_byte_is_read(kind: str, tmp_path: Path) -> None:
    """OpenSSL takes these chains; ours is the last word, when the handshake ends."""
    with identities() as known, serving(kind, Inbound(known.mesh)) as port:
        caller = Caller(port, known, tmp_path)
        forged = known.federated.issue(CLIENT)
        for issued in (forged, known.ca.issue(CLIENT, OTHER), known.ca.issue(dns=["cli.example"])):
            with pytest.raises(httpx.TransportError):
                caller.get(issued)
        assert said(caller.get(known.federated.issue("spiffe://other.example/x")))["id"] == (
            "spiffe://other.example/x"
        )


@pytest.mark.parametrize("kind", SERVERS)
def test_permissive(kind: str, tmp_path: Path) -> None:
    with identities() as known, serving(kind, Inbound(known.mesh, mode="PERMISSIVE")) as port:
        caller = Caller(port, known, tmp_path)
        encrypted, plain = said(caller.get(known.ca.issue(CLIENT))), said(caller.plain("/a%20b"))
        assert (encrypted["id"], encrypted["tls"], encrypted["scheme"]) == (CLIENT, True, "https")
        assert (plain["id"], plain["tls"], plain["scheme"], plain["path"]) == (None, False, "http", "/a b")
        assert len(caller.plain("/" + "x" * 3000).content) > 3000
        for issued in (None, known.federated.issue(CLIENT)):
            with pytest.raises(httpx.TransportError):
                caller.get(issued)


@pytest.mark.parametrize("kind", SERVERS)
def test_permissive_keeps_plaintext_connections(kind: str) -> None:
    with identities() as known, serving(kind, Inbound(known.mesh, mode="PERMISSIVE")) as port:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            for size in (1, 70_000, 1):
                assert (
                    said(client.post("/", content=b"x" * size) if size > 1 else client.get("/"))["tls"]
                    is False
                )


@pytest.mark.parametrize("kind", SERVERS)
def test_disabled(kind: str, tmp_path: Path) -> None:
    with identities() as known:
        inbound = Inbound(known.mesh, mode="DISABLE", rbac=allow(CLIENT))
        with serving(kind, inbound) as port:
            refused = Caller(port, known, tmp_path).plain()
            assert (refused.status_code, refused.text) == DENIED


@pytest.mark.parametrize("kind", SERVERS)
def test_callers_are_never_mixed_up(kind: str, tmp_path: Path) -> None:
    """Many kept connections of several callers, all at once."""
    with identities() as known, serving(kind, Inbound(known.mesh, mode="PERMISSIVE")) as port:
        caller = Caller(port, known, tmp_path)
        wrong: list[object] = []

        def calls(name: str | None, client: httpx.Client) -> None:
            with client:
                for _ in range(15):
                    found = said(client.get("/"))["id"]
                    if found != name:
                        wrong.append((name, found))

        threads = []
        for name in [None, CLIENT, OTHER, "spiffe://td.example/third"] * 2:
            client = (
                httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
                if name is None
                else caller.client(known.ca.issue(name))
            )
            threads.append(threading.Thread(target=calls, args=(name, client)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@pytest.mark.parametrize("kind", SERVERS)
def test_rotation_without_a_restart(kind: str, tmp_path: Path) -> None:
    """New root, certificates of it on both sides; then the old one is not trusted any longer. Nothing in use is cut."""
    with identities() as known, serving(kind, Inbound(known.mesh)) as port:
        caller = Caller(port, known, tmp_path)
        old, new = known.ca, TestCA("td.example")
        before = old.issue(CLIENT)
        with caller.client(before) as kept:
            assert said(kept.get("/"))["id"] == CLIENT
            known.source.turn(known.update(old, new))
            assert said(caller.get(new.issue(CLIENT), ca=old))["id"] == CLIENT
            known.source.turn(known.update(new, issuer=new))
            assert said(caller.get(new.issue(CLIENT), ca=new))["id"] == CLIENT
            if kind != "werkzeug":  # it closes after each response, unless the application gives a length
                assert said(kept.get("/"))["id"] == CLIENT
            with pytest.raises(httpx.TransportError):
                caller.get(before, ca=new)


@pytest.mark.usefixtures("exchanged_at_once")
@pytest.mark.parametrize("kind", ASGI)
def test_connections_of_an_earlier_certificate_end_with_a_response(kind: str, tmp_path: Path) -> None:
    with identities() as known, serving(kind, Inbound(known.mesh)) as port:
        with Caller(port, known, tmp_path).client(known.ca.issue(CLIENT)) as kept:
            assert "connection" not in kept.get("/").headers
            known.source.turn(known.update())
            assert kept.get("/").headers["connection"] == "close"
            assert "connection" not in kept.get("/").headers


@pytest.mark.usefixtures("exchanged_late")
@pytest.mark.parametrize("kind", ASGI)
def test_connections_of_a_renewed_certificate_may_go_on_for_a_while(kind: str, tmp_path: Path) -> None:
    with identities() as known, serving(kind, Inbound(known.mesh)) as port:
        with Caller(port, known, tmp_path).client(known.ca.issue(CLIENT)) as kept:
            assert "connection" not in kept.get("/").headers
            known.source.turn(known.update())
            assert "connection" not in kept.get("/").headers
            known.source.turn(known.update())
            assert kept.get("/").headers["connection"] == "close", "no connection is older than one renewal"


@pytest.mark.usefixtures("exchanged_at_once")
@pytest.mark.parametrize("kind", ASGI)
def test_an_authority_that_goes_ends_the_connections_of_its_callers(kind: str, tmp_path: Path) -> None:
    new = TestCA()
    with identities() as known, serving(kind, Inbound(known.mesh)) as port:
        own = known.update().svids
        with Caller(port, known, tmp_path).client(known.ca.issue(CLIENT)) as kept:
            closed = []
            for roots in (
                [known.ca.der],
                [known.ca.der, new.der],
                [known.ca.der],
                [new.der, known.ca.der],
                [new.der],
            ):
                bundles = BundleSet([TrustBundle("td.example", roots)])
                known.source.turn(IdentityUpdate(svids=own, bundles=bundles))
                closed.append(kept.get("/").headers.get("connection"))
            assert closed[1:] == [None, None, None, "close"]


def test_http2(tmp_path: Path) -> None:
    with identities() as known, serving("hypercorn", Inbound(known.mesh, rbac=allow(CLIENT))) as port:
        caller = Caller(port, known, tmp_path)
        answer = caller.get(known.ca.issue(CLIENT), http2=True)
        assert answer.http_version == "HTTP/2"
        assert said(answer)["id"] == CLIENT
        assert caller.get(known.ca.issue(OTHER), http2=True).status_code == 403


@pytest.mark.parametrize("kind", SERVERS)
def test_a_session_is_not_resumed(kind: str, tmp_path: Path) -> None:
    """It would say what was verified once, under the trust of that time."""
    with identities() as known, serving(kind, Inbound(known.mesh)) as port:
        context = client_context(tmp_path, known.ca, known.ca.issue(CLIENT))
        reused = []
        session: ssl.SSLSession | None = None
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", port)) as raw:
                with context.wrap_socket(raw, server_hostname="localhost", session=session) as tls:
                    tls.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    while tls.recv(10_000):
                        pass
                    reused.append(tls.session_reused)
                    session = tls.session
        assert reused == [False, False]


# --- x-forwarded-client-cert -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SERVERS)
def test_xfcc_is_seen_from_trusted_callers_only(kind: str, tmp_path: Path) -> None:
    value = 'By=spiffe://td.example/gw;Hash=aa;Subject="CN=user, the";URI=spiffe://td.example/user'
    with identities() as known:
        inbound = Inbound(known.mesh, trusted=TrustedPeers([CLIENT]))
        with serving(kind, inbound) as port:
            caller = Caller(port, known, tmp_path)
            trusted = said(caller.get(known.ca.issue(CLIENT), headers={XFCC: value}))
            assert trusted["forwarded"] == [["spiffe://td.example/user"]]
            assert trusted["xfcc"] == value
            other = said(caller.get(known.ca.issue(OTHER), headers={XFCC: value}))
            assert (other["forwarded"], other["xfcc"]) == ([], None)
            broken = said(caller.get(known.ca.issue(CLIENT), headers={XFCC: 'URI="'}))
            assert (broken["forwarded"], broken["xfcc"]) == ([], None)


@pytest.mark.parametrize("kind", SERVERS)
def test_xfcc_is_made_as_envoy_makes_it(kind: str, tmp_path: Path) -> None:
    with identities() as known:
        inbound = Inbound(
            known.mesh, forward_client_cert="SANITIZE_SET", client_cert_details=("subject", "uri", "dns")
        )
        with serving(kind, inbound) as port:
            issued = known.ca.issue(CLIENT, dns=["cli.example"])
            answer = said(
                Caller(port, known, tmp_path).get(issued, headers={XFCC: "URI=spiffe://td.example/forged"})
            )
    digest = hashlib.sha256(issued.der).hexdigest()
    assert answer["xfcc"] == (
        f"By=spiffe://td.example/ns/a/sa/srv;Hash={digest};"
        f'Subject="CN=workload,O=lab";URI={CLIENT};DNS=cli.example'
    )


# --- what the middleware makes of requests ---------------------------------------------------------------------------


def rules(permission: Any, action: str = "DENY") -> dict[str, Any]:
    policy = {"permissions": [permission], "principals": [{"any": True}]}
    return {"rules": {"action": action, "policies": {"p": policy}}}


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize(
    ("permission", "path", "headers", "refused"),
    [
        ({"url_path": {"path": {"exact": "/admin"}}}, "/admin?x=1", [], True),
        ({"url_path": {"path": {"exact": "/admin"}}}, "/admi%6E", [], False),
        ({"url_path": {"path": {"exact": "/admi%6E"}}}, "/admi%6E", [], True),
        ({"header": {"name": ":path", "string_match": {"exact": "/a?b=%20c"}}}, "/a?b=%20c", [], True),
        ({"header": {"name": ":method", "string_match": {"exact": "GET"}}}, "/", [], True),
        ({"header": {"name": "x-a", "string_match": {"exact": "1"}}}, "/", [("X-A", "1")], True),
        (
            {"header": {"name": "x-a", "string_match": {"exact": "1"}}},
            "/",
            [("x-a", "0"), ("x-a", "1")],
            True,
        ),
        (
            {"header": {"name": ":authority", "string_match": {"exact": "h.example"}}},
            "/",
            [("host", "h.example")],
            True,
        ),
        (
            {"header": {"name": "host", "string_match": {"exact": "h.example"}}},
            "/",
            [("host", "h.example")],
            True,
        ),
    ],
)
def test_rules_see_the_request_as_it_was_sent(
    kind: str, permission: Any, path: str, headers: list[tuple[str, str]], refused: bool
) -> None:
    with serving(kind, Inbound(mode="DISABLE", rbac=rules(permission))) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.putrequest("GET", path, skip_host=any(name == "host" for name, _ in headers))
        for name, value in headers:
            connection.putheader(name, value)
        connection.putheader("connection", "close")
        connection.endheaders()
        response = connection.getresponse()
        response.read()
        connection.close()
        assert response.status == (403 if refused else 200)


@pytest.mark.parametrize("kind", SERVERS)
def test_rules_on_ports_and_addresses(kind: str) -> None:
    with serving(kind, Inbound(mode="DISABLE", rbac=rules({"destination_port": 1}))) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 200
    both: dict[str, Any] = {
        "and_rules": {
            "rules": [
                {"destination_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}},
                {"destination_port_range": {"start": 1024, "end": 65536}},
            ]
        }
    }
    with serving(kind, Inbound(mode="DISABLE", rbac=rules(both))) as port:
        assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 403


@pytest.mark.parametrize("kind", ASGI)
def test_grpc_over_asgi_gets_the_grpc_form(kind: str) -> None:
    with serving(kind, Inbound(mode="DISABLE", rbac=rules({"any": True}))) as port:
        answer = httpx.post(f"http://127.0.0.1:{port}/s/m", headers={"content-type": "application/grpc"})
    assert answer.status_code == 200
    assert answer.headers["grpc-status"] == "7"
    assert answer.headers["grpc-message"] == "RBAC: access denied"


def test_the_body_of_a_wsgi_response_still_knows_who_calls(tmp_path: Path) -> None:
    with identities() as known, serving("werkzeug", Inbound(known.mesh)) as port:
        assert said(Caller(port, known, tmp_path).get(known.ca.issue(CLIENT), "/slow"))["id"] == CLIENT


def from_here(action: str) -> dict[str, Any]:
    loopback = {"direct_remote_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}}
    policy = {"permissions": [{"any": True}], "principals": [loopback]}
    return {"rules": {"action": action, "policies": {"p": policy}}}


def counters(known: Identities, prefix: str) -> dict[str, float]:
    found = ((each.name, getattr(each, "value", 0)) for each in known.mesh.stats)
    return {name: value for name, value in found if value and name.startswith(prefix)}


@pytest.mark.parametrize("kind", SERVERS)
def test_network_filters_close_connections(kind: str, tmp_path: Path) -> None:
    """Before anything is read; once for each connection."""
    resources = [listener(chain(network=allow(CLIENT)))]
    with identities(config=[{"resources": resources}]) as known:
        with serving(kind, Inbound(known.mesh, listener=NAME, mode="STRICT")) as port:
            caller = Caller(port, known, tmp_path)
            with pytest.raises(httpx.TransportError):
                caller.get(known.ca.issue(OTHER))
            assert counters(known, "net.") == {"net.rbac.denied": 1}
            with caller.client(known.ca.issue(CLIENT)) as client:
                assert said(client.get("/"))["id"] == CLIENT
                assert counters(known, "net.") == {"net.rbac.denied": 1, "net.rbac.allowed": 1}
        assert counters(known, "net.") == {"net.rbac.denied": 1, "net.rbac.allowed": 1}


@pytest.mark.parametrize("kind", SERVERS)
def test_network_filters_of_plaintext_connections(kind: str, tmp_path: Path) -> None:
    resources = [listener(chain(network=allow(CLIENT)))]
    with identities(config=[{"resources": resources}]) as known:
        with serving(kind, Inbound(known.mesh, listener=NAME, mode="PERMISSIVE")) as port:
            caller = Caller(port, known, tmp_path)
            with pytest.raises(httpx.TransportError):
                caller.plain()
            assert said(caller.get(known.ca.issue(CLIENT)))["id"] == CLIENT


@pytest.mark.parametrize("kind", SERVERS)
def test_network_filters_on_addresses(kind: str, tmp_path: Path) -> None:
    """A socket tells them at once, an event loop with the first request: that is refused then."""
    resources = [listener(chain(network=from_here("DENY")))]
    with identities(config=[{"resources": resources}]) as known:
        with serving(kind, Inbound(known.mesh, listener=NAME, mode="STRICT")) as port:
            caller = Caller(port, known, tmp_path)
            if kind in ASGI:
                refused = caller.get(known.ca.issue(CLIENT))
                assert (refused.status_code, refused.text) == DENIED
            else:
                with pytest.raises(httpx.TransportError):
                    caller.get(known.ca.issue(CLIENT))
        assert counters(known, "net.") == {"net.rbac.denied": 1}


@pytest.mark.parametrize("kind", SERVERS)
def test_an_address_that_network_filters_allow(kind: str, tmp_path: Path) -> None:
    resources = [listener(chain(network=from_here("ALLOW")))]
    with identities(config=[{"resources": resources}]) as known:
        with serving(kind, Inbound(known.mesh, listener=NAME, mode="STRICT")) as port:
            assert said(Caller(port, known, tmp_path).get(known.ca.issue(CLIENT)))["id"] == CLIENT
        assert counters(known, "net.") == {"net.rbac.allowed": 1}
