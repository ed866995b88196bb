"""The same listeners in a real Envoy and in meshlib's servers: the same requests pass, the same get the same answer, the same
is counted."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvicorn

from meshlib.mesh import Mesh
from meshlib.server import asgi
from meshlib.server.grpc import MeshInterceptor, listen
from meshlib.server.inbound import Inbound
from meshlib.server.uvicorn import options
from tests.identity.ca import Issued, TestCA
from tests.server.envoy_server import Envoy, running
from tests.server.identities import client_context
from tests.server.rbac_cases import (
    CASES,
    CLIENT,
    DNS_ONLY,
    GRPC_CASES,
    NETWORK_BY_ADDRESS,
    NETWORK_CASES,
    OTHER,
    REQUESTS,
    Request,
)
from tests.server.servers import SERVICE, blocking_handlers

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(600)]

SERVER = "spiffe://td.example/ns/a/sa/srv"
HTTP = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
FILTERS = "type.googleapis.com/envoy.extensions.filters"
TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
XFCC = "x-forwarded-client-cert"


@dataclass(frozen=True, slots=True)
class Lab:
    ca: TestCA
    server: Issued
    contexts: dict[str, ssl.SSLContext]
    callers: dict[str, Issued]

    def listener(
        self,
        name: str,
        rbac: dict[str, Any] | None,
        route: dict[str, Any],
        *,
        require: bool = False,
        network: dict[str, Any] | None = None,
        **manager: Any,
    ) -> dict[str, Any]:
        """PERMISSIVE as Istio writes it: one filter chain for TLS, one for plaintext. require: a certificate of callers.
        network: a network filter before the HttpConnectionManager."""
        filters: list[dict[str, Any]] = []
        if rbac is not None:
            filters.append(_filter("envoy.filters.http.rbac", f"{FILTERS}.http.rbac.v3.RBAC", rbac))
        filters.append(_filter("envoy.filters.http.router", f"{FILTERS}.http.router.v3.Router", {}))
        vhost = {
            "name": "all",
            "domains": ["*"],
            "routes": [{"match": {"prefix": ""}, **route}],
            "response_headers_to_add": [{"header": {"key": "x-seen", "value": f"%REQ({XFCC})%"}}],
        }
        http_filter = _filter(
            "http",
            HTTP,
            {
                "stat_prefix": name,
                "route_config": {"name": name, "virtual_hosts": [vhost]},
                "http_filters": filters,
                **manager,
            },
        )
        chain = [http_filter]
        if network is not None:
            config = {"stat_prefix": name, **network}
            chain.insert(0, _filter("network", f"{FILTERS}.network.rbac.v3.RBAC", config))
        chains = [
            {
                "filter_chain_match": {"transport_protocol": "tls"},
                "transport_socket": _filter("envoy.transport_sockets.tls", TLS, self._tls(require)),
                "filters": chain,
            },
            {"filter_chain_match": {"transport_protocol": "raw_buffer"}, "filters": chain},
        ]
        inspector = f"{FILTERS}.listener.tls_inspector.v3.TlsInspector"
        return {
            "name": name,
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "listener_filters": [_filter("envoy.filters.listener.tls_inspector", inspector, {})],
            "filter_chains": chains,
        }

    def _tls(self, require: bool) -> dict[str, Any]:
        return {
            "require_client_certificate": require,
            "common_tls_context": {
                "tls_certificates": [
                    {
                        "certificate_chain": {"inline_string": self.server.chain.decode()},
                        "private_key": {"inline_string": self.server.key.decode()},
                    }
                ],
                "validation_context": {"trusted_ca": {"inline_string": self.ca.pem.decode()}},
                "alpn_protocols": ["h2", "http/1.1"],
            },
        }


def _filter(name: str, kind: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": kind, **config}}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    folder = tmp_path_factory.mktemp("lab")
    ca = TestCA("td.example")
    callers = {
        CLIENT: ca.issue(CLIENT, dns=["cli.example"]),
        OTHER: ca.issue(OTHER, "https://second.example/x"),
        DNS_ONLY: ca.issue(dns=["one.example", "two.example"], subject='Ö "quoted", and\\more; a=b+c'),
    }
    contexts = {name: client_context(folder, ca, issued) for name, issued in callers.items()}
    contexts["none"] = client_context(folder, ca, None)
    return Lab(ca, ca.issue(SERVER, dns=["srv.example", "localhost"]), contexts, callers)


def answer(port: int, request: Request, lab: Lab) -> tuple[int, str, str | None]:
    """Status, body and what the application saw of x-forwarded-client-cert."""
    raw: socket.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
    raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with raw:
        stream = raw
        if request.caller != "plain":
            stream = lab.contexts[request.caller].wrap_socket(raw, server_hostname=request.sni)
        with stream:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            connection.sock = stream
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("host", "svc.example")
            connection.putheader("connection", "close")
            connection.putheader("content-length", "0")
            for name, value in request.headers:
                connection.putheader(name, value)
            connection.endheaders()
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers.get("x-seen")


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers as the direct response of Envoy's listeners."""
    seen = [value for name, value in scope["headers"] if name == XFCC.encode()]
    headers = [(b"content-length", b"2"), *((b"x-seen", value) for value in seen)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


OK = {"direct_response": {"status": 200, "body": {"inline_string": "ok"}}}


@contextlib.contextmanager
def serving(listeners: list[dict[str, Any]]) -> Iterator[tuple[Mesh, dict[str, int]]]:
    """One uvicorn that serves each listener on a port of its own."""
    names = [listener["name"] for listener in listeners]
    with contextlib.ExitStack() as stack:
        mesh = stack.enter_context(Mesh(config=[{"resources": [_typed(each) for each in listeners]}]))
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in names]
        ports = {name: each.getsockname()[1] for name, each in zip(names, sockets)}
        inbounds = {name: Inbound(mesh, listener=name) for name in names}
        assert {inbound.mode for inbound in inbounds.values()} == {"PERMISSIVE"}
        apps: dict[int, Any] = {
            ports[name]: asgi.MeshMiddleware(application, inbound) for name, inbound in inbounds.items()
        }

        async def chosen(scope: Any, receive: Any, send: Any) -> None:
            await apps[scope["server"][1]](scope, receive, send)

        config = uvicorn.Config(
            chosen, lifespan="off", log_level="critical", ws="none", **options(inbounds[names[0]])
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": sockets})
        thread.start()
        try:
            yield mesh, ports
        finally:
            server.should_exit = True
            thread.join()


def _typed(listener: dict[str, Any]) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/envoy.config.listener.v3.Listener", **listener}


def differences(envoy: Envoy, ports: dict[str, int], lab: Lab, requests: tuple[Request, ...]) -> list[str]:
    found = []
    for name, port in ports.items():
        for index, request in enumerate(requests):
            expected, got = answer(envoy.ports[name], request, lab), answer(port, request, lab)
            if expected != got:
                found.append(f"{name}, request {index}: Envoy {expected}, meshlib {got}")
    return found


def test_http(lab: Lab, tmp_path: Path) -> None:
    listeners = [lab.listener(name, rbac, OK) for name, rbac in CASES.items()]
    with running(tmp_path, listeners) as envoy, serving(listeners) as (mesh, ports):
        assert differences(envoy, ports, lab, REQUESTS) == []
        counted = {metric.name: metric.value for metric in mesh.stats if ".rbac." in metric.name}  # type: ignore[union-attr]
        assert {name: value for name, value in counted.items() if value} == envoy.counters("rbac")


MODES = ("SANITIZE", "FORWARD_ONLY", "APPEND_FORWARD", "SANITIZE_SET", "ALWAYS_FORWARD_ONLY")
DETAILS = {"subject": True, "cert": True, "chain": True, "dns": True, "uri": True}


def test_xfcc(lab: Lab, tmp_path: Path) -> None:
    listeners = []
    for mode in MODES:
        for suffix, details in (("", {}), ("-all", DETAILS)):
            manager: dict[str, Any] = {
                "forward_client_cert_details": mode,
                "set_current_client_cert_details": details,
            }
            listeners.append(lab.listener(f"{mode}{suffix}", None, OK, **manager))
    sent = ((XFCC, 'By=spiffe://x;Hash=00;Subject="CN=a, b"'),)
    requests = tuple(
        Request(caller=caller, headers=headers)
        for caller in (CLIENT, OTHER, DNS_ONLY, "none", "plain")
        for headers in ((), sent)
    )
    with running(tmp_path, listeners) as envoy, serving(listeners) as (_, ports):
        assert differences(envoy, ports, lab, requests) == []


CLOSED = "closed"


def outcome_of(port: int, request: Request, lab: Lab) -> object:
    try:
        return answer(port, request, lab)
    except (ConnectionError, ssl.SSLError):
        return CLOSED


def test_network_filters(lab: Lab, tmp_path: Path) -> None:
    """Whom they refuse sees the connection end, after the handshake; counted once for each connection."""
    listeners = {name: lab.listener(name, None, OK, network=rbac) for name, rbac in NETWORK_CASES.items()}
    found = []
    with running(tmp_path, list(listeners.values())) as envoy:
        for name, listener in listeners.items():
            with serving([listener]) as (mesh, ports):
                for index, request in enumerate(REQUESTS):
                    expected = outcome_of(envoy.ports[name], request, lab)
                    got = outcome_of(ports[name], request, lab)
                    if expected != got:
                        found.append(f"{name}, request {index}: Envoy {expected}, meshlib {got}")
                counted = {each.name: each.value for each in mesh.stats if ".rbac." in each.name}  # type: ignore[union-attr]
            expected_counts = envoy.counters(f"^{name}.rbac")
            if {key: value for key, value in counted.items() if value} != expected_counts:
                found.append(f"{name}: Envoy counts {expected_counts}, meshlib {counted}")
    assert found == []


def test_network_filters_on_addresses(lab: Lab, tmp_path: Path) -> None:
    """An event loop does not tell them before there is a request, which is refused then (docs/differences.md)."""
    name, request = "address", REQUESTS[0]
    listener = lab.listener(name, None, OK, network=NETWORK_BY_ADDRESS)
    with running(tmp_path, [listener]) as envoy, serving([listener]) as (_, ports):
        assert outcome_of(envoy.ports[name], request, lab) == CLOSED
        assert outcome_of(ports[name], request, lab) == (403, "RBAC: access denied", None)


# --- gRPC ------------------------------------------------------------------------------------------------------------

CALLS = (
    (CLIENT, "unary_unary", (("x-a", "1"), ("x-b-bin", b"\1\2\3\xff"))),
    (OTHER, "unary_unary", (("x-a", "1"), ("x-a", "2"), ("x-forwarded-for", "192.0.2.7"))),
    (CLIENT, "stream_unary", ()),
    (DNS_ONLY, "unary_unary", (("x-a", "2"),)),
    ("plain", "unary_unary", (("x-a", "1"),)),
)


def outcome(port: int, lab: Lab, caller: str, arity: str, metadata: Any) -> tuple[Any, ...]:
    issued = lab.callers.get(caller)
    settings = [("grpc.use_local_subchannel_pool", 1), ("grpc.ssl_target_name_override", "localhost")]
    target = f"127.0.0.1:{port}"
    if caller == "plain":
        made = grpc.insecure_channel(target, settings[:1])
    else:
        pair = (None, None) if issued is None else (issued.key, issued.chain)
        made = grpc.secure_channel(target, grpc.ssl_channel_credentials(lab.ca.pem, *pair), settings)
    with made as channel:
        call = getattr(channel, arity)(f"/{SERVICE}/{arity}", _registered_method=False)
        try:
            call(iter([b""]) if arity.startswith("stream") else b"", metadata=metadata, timeout=10)
        except grpc.RpcError as error:
            return error.code(), error.details()
        return (grpc.StatusCode.OK,)


@contextlib.contextmanager
def grpc_server(*interceptors: Any) -> Iterator[grpc.Server]:
    with ThreadPoolExecutor(2) as executor:
        server = grpc.server(executor, interceptors=interceptors)
        handlers = grpc.method_handlers_generic_handler(SERVICE, blocking_handlers(lambda: None))
        server.add_generic_rpc_handlers((handlers,))
        try:
            yield server
        finally:
            server.stop(None).wait()


def test_grpc(lab: Lab, tmp_path: Path) -> None:
    listeners = [
        lab.listener(name, rbac, {"route": {"cluster": "backend"}}, require=True)
        for name, rbac in GRPC_CASES.items()
    ]
    found = []
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(grpc_server())
        port = backend.add_insecure_port("127.0.0.1:0")
        backend.start()
        envoy = stack.enter_context(running(tmp_path, listeners, [_backend(port)]))
        mesh = stack.enter_context(Mesh(config=[{"resources": [_typed(each) for each in listeners]}]))
        for name in GRPC_CASES:
            inbound = Inbound(mesh, listener=name)
            with (
                grpc_server(MeshInterceptor(inbound)) as server,
                listen(server, "127.0.0.1:0", inbound) as own,
            ):
                server.start()
                for index, call in enumerate(CALLS):
                    expected, got = outcome(envoy.ports[name], lab, *call), outcome(own.port, lab, *call)
                    if expected != got:
                        found.append(f"{name}, call {index}: Envoy {expected}, meshlib {got}")
    assert found == []


def _backend(port: int) -> dict[str, Any]:
    kind = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    h2 = {"@type": kind, "explicit_http_config": {"http2_protocol_options": {}}}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {
        "name": "backend",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": h2},
        "load_assignment": {
            "cluster_name": "backend",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }
