"""A plain gRPC client of the CA."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import grpc

from meshlib import proto
from meshlib.controlplane.ca import sds
from meshlib.proto import Message, workload

LIMIT = 45.0
DISCOVERY = "envoy.service.discovery.v3."
HEADER = (workload.SECURITY_HEADER,)


class Client:
    """A channel with the methods of both services. A context manager."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)])

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    @contextlib.contextmanager
    def stream(
        self, method: str, response: str, metadata: tuple[tuple[str, str], ...] = HEADER
    ) -> Iterator[Iterator[Message]]:
        """A server stream of the Workload API."""
        call = self._channel.unary_stream(f"/{workload.SERVICE}/{method}")(
            b"", metadata=metadata, timeout=LIMIT
        )
        try:
            yield (workload.parse(response, data) for data in call)
        finally:
            call.cancel()

    def unary(
        self, method: str, request: Message, response: str, metadata: tuple[tuple[str, str], ...] = HEADER
    ) -> Message:
        call = self._channel.unary_unary(f"/{workload.SERVICE}/{method}")
        return workload.parse(response, call(request.SerializeToString(), metadata=metadata, timeout=LIMIT))

    def fetch(self, *names: str) -> list[Message]:
        """FetchSecrets."""
        request = proto.message(f"{DISCOVERY}DiscoveryRequest")(resource_names=names)
        data = self._channel.unary_unary(f"/{sds.SERVICE}/FetchSecrets")(
            request.SerializeToString(), timeout=LIMIT
        )
        return [proto.unpack(each) for each in proto.parse(f"{DISCOVERY}DiscoveryResponse", data).resources]

    def secrets(self, *, delta: bool = False) -> SecretStream:
        return SecretStream(self._channel, delta)


class SecretStream:
    """StreamSecrets or DeltaSecrets. A context manager."""

    def __init__(self, channel: Any, delta: bool) -> None:
        kind = "Delta" if delta else ""
        self._request = proto.message(f"{DISCOVERY}{kind}DiscoveryRequest")
        self._response = f"{DISCOVERY}{kind}DiscoveryResponse"
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        method = "DeltaSecrets" if delta else "StreamSecrets"
        self.call = channel.stream_stream(f"/{sds.SERVICE}/{method}")(
            iter(self._requests.get, None), timeout=LIMIT
        )

    def __enter__(self) -> SecretStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self.call.cancel()

    def send(self, *, raw: bytes | None = None, error: str = "", **fields: object) -> None:
        request = self._request(**fields)
        if error:
            request.error_detail.message = error
        self._requests.put(request.SerializeToString() if raw is None else raw)

    def next(self) -> Message:
        return proto.parse(self._response, next(self.call))
