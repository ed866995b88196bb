"""gRPC servers, blocking and asyncio: who calls, who may, and the modes of a port."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import meshlib
from meshlib.identity.material import BundleSet, TrustBundle
from meshlib.identity.source import IdentityUpdate
from meshlib.resources.tls import CertificateValidation, CommonTls, DownstreamTls, TlsCertificate
from meshlib.server.grpc import AsyncMeshInterceptor, MeshInterceptor, listen
from meshlib.server.inbound import Inbound
from meshlib.server.peer import InboundPeer
from tests.identity.ca import Issued
from tests.server.identities import CLIENT, OTHER, SERVER, Identities, allow, identities
from tests.server.servers import ARITIES, SERVICE, asyncio_handlers, blocking_handlers, idle

KINDS = ("blocking", "asyncio", "asyncio with blocking handlers")


@contextlib.contextmanager
def serving(
    kind: str, inbound: Inbound, look: Callable[[], object], address: str = "127.0.0.1:0"
) -> Iterator[int]:
    make = asyncio_handlers if kind == "asyncio" else blocking_handlers
    handler = grpc.method_handlers_generic_handler(SERVICE, make(look))
    with ThreadPoolExecutor(1) as executor:  # one thread: what a call leaves in it, the next one would find
        if kind == "blocking":
            server = grpc.server(executor, interceptors=[MeshInterceptor(inbound)])
            server.add_generic_rpc_handlers((handler,))
            with listen(server, address, inbound) as listening:
                server.start()
                try:
                    yield listening.port
                finally:
                    server.stop(None).wait()
            return
        with asyncio_serving(handler, inbound, address, executor) as port:
            yield port


@contextlib.contextmanager
def asyncio_serving(
    handler: Any, inbound: Inbound, address: str, executor: ThreadPoolExecutor
) -> Iterator[int]:
    ready, port = threading.Event(), 0
    loop = asyncio.new_event_loop()
    over = asyncio.Event()

    async def run() -> None:
        nonlocal port
        server = grpc.aio.server(executor, interceptors=[AsyncMeshInterceptor(inbound)])
        server.add_generic_rpc_handlers((handler,))
        with listen(server, address, inbound) as listening:
            port = listening.port
            await server.start()
            ready.set()
            await over.wait()
            await server.stop(None)
            await idle(executor)

    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield port
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def ask(
    port: int, known: Identities, issued: Issued | None, arity: str = "unary_unary", *, tls: bool = True
) -> Any:
    """The answers; raises grpc.RpcError."""
    credentials = grpc.ssl_channel_credentials(
        known.ca.pem, None if issued is None else issued.key, None if issued is None else issued.chain
    )
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    target = f"127.0.0.1:{port}"
    made = (
        grpc.secure_channel(target, credentials, options)
        if tls
        else grpc.insecure_channel(target, options[1:])
    )
    with made as channel:
        call = getattr(channel, arity)(f"/{SERVICE}/{arity}", _registered_method=False)
        answer = call(iter([b""]) if arity.startswith("stream") else b"", timeout=15)
        return list(answer) if arity.endswith("stream") else [answer]


def refusal(error: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str]:
    return error.value.code(), error.value.details()


@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_of_a_handler_knows_who_calls(kind: str, arity: str) -> None:
    seen: list[InboundPeer] = []
    with identities() as known:
        issued = known.ca.issue(CLIENT)
        with serving(
            kind, Inbound(known.mesh, rbac=allow(CLIENT)), lambda: seen.append(meshlib.current_peer())
        ) as port:
            ask(port, known, issued, arity)
    assert seen
    assert {str(peer.spiffe_id) for peer in seen} == {CLIENT}
    assert seen[0].certificate == issued.der
    assert seen[0].uri_sans == (CLIENT,)
    assert seen[0].subject == "CN=workload,O=lab"
    assert seen[0].address == "127.0.0.1"
    assert meshlib.current_peer().spiffe_id is None


@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_whoever_may_not_call_meets_no_handler(kind: str, arity: str) -> None:
    seen: list[object] = []
    with identities() as known:
        with serving(kind, Inbound(known.mesh, rbac=allow(CLIENT)), lambda: seen.append(1)) as port:
            with pytest.raises(grpc.RpcError) as error:
                ask(port, known, known.ca.issue(OTHER), arity)
            assert refusal(error) == (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied")
    assert seen == []


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_federated_domain_can_not_vouch_for_ours(kind: str) -> None:
    """C-core would take it: its roots are those of both domains."""
    seen: list[object] = []
    with identities() as known:
        with serving(kind, Inbound(known.mesh), lambda: seen.append(meshlib.current_peer())) as port:
            with pytest.raises(grpc.RpcError) as error:
                ask(port, known, known.federated.issue(CLIENT))
            assert refusal(error) == (
                grpc.StatusCode.UNAUTHENTICATED,
                "the caller's certificate is not accepted",
            )
            assert seen == []
            assert ask(port, known, known.federated.issue("spiffe://other.example/x")) == [b""]
            assert len(seen) == 1


@pytest.mark.parametrize("kind", KINDS[:2])
def test_two_ids_are_none(kind: str) -> None:
    with identities() as known:
        with serving(kind, Inbound(known.mesh), lambda: None) as port:
            with pytest.raises(grpc.RpcError) as error:
                ask(port, known, known.ca.issue(CLIENT, OTHER))
            assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("kind", KINDS[:2])
def test_strict(kind: str) -> None:
    with identities() as known:
        with serving(kind, Inbound(known.mesh, mode="STRICT"), lambda: None) as port:
            for issued, tls in ((None, True), (None, False)):
                with pytest.raises(grpc.RpcError) as error:
                    ask(port, known, issued, tls=tls)
                assert error.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("kind", KINDS[:2])
def test_permissive(kind: str) -> None:
    seen: list[tuple[str, bool, str]] = []

    def look() -> None:
        peer = meshlib.current_peer()
        seen.append((str(peer.spiffe_id), peer.tls, peer.address))

    with identities() as known:
        with serving(kind, Inbound(known.mesh, mode="PERMISSIVE"), look) as port:
            ask(port, known, known.ca.issue(CLIENT))
            ask(port, known, None, tls=False)
            with pytest.raises(grpc.RpcError):
                ask(port, known, None)
    assert seen == [(CLIENT, True, "127.0.0.1"), ("None", False, "127.0.0.1")]


@pytest.mark.parametrize("kind", KINDS[:2])
def test_disabled(kind: str) -> None:
    with identities() as known:
        with serving(kind, Inbound(known.mesh, mode="DISABLE"), lambda: None) as port:
            assert ask(port, known, None, tls=False) == [b""]
            with pytest.raises(grpc.RpcError):
                ask(port, known, known.ca.issue(CLIENT))


def test_rules_on_addresses_headers_and_methods() -> None:
    policy = {
        "permissions": [
            {
                "and_rules": {
                    "rules": [
                        {"url_path": {"path": {"exact": f"/{SERVICE}/unary_unary"}}},
                        {"header": {"name": ":method", "string_match": {"exact": "POST"}}},
                        {"header": {"name": "content-type", "string_match": {"exact": "application/grpc"}}},
                        {"header": {"name": ":authority", "string_match": {"exact": "localhost"}}},
                        {"destination_port": 8443},
                        {"requested_server_name": {"exact": "localhost"}},
                    ]
                }
            }
        ],
        "principals": [{"direct_remote_ip": {"address_prefix": "127.0.0.0", "prefix_len": 8}}],
    }
    rbac = {"rules": {"policies": {"p": policy}}}
    with identities() as known:
        inbound = Inbound(known.mesh, rbac=rbac, address="10.0.0.1:8443")
        with serving("blocking", inbound, lambda: None) as port:
            issued = known.ca.issue(CLIENT)
            assert ask(port, known, issued) == [b""]
            with pytest.raises(grpc.RpcError) as error:
                ask(port, known, issued, "unary_stream")
            assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE"])
def test_rotation_without_a_restart(mode: Any) -> None:
    """New root, certificates of it on both sides; then the old one is not trusted any longer."""
    with identities() as known, serving("blocking", Inbound(known.mesh, mode=mode), lambda: None) as port:
        old, new = known.ca, type(known.ca)("td.example")
        before = old.issue(CLIENT)
        assert ask(port, known, before) == [b""]
        known.source.turn(known.update(old, new))
        assert ask(port, known, before) == [b""]
        assert ask(port, known, new.issue(CLIENT)) == [b""]
        known.source.turn(known.update(new, issuer=new))
        known.ca = new
        assert ask(port, known, new.issue(CLIENT)) == [b""]
        with pytest.raises(grpc.RpcError) as error:
            ask(port, known, before)
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


def test_an_address_that_can_not_be_had() -> None:
    with identities() as known:
        with serving("blocking", Inbound(known.mesh, mode="PERMISSIVE"), lambda: None) as port:
            with pytest.raises(RuntimeError, match="can't listen"):
                with serving(
                    "blocking", Inbound(known.mesh, mode="PERMISSIVE"), lambda: None, f"127.0.0.1:{port}"
                ):
                    raise AssertionError("not reached")


def test_a_certificate_is_verified_anew_on_each_connection() -> None:
    """What is trusted changes: the calls of a connection go on, another connection is judged by the trust of its time."""
    with identities() as known, serving("blocking", Inbound(known.mesh), lambda: None) as port:
        issued = known.federated.issue("spiffe://other.example/x")
        credentials = grpc.ssl_channel_credentials(known.ca.pem, issued.key, issued.chain)
        options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
            call = channel.unary_unary(f"/{SERVICE}/unary_unary", _registered_method=False)
            assert call(b"", timeout=15) == b""
            # Its CA becomes one of ours: C-core goes on taking the chain, but not for a name of other.example.
            known.source.turn(
                IdentityUpdate(
                    svids=known.update().svids,
                    bundles=BundleSet([TrustBundle("td.example", [known.ca.der, known.federated.der])]),
                )
            )
            assert call(b"", timeout=15) == b""
        with pytest.raises(grpc.RpcError) as error:
            ask(port, known, issued)
        assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


def rule(name: str, action: str, value: str) -> dict[str, Any]:
    header = {"header": {"name": name, "string_match": {"exact": value}}}
    policy = {"permissions": [header], "principals": [{"any": True}]}
    return {"rules": {"action": action, "policies": {"p": policy}}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("action", "value", "passes"),
    [("DENY", "localhost", False), ("DENY", "admin", True), ("ALLOW", "localhost", True)],
)
def test_the_authority(kind: str, action: str, value: str, passes: bool) -> None:
    """grpc.aio does not tell it: what depends on it is refused there."""
    with identities() as known:
        inbound = Inbound(known.mesh, rbac=rule(":authority", action, value))
        with serving(kind, inbound, lambda: None) as port:
            issued = known.ca.issue(CLIENT)
            if passes and kind == "blocking":
                assert ask(port, known, issued) == [b""]
                return
            with pytest.raises(grpc.RpcError) as error:
                ask(port, known, issued)
            assert refusal(error) == (grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied")


def test_what_c_core_keeps_for_itself() -> None:
    with identities() as known:
        inbound = Inbound(known.mesh, rbac=rule("grpc-timeout", "DENY", "1S"))
        with serving("blocking", inbound, lambda: None) as port:
            with pytest.raises(grpc.RpcError) as error:
                ask(port, known, known.ca.issue(CLIENT))
            assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("address", "passes"), [(None, False), ("0.0.0.0:8443", True), ("127.0.0.1:0", False)]
)
def test_where_a_call_came_to(address: str | None, passes: bool) -> None:
    policy = {"permissions": [{"destination_port": 1}], "principals": [{"any": True}]}
    rbac = {"rules": {"action": "DENY", "policies": {"p": policy}}}
    with identities() as known:
        inbound = Inbound(known.mesh, rbac=rbac, address=address)
        with serving("blocking", inbound, lambda: None) as port:
            issued = known.ca.issue(CLIENT)
            if passes:
                assert ask(port, known, issued) == [b""]
                return
            with pytest.raises(grpc.RpcError) as error:
                ask(port, known, issued)
            assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_a_certificate_that_c_core_does_not_ask_for() -> None:
    """Envoy would have asked: who it is stays unknown."""
    with identities() as known:
        issued = known.ca.issue(SERVER, dns=["localhost"])
        tls = DownstreamTls(
            common=CommonTls(
                certificates=(TlsCertificate(chain=issued.chain, private_key=issued.key),),
                validation=CertificateValidation(trusted_ca=known.ca.pem),
            ),
            require_client_certificate=False,
        )
        rules = {"rules": {**allow(CLIENT)["rules"], "action": "DENY"}}
        with serving("blocking", Inbound(known.mesh, tls=tls), lambda: None) as port:
            assert ask(port, known, None) == [b""]
        with serving("blocking", Inbound(known.mesh, tls=tls, rbac=rules), lambda: None) as port:
            with pytest.raises(grpc.RpcError) as error:
                ask(port, known, None)
            assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
