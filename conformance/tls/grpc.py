"""The TLS cases over gRPC: Envoy and meshlib as clients and as servers. One unary call stands for the request.

OK counts as status 200, UNAVAILABLE as 503, and the call's message as the body, so that a case expects the same of all.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc

import meshlib
import meshlib.grpc
from conformance.resources import HTTP_OPTIONS, LISTENER, TYPE
from conformance.runners.grpc_client import OPTIONS
from conformance.tls.case import TlsCase
from conformance.tls.envoy import (
    EnvoyClients,
    EnvoyServers,
    TlsEnvoy,
    TlsOutcome,
    client_cluster,
    client_listener,
    server_listener,
)
from conformance.tls.mesh import counted, document
from meshlib.server.grpc import MeshInterceptor, listen
from meshlib.server.inbound import Inbound

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conformance.tls.materials import Materials

TIMEOUT = 20.0
SERVICE = "conformance.Tls"
METHOD = f"/{SERVICE}/Ask"
HTTP2 = {HTTP_OPTIONS: {"@type": TYPE + HTTP_OPTIONS, "explicit_http_config": {"http2_protocol_options": {}}}}
XFCC = "x-forwarded-client-cert"
STATUS = {grpc.StatusCode.OK: 200, grpc.StatusCode.UNAVAILABLE: 503}


class EnvoyGrpcServers(EnvoyServers):
    """Envoys in front of a gRPC server that says what it was told about the caller."""

    def __init__(self, cases: Iterable[TlsCase], materials: Materials) -> None:
        chosen = [case for case in cases if not isinstance(case.server, str)]
        self._stack = contextlib.ExitStack()
        executor = self._stack.enter_context(ThreadPoolExecutor(4))
        self._server = grpc.server(executor, handlers=[_handler(_told_by_headers)])
        port = self._server.add_insecure_port("127.0.0.1:0")
        address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        upstream = {
            "name": "upstream",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": HTTP2,
            "load_assignment": {
                "cluster_name": "upstream",
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
            },
        }
        self._envoy = TlsEnvoy([_forwarding(case, materials) for case in chosen], [upstream])

    def __enter__(self) -> EnvoyGrpcServers:
        self._server.start()
        self._stack.callback(lambda: self._server.stop(None).wait())
        super().__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        super().__exit__()
        self._stack.close()


def _forwarding(case: TlsCase, materials: Materials) -> dict[str, Any]:
    """The listener of the HTTP cases, but its requests go on to the gRPC server, with the caller's URI SANs."""
    listener = server_listener(case, materials)
    routes = listener["filter_chains"][0]["filters"][0]["typed_config"]["route_config"]["virtual_hosts"][0]
    routes["routes"] = [{"match": {"prefix": "/"}, "route": {"cluster": "upstream"}}]
    san = {"header": {"key": "x-peer-uri-san", "value": "%DOWNSTREAM_PEER_URI_SAN%"}}
    routes["request_headers_to_add"] = [san]
    del routes["response_headers_to_add"]
    common = _common(listener["filter_chains"][0]["transport_socket"])
    common.setdefault("alpn_protocols", ["h2"])
    return listener


class EnvoyGrpcClients(EnvoyClients):
    """Clients that call an Envoy in plaintext, which goes on over HTTP/2 with the case's TLS context."""

    def __init__(self, cases: Iterable[TlsCase], materials: Materials, ports: Mapping[str, int]) -> None:
        chosen = [case for case in cases if case.name in ports]
        clusters = []
        for case in chosen:
            cluster = client_cluster(case, materials, ports[case.name])
            cluster["typed_extension_protocol_options"] = HTTP2
            clusters.append(_with_h2(cluster))
        self._envoy = TlsEnvoy([client_listener(case.name) for case in chosen], clusters)

    def send(self, case: TlsCase) -> TlsOutcome:
        address = f"ipv4:127.0.0.1:{self._envoy.ports[case.name]}"
        with grpc.insecure_channel(address, (*OPTIONS, ("grpc.default_authority", "srv.example"))) as channel:
            call = channel.unary_unary(METHOD).future(b"", timeout=TIMEOUT)
            _end(call)
            return replace(_answer(call.code(), call.details(), call), **self.told(case))


