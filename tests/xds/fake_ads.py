"""A control plane that is a script: the test reads each request and says each response. No sockets, no threads, no time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.runtime.clock import FakeClock
from meshlib.runtime.stream import StreamTarget
from meshlib.snapshot import Kind, Snapshot
from meshlib.snapshot.snapshot import kind_of, name_of
from meshlib.stats import Registry
from meshlib.xds.bootstrap import parse
from meshlib.xds.client import AdsClient
from tests.runtime.fake_stream import FakeStream
from tests.runtime.manual import ManualWorker
from tests.snapshot.builders import Item

__all__ = ["LONG", "AdsStream", "Asked", "FakeAds", "Harness"]

LONG = 1e6
REQUEST = "envoy.service.discovery.v3.DiscoveryRequest"
RESPONSE = "envoy.service.discovery.v3.DiscoveryResponse"
WRAPPER = "envoy.service.discovery.v3.Resource"


@dataclass(frozen=True, slots=True)
class Asked:
    """A DiscoveryRequest, as far as most tests look."""

    kind: Kind | str
    names: tuple[str, ...]
    version: str = ""
    nonce: str = ""
    error: str | None = None


class AdsStream(FakeStream):
    """One stream, seen from the control plane."""

    def __init__(
        self, on_message: Callable[[Any, bytes], None], on_closed: Callable[[Any, str], None]
    ) -> None:
        super().__init__(on_message, on_closed)
        self._nonces = itertools.count(1)

    @staticmethod
    def decode(data: bytes) -> Any:
        return proto.parse(REQUEST, data)

    def take(self) -> list[Asked]:
        """The requests since the last time."""
        taken, self.requests = self.requests, []
        return [_asked(request) for request in taken]

    def respond(self, type_url: str, *packed: Any, version: str = "1", nonce: str | None = None) -> str:
        """Send a response with these Anys and return its nonce."""
        nonce = f"n{next(self._nonces)}" if nonce is None else nonce
        message = proto.message(RESPONSE)(
            type_url=type_url, version_info=version, nonce=nonce, resources=packed
        )
        self.push(message.SerializeToString())
        return nonce


def _asked(request: Any) -> Asked:
    try:
        kind: Kind | str = Kind(request.type_url)
    except ValueError:
        kind = request.type_url
    error = request.error_detail.message if request.HasField("error_detail") else None
    return Asked(kind, tuple(request.resource_names), request.version_info, request.response_nonce, error)


class FakeAds:
    """Opens AdsStreams and stands in for the decoder: the bytes of a resource are a ticket for the object."""

    def __init__(self) -> None:
        self.streams: list[AdsStream] = []
        self.decoded: list[str] = []
        self._tickets: dict[bytes, Item | Exception] = {}

    def open(
        self,
        target: StreamTarget,
        on_message: Callable[[Any, bytes], None],
        on_closed: Callable[[Any, str], None],
    ) -> AdsStream:
        self.streams.append(AdsStream(on_message, on_closed))
        return self.streams[-1]

    def pack(self, resource: Any, *unsupported: str) -> Any:
        """An Any for the resource. Each call makes other bytes."""
        return self._pack(kind_of(resource), name_of(resource), Item(resource, unsupported))

    def pack_bad(self, kind: Kind, name: str, path: str = "field", reason: str = "is bad") -> Any:
        """An Any whose decoding fails."""
        return self._pack(kind, name, ResourceError(path, reason, type_url=kind.value, name=name))

    def pack_fatal(self, kind: Kind, name: str) -> Any:
        """An Any that the decoder stumbles over."""
        return self._pack(kind, name, RuntimeError("a bug"))

    def wrap(self, packed: Any, name: str) -> Any:
        """The Any within a `Resource`."""
        wrapper = proto.message(WRAPPER)(name=name)
        wrapper.resource.CopyFrom(packed)
        return proto.pack(wrapper)

    def decode(self, type_url: str, data: bytes, pause: Callable[[], None]) -> Item:
        result = self._tickets.get(data)
        if result is None:
            raise ResourceError("", "the bytes are garbage", type_url=type_url)
        if isinstance(result, Exception):
            raise result
        self.decoded.append(name_of(result.resource))
        return result

    def _pack(self, kind: Kind, name: str, result: Item | Exception) -> Any:
        encoded = name.encode()
        ticket = str(len(self._tickets)).encode()
        # The name, and the ticket in a field that no resource has.
        data = b"\x0a" + bytes([len(encoded)]) + encoded + b"\xc2\x3e" + bytes([len(ticket)]) + ticket
        self._tickets[data] = result
        return proto.message("google.protobuf.Any")(type_url=kind.value, value=data)


class Harness:
    """An AdsClient with everything about it in the test's hands."""

    def __init__(self, features: tuple[str, ...] = (), **options: Any) -> None:
        server = {
            "server_uri": "cp:1",
            "channel_creds": [{"type": "insecure"}],
            "server_features": list(features),
        }
        node = {"id": "me", "cluster": "mine", "locality": {"zone": "z"}, "metadata": {"team": "a"}}
        self.clock = FakeClock(start=1000.0)
        self.worker = ManualWorker(self.clock)
        self.ads = FakeAds()
        self.registry = Registry()
        self.snapshots: list[Snapshot] = []
        self.client = AdsClient(
            parse({"xds_servers": [server], "node": node}),
            decode=self.ads.decode,
            on_snapshot=self.snapshots.append,
            clock=self.clock,
            random=Random(1),
            registry=self.registry,
            open_stream=self.ads.open,
            executor=lambda: self.worker,
            **options,
        )

    @property
    def stream(self) -> AdsStream:
        return self.ads.streams[-1]

    @property
    def snapshot(self) -> Snapshot:
        return self.client.snapshot

    def want(self, *listeners: str) -> list[Asked]:
        for name in listeners:
            self.client.want_listener(name)
        return self.take()

    def take(self) -> list[Asked]:
        """Let the client work and take what it asked."""
        self.worker.run()
        return self.stream.take()

    def send(self, *resources: Any, version: str = "1") -> list[Asked]:
        """A response with these resources, of one type; what the client asks then."""
        self.stream.respond(
            kind_of(resources[0]).value, *(self.ads.pack(item) for item in resources), version=version
        )
        return self.take()

    def respond(self, kind: Kind, *packed: Any, version: str = "1") -> list[Asked]:
        self.stream.respond(kind.value, *packed, version=version)
        return self.take()

    def count(self, name: str) -> int:
        return self.registry.counter(name).value
