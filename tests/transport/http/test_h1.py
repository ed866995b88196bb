"""The HTTP/1.1 codec with scripted bytes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.engine.events import FailureKind
from meshlib.transport.http.failure import InvalidRequest, TransportFailure
from meshlib.transport.http.h1 import H1Codec
from meshlib.transport.http.message import OutgoingRequest, RawHeaders, Response


def outgoing(
    headers: RawHeaders | None = None,
    body: bytes | None = b"",
    *,
    method: bytes = b"GET",
    path: bytes = b"/",
) -> OutgoingRequest:
    return OutgoingRequest(method, path, b"host:80", headers or [], body)


def codec_for(method: bytes = b"GET") -> H1Codec:
    codec = H1Codec()
    codec.start(outgoing(method=method))
    return codec


def feed(*pieces: bytes, method: bytes = b"GET") -> tuple[H1Codec, Response]:
    codec = codec_for(method)
    for piece in pieces:
        codec.feed(piece)
    return codec, codec.response


def test_the_authority_comes_first_and_replaces_every_host() -> None:
    codec = H1Codec()
    data = codec.start(outgoing([(b"Host", b"one"), (b"X-Case", b"kept"), (b"hOSt", b"two")]))
    assert data == b"GET / HTTP/1.1\r\nHost: host:80\r\nX-Case: kept\r\n\r\n"


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        ([], b"abc", b"Content-Length: 3\r\n\r\nabc"),
        ([(b"content-length", b"3")], b"abc", b"content-length: 3\r\n\r\nabc"),
        (
            [(b"Transfer-Encoding", b"chunked")],
            b"abc",
            b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        ),
        ([(b"Transfer-Encoding", b"chunked")], b"", b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
        ([], None, b"Transfer-Encoding: chunked\r\n\r\n"),
        ([(b"content-length", b"3")], None, b"content-length: 3\r\n\r\n"),
        ([], b"", b"Host: host:80\r\n\r\n"),
    ],
)
def test_framing(headers: RawHeaders, body: bytes | None, expected: bytes) -> None:
    assert H1Codec().start(outgoing(headers, body, method=b"POST")).endswith(expected)


def test_pieces_are_framed_as_the_headers_say() -> None:
    codec = H1Codec()
    codec.start(outgoing(body=None))
    assert (codec.body(b"abc"), codec.body(b""), codec.end_body()) == (b"3\r\nabc\r\n", b"", b"0\r\n\r\n")
    codec.start(outgoing([(b"content-length", b"3")], None))
    assert (codec.body(b"abc"), codec.end_body()) == (b"abc", b"")


@given(name=st.binary(max_size=12), value=st.binary(max_size=12), path=st.binary(max_size=12))
def test_whatever_the_application_supplies_stays_in_its_line(name: bytes, value: bytes, path: bytes) -> None:
    codec = H1Codec()
    try:
        data = codec.start(outgoing([(name, value)], path=path))
    except InvalidRequest:
        return
    lines = data.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    assert lines[0] == b"GET " + path + b" HTTP/1.1"
    assert not any(separator in line for line in lines for separator in (b"\r", b"\n", b"\0"))
    assert len(lines) in (4, 5)


REPLIES = [
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: y\r\n\r\nhello",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 5\r\nx: y\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nx: y\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nt: 1\r\n\r\n",
]


@given(reply=st.sampled_from(REPLIES), cuts=st.lists(st.integers(0, 120), max_size=8))
def test_it_does_not_matter_how_the_bytes_arrive(reply: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(reply), *(cut for cut in cuts if cut < len(reply))})
    codec, response = feed(*(reply[start:end] for start, end in pairwise(places)))
    assert response.complete
    assert (response.status, response.reason, response.take()) == (200, b"OK", b"hello")
    assert (b"x", b"y") in response.headers
    assert codec.reusable


@given(st.binary(max_size=300))
def test_any_bytes_end_in_a_response_or_a_failure(data: bytes) -> None:
    codec = codec_for()
    failed = False
    try:
        codec.feed(data)
        codec.end()
    except TransportFailure:
        failed = True
    assert failed is not codec.response.complete
    assert not codec.reusable


def test_trailers_are_kept_apart() -> None:
    _, response = feed(REPLIES[2])
    assert response.trailers == [(b"t", b"1")]


def test_one_response_after_the_other() -> None:
    codec = H1Codec()
    for method, reply in [
        (b"HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n"),
        (b"GET", REPLIES[0]),
        (b"HEAD", b"HTTP/1.1 404 Not Found\r\n\r\n"),
        (b"GET", REPLIES[2]),
    ]:
        codec.start(outgoing(method=method))
        assert not codec.reusable
        codec.feed(reply)
        assert codec.response.complete
        assert codec.reusable


@pytest.mark.parametrize(
    ("reply", "method", "reusable"),
    [
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n", b"GET", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n", b"GET", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", b"GET", False),
        (b"HTTP/1.1 200 OK\r\n\r\n", b"HEAD", True),
        (b"HTTP/1.0 200 OK\r\n\r\n", b"HEAD", False),
        (b"HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\n\r\n", b"HEAD", True),
        (b"HTTP/1.1 200 OK\r\nconnection: x, CLOSE\r\n\r\n", b"HEAD", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcHTTP", b"GET", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabcxyz", b"GET", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc", b"HEAD", False),
    ],
)
def test_when_a_connection_can_be_used_again(reply: bytes, method: bytes, reusable: bool) -> None:
    codec, response = feed(reply, method=method)
    assert response.complete
    assert codec.reusable is reusable


def test_later_bytes_do_not_touch_a_complete_response() -> None:
    codec, response = feed(REPLIES[0], b"HTTP/1.1 500 Oops\r\ncontent-length: 1\r\nz: z\r\n\r\n!")
    assert (response.status, response.take(), (b"z", b"z") in response.headers) == (200, b"hello", False)
    assert not codec.reusable


def test_the_end_of_the_connection() -> None:
    codec, response = feed(b"HTTP/1.1 200 OK\r\n\r\npart")
    codec.end()
    assert (response.complete, response.take()) == (True, b"part")
    for cut in (b"", b"HTTP/1.1 200 OK\r\nx: "):
        codec, _ = feed(*([cut] if cut else []))
        with pytest.raises(TransportFailure) as caught:
            codec.end()
        assert caught.value.kind is FailureKind.TERMINATED
    codec, _ = feed(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\npart")
    with pytest.raises(TransportFailure) as caught:
        codec.end()
    assert caught.value.kind is FailureKind.PROTOCOL_ERROR


def test_a_reset_never_completes_a_response() -> None:
    codec, response = feed(b"HTTP/1.1 200 OK\r\n\r\npart")
    assert codec.abort().kind is FailureKind.TERMINATED
    assert not response.complete
    codec, _ = feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    assert codec.abort().kind is FailureKind.PROTOCOL_ERROR


def test_limits() -> None:
    feed(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 100 + b"\r\n")
    with pytest.raises(TransportFailure, match="more than 100"):
        feed(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 101 + b"\r\n")
    feed(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 76 * 1024 + b"\r\n\r\n")
    with pytest.raises(TransportFailure, match="larger than"):
        feed(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 86 * 1024 + b"\r\n\r\n")
    with pytest.raises(TransportFailure, match="larger than"):
        feed(*[b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"] * 3000)
    with pytest.raises(TransportFailure, match="trailers"):
        feed(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 101 + b"\r\n")
