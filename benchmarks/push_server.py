"""The control plane of the push benchmark: one ADS stream a client, responses serialised long before they are sent.

What is measured is the data plane, so nothing is computed between the clock reading and the send: the
resources of a response are ready bytes, and a version, a type and a nonce are put in front (concatenated
protobuf messages merge). State of the world; one worker process, driven by JSON lines:

`{"set": NAME, "size": N, "which": "a"|"b", "port": P}` prepares a set of endpoints for a cluster, `{"push": NAME,
"size": N, "which": ...}` sends it and answers the time of sending, `{"serve": [RESOURCE...]}` adds constant resources.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from benchmarks.worker import serve
from meshlib import proto

SETS = {"a": 1, "b": 64}
_Key = tuple[str, str]


def address(which: str, index: int) -> str:
    """The loopback address of an endpoint: 127.1.0.0 and up for set a, 127.64.0.0 and up for set b."""
    return f"127.{SETS[which] + (index >> 16)}.{index >> 8 & 255}.{index & 255}"


def is_unhealthy(index: int) -> bool:
    """Every tenth endpoint."""
    return index % 10 == 0


def set_of(called: str) -> tuple[str, int]:
    """The set and index of an address that `address` gave."""
    _, second, third, fourth = (int(part) for part in called.split("."))
    which = "b" if second >= SETS["b"] else "a"
    return which, (second - SETS[which] << 16) + (third << 8) + fourth


def load_assignment(cluster: str, which: str, size: int, port: int) -> Any:
    """A ClusterLoadAssignment of `size` endpoints in one locality, a tenth of them UNHEALTHY."""
    message = proto.message("envoy.config.endpoint.v3.ClusterLoadAssignment")(cluster_name=cluster)
    locality = message.endpoints.add()
    for index in range(size):
        endpoint = locality.lb_endpoints.add()
        socket_address = endpoint.endpoint.address.socket_address
        socket_address.address = address(which, index)
        socket_address.port_value = port
        if is_unhealthy(index):
            endpoint.health_status = 2
    return message


class _Stream:
    """One subscriber: which names it asked for, by type, and what is on its way to it."""

    def __init__(self) -> None:
        self.outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.names: dict[str, frozenset[str]] = {}
        self.nonces: dict[str, str] = {}


class _ControlPlane:
    """The resources, as serialised `resources` fields of a DiscoveryResponse, and the streams."""

    def __init__(self) -> None:
        self._resources: dict[_Key, bytes] = {}
        self._streams: list[_Stream] = []
        self._lock = threading.Lock()
        self._count = itertools.count(1)
        self._response = proto.message("envoy.service.discovery.v3.DiscoveryResponse")
        self._request = proto.message("envoy.service.discovery.v3.DiscoveryRequest")
        self.rejections: list[str] = []

    def encode(self, resource: Any) -> bytes:
        response = self._response()
        response.resources.add().CopyFrom(proto.pack(resource))
        data: bytes = response.SerializeToString()
        return data

    def put(self, type_url: str, name: str, encoded: bytes) -> float:
        """Stores a resource and sends it to who asked for it; the time of sending, monotonic seconds."""
        with self._lock:
            self._resources[type_url, name] = encoded
            sent = time.monotonic()
            for stream in self._streams:
                if name in stream.names.get(type_url, ()):
                    self._send(stream, type_url)
        return sent

    def _send(self, stream: _Stream, type_url: str) -> None:
        nonce = str(next(self._count))
        found = [self._resources.get((type_url, name)) for name in sorted(stream.names[type_url])]
        if not any(found):
            return
        head = self._response(version_info=nonce, nonce=nonce, type_url=type_url).SerializeToString()
        stream.nonces[type_url] = nonce
        stream.outgoing.put(head + b"".join(data for data in found if data is not None))

    def _listen(self, stream: _Stream, requests: Iterator[Any]) -> None:
        try:
            for request in requests:
                with self._lock:
                    if request.HasField("error_detail"):
                        self.rejections.append(request.error_detail.message)
                    names = frozenset(request.resource_names)
                    if names != stream.names.get(request.type_url):
                        stream.names[request.type_url] = names
                        self._send(stream, request.type_url)
        except grpc.RpcError:
            pass
        finally:
            stream.outgoing.put(None)

    def stream(self, requests: Iterator[Any], context: Any) -> Iterator[bytes]:
        stream = _Stream()
        with self._lock:
            self._streams.append(stream)
        threading.Thread(target=self._listen, args=(stream, requests), daemon=True).start()
        try:
            while (data := stream.outgoing.get()) is not None:
                yield data
        finally:
            with self._lock:
                self._streams.remove(stream)

    def start(self) -> tuple[grpc.Server, int]:
        handler = grpc.stream_stream_rpc_method_handler(
            self.stream, request_deserializer=self._request.FromString, response_serializer=None
        )
        service = "envoy.service.discovery.v3.AggregatedDiscoveryService"
        server = grpc.server(
            ThreadPoolExecutor(8), options=[("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
        )
        server.add_generic_rpc_handlers((
            grpc.method_handlers_generic_handler(service, {"StreamAggregatedResources": handler}),
        ))  # fmt: skip
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        return server, port


def main() -> None:
    plane = _ControlPlane()
    prepared: dict[tuple[str, int, str], bytes] = {}
    server, port = plane.start()

    def handle(command: dict[str, Any]) -> dict[str, Any]:
        if "serve" in command:
            for resource in command["serve"]:
                fields = {key: value for key, value in resource.items() if key != "@type"}
                message = proto.from_dict(resource["@type"].removeprefix("type.googleapis.com/"), fields)
                name = resource.get("name") or resource["cluster_name"]
                plane.put(resource["@type"], name, plane.encode(message))
            return {"port": port}
        key = (command.get("set") or command["push"], command["size"], command["which"])
        if "set" in command:
            encoded = plane.encode(load_assignment(key[0], key[2], key[1], command["port"]))
            prepared[key] = encoded
            return {"bytes": len(encoded)}
        sent = plane.put(proto.ENDPOINT, key[0], prepared[key])
        return {"sent": sent, "rejections": plane.rejections}

    try:
        serve(handle)
    finally:
        server.stop(None).wait()


if __name__ == "__main__":
    main()
