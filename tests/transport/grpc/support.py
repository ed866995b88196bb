"""What these tests share: scripted gRPC servers on loopback, and a Mesh made from resources."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any

import grpc

import meshlib
from meshlib import testing
from tests.ports import reserved

__all__ = ["Backend", "backend", "config", "mesh_for"]

Handler = Callable[[Any, grpc.ServicerContext], Any]


class Backend(grpc.GenericRpcHandler):  # type: ignore[misc]
    """A server whose methods are what `script` says: by method name, a handler with its arity.

    seen: (method, metadata, time remaining) of each call, in order.
    """

    def __init__(self) -> None:
        self.script: dict[str, grpc.RpcMethodHandler] = {}
        self.seen: list[tuple[str, dict[str, Any], float | None]] = []
        self.port = 0
        self.server: grpc.Server | None = None
        self.gate = threading.Event()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def unary(self, name: str, handler: Handler) -> None:
        self.script["/test.Echo/" + name] = grpc.unary_unary_rpc_method_handler(handler)

    def unary_stream(self, name: str, handler: Handler) -> None:
        self.script["/test.Echo/" + name] = grpc.unary_stream_rpc_method_handler(handler)

    def stream_unary(self, name: str, handler: Handler) -> None:
        self.script["/test.Echo/" + name] = grpc.stream_unary_rpc_method_handler(handler)

    def stream_stream(self, name: str, handler: Handler) -> None:
        self.script["/test.Echo/" + name] = grpc.stream_stream_rpc_method_handler(handler)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        handler = self.script.get(details.method)
        if handler is None:
            return None
        seen = self.seen
        metadata = dict(details.invocation_metadata)
        method = details.method.rpartition("/")[2]

        def wrap(function: Handler) -> Handler:
            def call(request: Any, context: grpc.ServicerContext) -> Any:
                seen.append((method, metadata, context.time_remaining()))
                return function(request, context)

            return call

        kinds = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
        kind = next(kind for kind in kinds if getattr(handler, kind) is not None)
        factory = getattr(grpc, kind + "_rpc_method_handler")
        wrapped: grpc.RpcMethodHandler = factory(wrap(getattr(handler, kind)))
        return wrapped

    def start(self, port: int = 0) -> None:
        self.server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        self.server.add_generic_rpc_handlers((self,))
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    def stop(self, grace: float | None = None) -> None:
        self.gate.set()
        if self.server is not None:
            self.server.stop(grace).wait()
            self.server = None

    def methods(self) -> list[str]:
        return [method for method, _, _ in self.seen]


@contextlib.contextmanager
def backend() -> Iterator[Backend]:
    """A started server, which may be started again at its port.

    `echo` returns the request, `fail` ends with the status code that the request names.
    """
    server = Backend()
    server.unary("echo", lambda request, context: request)
    server.unary("fail", _fail)
    with reserved() as port:
        server.start(port)
        try:
            yield server
        finally:
            server.stop()


def _fail(request: bytes, context: grpc.ServicerContext) -> None:
    name, _, details = request.decode().partition(":")
    context.abort(grpc.StatusCode[name], details)


def config(
    *addresses: str,
    listener: str = "echo:80",
    route: Mapping[str, Any] | None = None,
    cluster: Mapping[str, Any] | None = None,
    routes: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A document for one service. route: fields of the RouteAction; cluster: fields of the Cluster; routes: all of them."""
    document = testing.service("echo", *addresses, listener=listener)
    for resource in document["resources"]:
        kind = resource["@type"].rpartition(".")[2]
        if kind == "RouteConfiguration":
            host = resource["virtual_hosts"][0]
            if routes is not None:
                host["routes"] = list(routes)
            elif route is not None:
                host["routes"][0]["route"].update(route)
        elif kind == "Cluster" and cluster is not None:
            resource.update(cluster)
    return document


@contextlib.contextmanager
def mesh_for(document: Mapping[str, Any], **options: Any) -> Iterator[meshlib.Mesh]:
    """A Mesh from one document, without a control plane."""
    with meshlib.Mesh(config=[document], **options) as mesh:
        yield mesh