class MeshGrpcClients:
    """`meshlib.grpc.channel`, or with `on_asyncio` `meshlib.grpc.aio_channel`; a Mesh for each case."""

    def __init__(
        self,
        cases: Iterable[TlsCase],
        materials: Materials,
        ports: Mapping[str, int],
        *,
        on_asyncio: bool = False,
    ) -> None:
        self._asyncio = on_asyncio
        self._materials = materials
        self._ports = ports

    def __enter__(self) -> MeshGrpcClients:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def send(self, case: TlsCase) -> TlsOutcome:
        cluster = client_cluster(case, self._materials, self._ports[case.name])
        cluster |= {"type": "STATIC", "typed_extension_protocol_options": HTTP2}
        with meshlib.Mesh(config=[document(cluster)], headers="envoy") as mesh:
            mesh.wait_ready(timeout=TIMEOUT)
            outcome = asyncio.run(_call_on_asyncio(mesh)) if self._asyncio else _call(mesh)
            return replace(outcome, client_stats=counted(mesh, case))


def _call(mesh: meshlib.Mesh) -> TlsOutcome:
    with meshlib.grpc.channel("srv.example", mesh=mesh) as channel:
        call = channel.unary_unary(METHOD).future(b"", timeout=TIMEOUT)
        _end(call)
        return _with_info(_answer(call.code(), call.details(), call), call)


async def _call_on_asyncio(mesh: meshlib.Mesh) -> TlsOutcome:
    async with meshlib.grpc.aio_channel("srv.example", mesh=mesh) as channel:
        call = channel.unary_unary(METHOD)(b"", timeout=TIMEOUT)
        with contextlib.suppress(grpc.RpcError):
            await call
        found = _answer(await call.code(), await call.details(), None)
        return _with_info(replace(found, headers=dict(await call.initial_metadata() or ())), call)


class MeshGrpcServers:
    """A `grpc.server` of `meshlib.server` for each case, with the Listeners that the Envoys have."""

    def __init__(self, cases: Iterable[TlsCase], materials: Materials) -> None:
        self._listeners = [
            {key: value for key, value in server_listener(case, materials).items() if key != "access_log"}
            for case in cases
            if not isinstance(case.server, str)
        ]
        self._stack = contextlib.ExitStack()
        self.ports: dict[str, int] = {}

    def __enter__(self) -> MeshGrpcServers:
        documents = [{"resources": [{"@type": LISTENER, **listener}]} for listener in self._listeners]
        executor = self._stack.enter_context(ThreadPoolExecutor(4))
        mesh = self._stack.enter_context(meshlib.Mesh(config=documents))
        for listener in self._listeners:
            inbound = Inbound(mesh, listener=listener["name"])
            server = grpc.server(
                executor, handlers=[_handler(_told_by_peer)], interceptors=[MeshInterceptor(inbound)]
            )
            listening = self._stack.enter_context(listen(server, "127.0.0.1:0", inbound))
            self.ports[listener["name"]] = listening.port
            server.start()
            self._stack.callback(_stop, server)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def seen(self, case: TlsCase) -> Mapping[str, Any]:
        """Nothing that a case expects."""
        return {}


def _handler(behavior: Any) -> Any:
    return grpc.method_handlers_generic_handler(
        SERVICE, {"Ask": grpc.unary_unary_rpc_method_handler(behavior)}
    )


def _told_by_headers(request: bytes, context: Any) -> bytes:
    metadata = dict(context.invocation_metadata())
    found = (("x-peer-uri-san", metadata.get("x-peer-uri-san", "")), ("x-seen-xfcc", metadata.get(XFCC, "")))
    context.send_initial_metadata(found)
    return b""


def _told_by_peer(request: bytes, context: Any) -> bytes:
    metadata = dict(context.invocation_metadata())
    peer = meshlib.current_peer()
    context.send_initial_metadata(
        (("x-peer-uri-san", ",".join(peer.uri_sans)), ("x-seen-xfcc", metadata.get(XFCC, "")))
    )
    return b""


def _answer(code: grpc.StatusCode, message: str, call: Any) -> TlsOutcome:
    headers = {} if call is None or code is not grpc.StatusCode.OK else dict(call.initial_metadata())
    body = "served" if code is grpc.StatusCode.OK else message
    return TlsOutcome(status=STATUS.get(code, code.value[0]), body=body, headers=headers)


def _with_info(outcome: TlsOutcome, call: Any) -> TlsOutcome:
    info = call.meshlib
    _, bar, rest = info.details.partition("|")
    return replace(
        outcome, flags=info.flags, details=info.details, transport=rest.removesuffix("}") if bar else ""
    )


def _end(call: Any) -> None:
    with contextlib.suppress(grpc.RpcError):
        call.result()


def _stop(server: Any) -> None:
    server.stop(None).wait()


def _common(transport: dict[str, Any]) -> dict[str, Any]:
    common: dict[str, Any] = transport["typed_config"]["common_tls_context"]
    return common


def _with_h2(cluster: dict[str, Any]) -> dict[str, Any]:
    if "transport_socket" in cluster:
        _common(cluster["transport_socket"]).setdefault("alpn_protocols", ["h2"])
    return cluster
