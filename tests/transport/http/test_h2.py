"""The HTTP/2 codec against the server side of the same library, in memory."""

from __future__ import annotations

from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived
from h2.settings import SettingCodes, Settings
from hypothesis import given
from hypothesis import strategies as st

from meshlib.engine.events import FailureKind
from meshlib.transport.http.failure import InvalidRequest, TransportFailure
from meshlib.transport.http.h2 import H2Codec, H2Stream
from meshlib.transport.http.message import OutgoingRequest, RawHeaders


class Pair:
    """A client codec and a server that talk over nothing."""

    def __init__(self, **settings: int) -> None:
        self.client = H2Codec()
        self.server: Any = H2Connection(H2Configuration(client_side=False))
        initial = {getattr(SettingCodes, name): value for name, value in settings.items()}
        self.server.local_settings = Settings(client=False, initial_values=initial)
        self.server.initiate_connection()

    def turn(self) -> list[Any]:
        """What the client says goes to the server, then the other way round."""
        events: list[Any] = list(self.server.receive_data(self.client.take_outgoing()))
        self.client.feed(self.server.data_to_send())
        return events

    def open(self, headers: RawHeaders | None = None, body: bytes | None = b"") -> H2Stream:
        return self.client.open(OutgoingRequest(b"POST", b"/x", b"host", headers or [], body))


def test_hop_by_hop_headers_stay_behind() -> None:
    pair = Pair()
    pair.open(
        [
            (b"Host", b"other"),
            (b"X-Kept", b"1"),
            (b"Connection", b"keep-alive, X-Named"),
            (b"x-named", b"1"),
            (b"Transfer-Encoding", b"chunked"),
            (b"TE", b"trailers"),
        ]
    )
    request = next(event for event in pair.turn() if isinstance(event, RequestReceived))
    assert [(bytes(name), bytes(value)) for name, value in request.headers] == [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"host"),
        (b":path", b"/x"),
        (b"x-kept", b"1"),
        (b"te", b"trailers"),
    ]


@pytest.mark.parametrize("header", [(b"x", b"a\nb"), (b"x", b"\0"), (b"x\r", b"1"), (b"", b"1")])
def test_invalid_headers_are_refused_before_a_stream_opens(header: tuple[bytes, bytes]) -> None:
    pair = Pair()
    with pytest.raises(InvalidRequest):
        pair.open([header])
    assert pair.client.active == 0


def test_credit_follows_the_peers_limit() -> None:
    pair = Pair(MAX_CONCURRENT_STREAMS=2)
    assert pair.client.credit > 2
    pair.turn()
    assert pair.client.credit == 2
    first = pair.open()
    pair.open()
    assert pair.client.credit == 0
    pair.client.cancel(first)
    assert pair.client.credit == 1
    pair.turn()
    pair.server.close_connection()
    pair.client.feed(pair.server.data_to_send())
    assert pair.client.credit == 0


@given(st.lists(st.integers(0, 200_000), min_size=1, max_size=3))
def test_bodies_respect_every_window(sizes: list[int]) -> None:
    pair = Pair()
    pair.turn()
    streams = [pair.open(body=b"x" * size) for size in sizes]
    got = dict.fromkeys((stream.identifier for stream in streams), 0)
    for _ in range(200):
        for event in pair.turn():
            if type(event).__name__ == "DataReceived":
                got[event.stream_id] += len(event.data)
                pair.server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        pair.client.feed(pair.server.data_to_send())
        if all(stream.sent_all for stream in streams) and sum(got.values()) == sum(sizes):
            break
    assert [got[stream.identifier] for stream in streams] == sizes


def test_the_peers_window_opens_only_for_what_was_read() -> None:
    pair = Pair()
    stream = pair.open()
    pair.turn()
    pair.server.send_headers(stream.identifier, [(":status", "200")])
    sent = 0
    while room := min(pair.server.local_flow_control_window(stream.identifier), 16384):
        pair.server.send_data(stream.identifier, b"x" * room)
        sent += room
        pair.client.feed(pair.server.data_to_send())
        pair.turn()
    assert sent == 1024 * 1024
    stream.consumed(len(stream.response.take()))
    pair.turn()
    assert pair.server.local_flow_control_window(stream.identifier) > 0


def test_refusals_and_resets() -> None:
    pair = Pair()
    refused, reset, late = pair.open(), pair.open(), pair.open()
    pair.turn()
    pair.server.reset_stream(refused.identifier, 7)
    pair.server.reset_stream(reset.identifier, 2)
    pair.server.close_connection(last_stream_id=reset.identifier)
    pair.client.feed(pair.server.data_to_send())
    assert [_kind(stream) for stream in (refused, reset, late)] == [
        FailureKind.REFUSED_STREAM,
        FailureKind.REMOTE_RESET,
        FailureKind.REFUSED_STREAM,
    ]


def _kind(stream: H2Stream) -> FailureKind | None:
    failed = stream.response.failed
    return failed.kind if isinstance(failed, TransportFailure) else None


@pytest.mark.parametrize("split", [1, 3, 8, 100])
def test_a_peer_that_speaks_something_else(split: int) -> None:
    codec = H2Codec()
    stream = codec.open(OutgoingRequest(b"GET", b"/", b"host", []))
    reply = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    for start in range(0, len(reply), split):
        codec.feed(reply[start : start + split])
    assert _kind(stream) is FailureKind.PROTOCOL_ERROR
    assert not codec.usable


@given(st.binary(max_size=200))
def test_any_bytes_end_in_events_or_a_failure(data: bytes) -> None:
    pair = Pair()
    stream = pair.open()
    pair.turn()
    pair.client.feed(data)
    pair.client.end()
    assert stream.response.complete or stream.response.failed is not None


def test_too_many_headers() -> None:
    pair = Pair()
    stream = pair.open()
    pair.turn()
    pair.server.send_headers(stream.identifier, [(":status", "200"), *[("x", str(n)) for n in range(101)]])
    pair.client.feed(pair.server.data_to_send())
    assert _kind(stream) is FailureKind.PROTOCOL_ERROR


def test_the_end_of_the_connection() -> None:
    pair = Pair()
    stream = pair.open()
    pair.turn()
    pair.client.end()
    assert _kind(stream) is FailureKind.TERMINATED
