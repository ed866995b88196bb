"""A TLS session without a socket: records in any pieces, and every way in which it can end."""

from __future__ import annotations

import contextlib
import ssl
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshlib.resources.cluster import HttpProtocol
from meshlib.resources.tls import TlsVersion
from meshlib.state import EndpointState
from meshlib.state.way import Way
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.h1 import H1Codec
from meshlib.transport.http.message import OutgoingRequest
from meshlib.transport.http.records import TlsCodec
from meshlib.transport.http.tls import TlsSession, begin
from tests.transport.http.secure import World, server_context

REQUEST = OutgoingRequest(b"GET", b"/", b"a", [])


class Ends:
    """A session, and the server at its other end."""

    def __init__(self, world: World, version: TlsVersion) -> None:
        security = world.store.client(world.tls(maximum=version))
        self.counted: list[str] = []
        way = Way(HttpProtocol.HTTP1, security)
        self.session: TlsSession = begin(way, EndpointState("e", "127.0.0.1", 1), "a", self.counted.append)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = server_context(world.ca, world.server)
        self.server = context.wrap_bio(self._in, self._out, server_side=True)

    def shake(self) -> None:
        data, over = b"", False
        while not over:
            over = self.session.shake(data)
            self._in.write(self.session.take())
            with contextlib.suppress(ssl.SSLWantReadError):
                self.server.do_handshake()
            data = self._out.read()
        self.session.records.open(data)  # session tickets, perhaps

    def says(self, *pieces: bytes) -> bytes:
        """The records with which the server says this, one for each piece."""
        for piece in pieces:
            self.server.write(piece)
        return self._out.read()

    def goodbye(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.server.unwrap()
        return self._out.read()

    def hears(self, data: bytes) -> bytes:
        self._in.write(data)
        return self.server.read(1 << 20)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(params=[TlsVersion.TLSv1_2, TlsVersion.TLSv1_3])
def ends(world: World, request: pytest.FixtureRequest) -> Ends:
    made = Ends(world, request.param)
    made.shake()
    return made


def test_a_handshake_is_counted(ends: Ends) -> None:
    assert ends.counted[0] == "handshake"
    assert ends.counted[1] in ("versions.TLSv1.2", "versions.TLSv1.3")
    assert ends.counted[2].startswith("ciphers.")


def cut(data: bytes, places: list[float]) -> list[bytes]:
    """In pieces, at these places (0..1)."""
    bounds = sorted({0, len(data), *(int(place * len(data)) for place in places)})
    return [data[start:stop] for start, stop in pairwise(bounds)]


_worlds: list[World] = []


def shared_world() -> World:
    if not _worlds:
        _worlds.append(World())
    return _worlds[0]


@settings(max_examples=40, deadline=None)
@given(
    version=st.sampled_from([TlsVersion.TLSv1_2, TlsVersion.TLSv1_3]),
    sizes=st.lists(st.integers(1, 40_000), min_size=1, max_size=6),
    places=st.lists(st.floats(0, 1), max_size=12),
    bye=st.booleans(),
)
def test_any_pieces_give_the_same_plaintext(
    version: TlsVersion, sizes: list[int], places: list[float], bye: bool
) -> None:
    ends = Ends(shared_world(), version)
    ends.shake()
    said = [bytes([65 + index]) * size for index, size in enumerate(sizes)]
    data = ends.says(*said) + (ends.goodbye() if bye else b"")
    heard = b"".join(ends.session.records.open(piece) for piece in cut(data, places))
    assert heard == b"".join(said)
    assert (ends.session.records.over, ends.session.records.ended) == (bye, bye)


def test_both_directions(ends: Ends) -> None:
    assert ends.hears(ends.session.records.seal(b"question")) == b"question"
    assert ends.session.records.open(ends.says(b"answer")) == b"answer"
    assert ends.session.records.seal(b"") == b""
    assert ends.session.records.outgoing.pending == 0


def test_what_came_before_a_broken_record_is_not_lost(ends: Ends) -> None:
    data = ends.says(b"good") + b"\x17\x03\x03\x00\x20" + b"x" * 32
    assert ends.session.records.open(data) == b"good"
    assert (ends.session.records.over, ends.session.records.ended) == (True, False)


def test_we_say_goodbye(ends: Ends) -> None:
    assert ends.hears(ends.session.farewell()) == b""


def test_a_goodbye_in_the_middle_of_the_handshake_says_nothing(world: World) -> None:
    ends = Ends(world, TlsVersion.TLSv1_2)
    assert not ends.session.shake()
    assert ends.session.take()
    assert ends.session.farewell() == b""


def test_a_handshake_piece_by_piece(world: World) -> None:
    ends = Ends(world, TlsVersion.TLSv1_3)
    over = ends.session.shake()
    while not over:
        ends._in.write(ends.session.take())
        with pytest.raises(ssl.SSLWantReadError):
            ends.server.do_handshake()
        for byte in ends._out.read():
            over = ends.session.shake(bytes([byte]))
    assert ends.session.records.outgoing.pending, "its end goes out with the request"


def codec_of(ends: Ends) -> TlsCodec:
    codec = TlsCodec(H1Codec(), ends.session.records)
    ends.hears(codec.start(REQUEST))
    return codec


def test_the_codec_takes_a_response_in_several_records(ends: Ends) -> None:
    codec = codec_of(ends)
    codec.feed(ends.says(b"HTTP/1.1 200 OK\r\ncontent-", b"length: 5\r\n\r\nhe", b"llo"))
    assert codec.response.complete
    assert codec.response.take() == b"hello"
    assert codec.reusable


@pytest.mark.parametrize(
    ("sent", "bye", "complete"),
    [
        (b"", True, None),
        (b"", False, None),
        (b"HTTP/1.1 200 OK\r\n\r\nbody", True, True),
        (b"HTTP/1.1 200 OK\r\n\r\nbody", False, None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbody", True, None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody", True, True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody", False, True),
    ],
)
def test_how_a_response_ends(ends: Ends, sent: bytes, bye: bool, complete: bool | None) -> None:
    """complete None: the connection failed."""
    codec = codec_of(ends)

    def finish() -> None:
        codec.feed(ends.says(sent) if sent else b"")
        if bye:
            codec.feed(ends.goodbye())
        codec.end()

    if complete is None:
        with pytest.raises(TransportFailure):
            finish()
    else:
        finish()
        assert codec.response.complete
    assert not codec.reusable


def test_a_ticket_while_nobody_asks_leaves_the_connection_useful(world: World) -> None:
    """TLS 1.3: what arrives is the session's own business, and gives no plaintext."""
    ends = Ends(world, TlsVersion.TLSv1_3)
    data, over = b"", False
    while not over:
        over = ends.session.shake(data)
        ends._in.write(ends.session.take())
        with contextlib.suppress(ssl.SSLWantReadError):
            ends.server.do_handshake()
        data = ends._out.read()
    codec: Any = TlsCodec(H1Codec(), ends.session.records)
    codec.feed(data)
    assert codec.reusable
    codec.feed(ends.says(b"HTTP/1.1 200 OK\r\n"))
    assert not codec.reusable, "a response to no request"
