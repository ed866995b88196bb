"""The relay's xDS server as bytes in and bytes out, with h2's own client at the other end."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded
from h2.settings import SettingCodes
from hypothesis import given
from hypothesis import strategies as st

from meshlib import proto
from meshlib.transport.grpc.relay_ads import PATH, AdsConnection, Broken

REQUEST = "envoy.service.discovery.v3.DiscoveryRequest"
LONG = "a name of which there is much to say"


def _listener(name: str) -> bytes:
    listener = proto.from_dict("envoy.config.listener.v3.Listener", {"name": name})
    if name == LONG:
        listener.stat_prefix = "x" * 100_000
    return bytes(proto.pack(listener).SerializeToString())


class Client:
    """C-core's side. answers: the decoded responses, by stream. window: of the streams, bytes."""

    def __init__(self, *names: str, window: int = 65535) -> None:
        self.rejected: list[tuple[str, str]] = []
        known = {(proto.LISTENER, name): _listener(name) for name in names}
        self.server = AdsConnection(
            lambda url, name: known.get((url, name)),
            lambda name, reason: self.rejected.append((name, reason)),
        )
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.answers: dict[int, list[proto.Message]] = {}
        self.heads: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self._read: dict[int, bytearray] = {}

    def open(self, path: str = PATH.decode()) -> int:
        stream = self.h2.get_next_available_stream_id()
        head = (
            (":method", "POST"),
            (":scheme", "http"),
            (":authority", "relay"),
            (":path", path),
            ("te", "trailers"),
        )
        self.h2.send_headers(stream, head)
        return stream

    def ask(self, stream: int, *names: str, error: str = "", nonce: str = "") -> None:
        request = proto.message(REQUEST)(type_url=proto.LISTENER, resource_names=names, response_nonce=nonce)
        if error:
            request.error_detail.message = error
        body = request.SerializeToString()
        self.h2.send_data(stream, b"\0" + len(body).to_bytes(4, "big") + body)

    def exchange(self, cuts: Sequence[int] = ()) -> None:
        """Until nobody has anything to say. cuts: into pieces of which sizes the client's bytes arrive, in turn."""
        sizes = list(cuts)
        while True:
            data = self.h2.data_to_send()
            while data:
                size = sizes.pop(0) if sizes else len(data)
                self.server.receive(data[:size])
                data = data[size:]
            said = self.server.take()
            if not said:
                return
            for event in self.h2.receive_data(said):
                if isinstance(event, ResponseReceived):
                    self.heads[event.stream_id] = {
                        str(name): str(value) for name, value in event.headers or ()
                    }
                elif isinstance(event, DataReceived):
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    self._take(event.stream_id, event.data)
                elif isinstance(event, StreamEnded):
                    self.ended.add(event.stream_id)

    def _take(self, stream: int, data: bytes) -> None:
        read = self._read.setdefault(stream, bytearray())
        read += data
        while len(read) >= 5 and len(read) >= 5 + int.from_bytes(read[1:5], "big"):
            end = 5 + int.from_bytes(read[1:5], "big")
            response = proto.parse("envoy.service.discovery.v3.DiscoveryResponse", bytes(read[5:end]))
            self.answers.setdefault(stream, []).append(response)
            del read[:end]


def names_in(response: proto.Message) -> list[str]:
    return [proto.unpack(each).name for each in response.resources]


@given(st.lists(st.integers(1, 40)), st.sampled_from([65535, 7]))
def test_a_question_is_answered_once(cuts: list[int], window: int) -> None:
    """However its bytes arrive, and however little C-core takes at once."""
    client = Client("one", "other", window=window)
    first, second = client.open(), client.open()
    client.ask(first, "one")
    client.ask(second, "other")
    client.exchange(cuts)
    (answer,) = client.answers[first]
    assert names_in(answer) == ["one"]
    assert [names_in(each) for each in client.answers[second]] == [["other"]]
    client.ask(first, "one", nonce=answer.nonce)  # an ACK
    client.exchange()
    assert len(client.answers[first]) == 1
    client.ask(first, "one", "other", nonce=answer.nonce)
    client.exchange()
    assert names_in(client.answers[first][1]) == ["one", "other"]
    assert client.rejected == []


def test_more_than_the_windows_take() -> None:
    client = Client(LONG)
    stream = client.open()
    client.ask(stream, LONG)
    client.exchange()
    assert names_in(client.answers[stream][0]) == [LONG]


def test_what_is_not_there_is_left_out() -> None:
    client = Client("one")
    stream = client.open()
    client.ask(stream, "another")
    client.exchange()
    assert [names_in(each) for each in client.answers[stream]] == [[]]


def test_a_rejection_is_told() -> None:
    client = Client("one")
    stream = client.open()
    client.ask(stream, "one")
    client.exchange()
    client.ask(stream, "one", error="not like this", nonce="1")
    client.exchange()
    assert client.rejected == [("one", "not like this")]
    assert len(client.answers[stream]) == 1


def test_an_end_is_answered_with_an_end() -> None:
    client = Client("one")
    stream = client.open()
    client.ask(stream, "one")
    client.h2.end_stream(stream)
    client.exchange()
    assert client.ended == {stream}


def test_another_method() -> None:
    client = Client("one")
    stream = client.open("/envoy.service.load_stats.v3.LoadReportingService/StreamLoadStats")
    client.exchange()
    assert client.heads[stream]["grpc-status"] == "12"
    client.ask(client.open(), "one")
    client.exchange()
    assert len(client.answers) == 1


@pytest.mark.parametrize(
    "body",
    [b"\1\0\0\0\0", b"\0\xff\xff\xff\xff", b"\0\0\0\0\1\xff"],
    ids=["compressed", "too large", "no DiscoveryRequest"],
)
def test_broken_requests(body: bytes) -> None:
    client = Client("one")
    client.h2.send_data(client.open(), body)
    with pytest.raises(Broken):
        client.exchange()


@given(st.binary(min_size=1))
def test_no_http2_at_all(data: bytes) -> None:
    server = AdsConnection(lambda _url, _name: None, lambda _name, _reason: None)
    with pytest.raises(Broken):
        server.receive(b"GET / HTTP/1.1\r\n\r\n" + data)
