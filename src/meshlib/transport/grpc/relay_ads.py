"""The relay's side of one HTTP/2 connection of C-core's xDS client: aggregated discovery over gRPC, without I/O.

C-core opens one stream for each target. What is asked for never changes while it is asked for, so a subscription is answered
once, with all that there is of it, and an ACK needs no answer. A resource that C-core refuses is told to `rejected`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import H2Error, StreamClosedError

from meshlib import proto

__all__ = ["AdsConnection", "Broken"]

PATH = b"/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"

_PREFIX = 5
"""Bytes before each message of gRPC: whether it is compressed, and its length."""

_MOST = 1024 * 1024
"""Bytes of a request that are read at most."""

_UNIMPLEMENTED = ((":status", "200"), ("content-type", "application/grpc"), ("grpc-status", "12"))
_ACCEPTED = ((":status", "200"), ("content-type", "application/grpc"))
_END = (("grpc-status", "0"),)

Find = Callable[[str, str], bytes | None]
"""The encoded resource (an Any) of a type URL and a name, None when there is none."""

Rejected = Callable[[str, str], None]
"""The name of a resource that C-core does not take, and why."""


class Broken(Exception):
    """What came is not what an xDS client sends: the connection is of no use."""


class _Stream:
    __slots__ = ("nonce", "read", "sent", "unsent")

    def __init__(self) -> None:
        self.read = bytearray()
        self.unsent = bytearray()
        self.nonce = 0
        self.sent: dict[str, frozenset[str]] = {}


class AdsConnection:
    """Feed `receive`, send what `take` returns. find: see `Find`; rejected: see `Rejected`."""

    def __init__(self, find: Find, rejected: Rejected) -> None:
        self._find = find
        self._rejected = rejected
        self._streams: dict[int, _Stream] = {}
        self._h2 = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        self._h2.initiate_connection()

    def take(self) -> bytes:
        """What is to be sent."""
        for identifier in self._streams:
            self._flush(identifier)
        return self._h2.data_to_send()

    def receive(self, data: bytes) -> None:
        """Raises Broken."""
        try:
            for event in self._h2.receive_data(data):
                if isinstance(event, RequestReceived):
                    self._open(event)
                elif isinstance(event, DataReceived):
                    self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    self._read(event.stream_id, event.data)
                elif isinstance(event, StreamEnded):
                    if self._streams.pop(event.stream_id, None) is not None:
                        self._h2.send_headers(event.stream_id, _END, end_stream=True)
                elif isinstance(event, StreamReset):
                    self._streams.pop(event.stream_id, None)
        except (H2Error, proto.DecodeError) as error:
            raise Broken(str(error)) from error

    def _open(self, event: RequestReceived) -> None:
        if dict(event.headers or ()).get(b":path") != PATH:
            self._h2.send_headers(event.stream_id, _UNIMPLEMENTED, end_stream=True)
            return
        self._streams[event.stream_id] = _Stream()
        self._h2.send_headers(event.stream_id, _ACCEPTED)

    def _read(self, identifier: int, data: bytes) -> None:
        stream = self._streams.get(identifier)
        if stream is None:
            return
        stream.read += data
        while len(stream.read) >= _PREFIX:
            length = int.from_bytes(stream.read[1:_PREFIX], "big")
            if stream.read[0] or length > _MOST:
                raise Broken("a request is compressed or too large")
            end = _PREFIX + length
            if len(stream.read) < end:
                return
            message, stream.read = bytes(stream.read[_PREFIX:end]), stream.read[end:]
            self._answer(stream, proto.parse("envoy.service.discovery.v3.DiscoveryRequest", message))

    def _answer(self, stream: _Stream, request: proto.Message) -> None:
        names: Sequence[str] = request.resource_names
        if request.HasField("error_detail"):
            for name in names:
                self._rejected(name, request.error_detail.message)
        asked_for = frozenset(names)
        if stream.sent.get(request.type_url) == asked_for:
            return
        stream.sent[request.type_url] = asked_for
        found = [
            each for name in sorted(asked_for) if (each := self._find(request.type_url, name)) is not None
        ]
        stream.nonce += 1
        response = proto.message("envoy.service.discovery.v3.DiscoveryResponse")(
            version_info="1", type_url=request.type_url, nonce=str(stream.nonce)
        )
        for encoded in found:
            response.resources.add().ParseFromString(encoded)
        body = response.SerializeToString()
        stream.unsent += b"\0" + len(body).to_bytes(_PREFIX - 1, "big") + body

    def _flush(self, identifier: int) -> None:
        """Send as much as C-core's window takes."""
        unsent = self._streams[identifier].unsent
        try:
            while unsent:
                room = min(
                    self._h2.local_flow_control_window(identifier),
                    self._h2.max_outbound_frame_size,
                    len(unsent),
                )
                if room <= 0:
                    return
                self._h2.send_data(identifier, bytes(unsent[:room]))
                del unsent[:room]
        except StreamClosedError:
            unsent.clear()
