"""Servers that break the rules, one socket at a time, against every client."""

from __future__ import annotations

import socket
import struct
import threading

import pytest

from meshlib import errors
from meshlib.resources.route import BackOff, RetryPolicy
from tests.transport.http.drivers import Driver
from tests.transport.http.support import OK, info, mesh_for, read_request, response, serve

RESET = RetryPolicy(
    retry_on=frozenset(["reset", "5xx"]), num_retries=2, back_off=BackOff(base_interval=0.001)
)


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", "garbage"),
        (b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n", "broken header"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", "two lengths"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", "smuggling"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n", "length is no number"),
        (b"HTTP/2.0 200 OK\r\ncontent-length: 0\r\n\r\n", "version"),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", "upgrade"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 101 + b"\r\n", "101 headers"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 82_000 + b"\r\n\r\n", "too many bytes of headers"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000, "headers without an end"),
        (b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n", "folded header"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_http_is_a_protocol_error(driver: Driver, reply: bytes, reason: str) -> None:
    with serve([reply]) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        with pytest.raises(errors.ProtocolViolation) as caught:
            driver.get()
        assert isinstance(caught.value, driver.lib.RemoteProtocolError)
        assert caught.value.flags == "UPE"
        assert caught.value.local_reply is not None
        assert caught.value.local_reply.status == 502
        assert mesh.permits() == (0, 0, 0, 0)


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-le"])
@pytest.mark.parametrize("with_reset", [False, True])
def test_an_end_before_the_headers_terminates(driver: Driver, sent: bytes, with_reset: bool) -> None:
    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        sock.sendall(sent)
        if with_reset:
            reset(sock)

    with serve(script) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        with pytest.raises(errors.StreamReset) as caught:
            driver.get()
        assert isinstance(caught.value, driver.lib.ReadError)
        assert isinstance(caught.value, driver.lib.RemoteProtocolError)
        assert caught.value.flags == "UC"
        assert caught.value.request.url == "http://backend/"
        assert mesh.permits() == (0, 0, 0, 0)


def test_a_body_cut_short_is_an_error_of_the_body(driver: Driver) -> None:
    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf")

    with serve(script) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        with pytest.raises(errors.ProtocolViolation) as caught:
            driver.get()
        assert caught.value.details == "upstream_reset_after_response_started{protocol_error}"
        assert mesh.permits() == (0, 0, 0, 0)


def test_a_chunked_body_cut_short(driver: Driver) -> None:
    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")

    with serve(script) as server:
        driver.open(mesh_for([server.port]))
        with pytest.raises(errors.ProtocolViolation):
            driver.get()


def test_a_body_until_the_end_of_the_connection(driver: Driver) -> None:
    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nfirst ")
        sock.sendall(b"second")

    with serve(script) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        answer = driver.get()
        assert answer.text == "first second"
        assert answer.http_version == "HTTP/1.0"
        assert mesh.permits() == (0, 0, 0, 0)


def test_chunks_with_extensions_and_trailers(driver: Driver) -> None:
    body = b"4;name=value\r\nwiki\r\n5\r\npedia\r\n0\r\nx-trailer: 1\r\n\r\n"
    with serve(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + body) as server:
        driver.open(mesh_for([server.port]))
        assert driver.get().text == "wikipedia"
        assert driver.get().text == "wikipedia"
        assert server.accepted == 1


def test_interim_responses_are_skipped(driver: Driver) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
    with serve(interim + OK) as server:
        driver.open(mesh_for([server.port]))
        answer = driver.get()
        assert (answer.status_code, answer.text, answer.reason_phrase) == (200, "hello", "OK")
        assert "link" not in answer.headers
        assert driver.get().status_code == 200
        assert server.accepted == 1


def test_a_dripping_head_arrives(driver: Driver) -> None:
    def script(sock: socket.socket, _number: int) -> None:
        while read_request(sock):
            for byte in OK:
                sock.send(bytes([byte]))

    with serve(script) as server:
        driver.open(mesh_for([server.port]))
        assert driver.get().text == "hello"
        assert driver.get().text == "hello"
        assert server.accepted == 1


@pytest.mark.parametrize(
    "junk", [b"junk", b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil", b"HTTP/1.1 2"]
)
def test_bytes_after_a_response_cost_the_connection_and_nothing_else(driver: Driver, junk: bytes) -> None:
    with serve(OK + junk) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        assert driver.get().text == "hello"
        assert driver.get().text == "hello"
        assert server.accepted == 2
        assert mesh.permits() == (0, 0, 0, 0)


def test_bytes_on_an_idle_connection_close_it(driver: Driver) -> None:
    go_on, sent = threading.Event(), threading.Event()

    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        sock.sendall(OK)
        if number == 0:
            go_on.wait(10)
            sock.sendall(b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n")
            sent.set()
        read_request(sock)

    with serve(script) as server:
        driver.open(mesh_for([server.port]))
        assert driver.get().status_code == 200
        go_on.set()
        assert sent.wait(10)
        assert driver.get().status_code == 200
        assert server.accepted == 2


def test_a_connection_closed_while_idle_is_not_used(driver: Driver) -> None:
    closed = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        sock.sendall(OK)
        sock.shutdown(socket.SHUT_RDWR)
        closed.set()

    with serve(script) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        for number in range(1, 4):
            assert driver.get().text == "hello"
            assert closed.wait(10)
            closed.clear()
            assert server.accepted == number


def test_a_server_that_answers_once_and_then_hangs_up_is_retried_where_the_policy_says_so(
    driver: Driver,
) -> None:
    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        if number > 0:
            sock.sendall(OK)

    with serve(script) as server:
        mesh = mesh_for([server.port], retry=RESET)
        driver.open(mesh)
        answer = driver.get()
        assert answer.text == "hello"
        first, second = info(answer).attempts
        assert (first.status, first.failure) == (None, "connection termination")
        assert (second.status, second.failure) == (200, None)
        assert mesh.permits()[1:] == (0, 0, 0)


def test_a_discarded_response_that_is_complete_leaves_its_connection_usable(driver: Driver) -> None:
    unavailable = response(b"later", "503 Service Unavailable")
    with serve([unavailable, OK]) as server:
        mesh = mesh_for([server.port], retry=RESET)
        driver.open(mesh)
        answer = driver.get()
        assert answer.text == "hello"
        assert len(info(answer).attempts) == 2
        assert server.accepted == 1


def test_a_discarded_response_that_is_not_complete_costs_its_connection(driver: Driver) -> None:
    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        if number == 0:
            sock.sendall(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 1000\r\n\r\nbegin")
            assert sock.recv(1) == b""
        else:
            sock.sendall(OK)

    with serve(script) as server:
        mesh = mesh_for([server.port], retry=RESET)
        driver.open(mesh)
        assert driver.get().text == "hello"
        assert server.accepted == 2
        assert mesh.permits()[1:] == (0, 0, 0)


def test_head_and_bodyless_statuses_keep_the_connection(driver: Driver) -> None:
    replies = [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n",
        OK,
    ]
    with serve(replies) as server:
        driver.open(mesh_for([server.port]))
        statuses = [
            driver.request(method, "/").status_code for method in ("HEAD", "HEAD", "GET", "GET", "GET")
        ]
        assert statuses == [200, 200, 204, 304, 200]
        assert server.accepted == 1


@pytest.mark.parametrize("header", ["connection: close", "Connection: Keep-Alive, Close"])
def test_connection_close_is_obeyed(driver: Driver, header: str) -> None:
    with serve(response(b"hello", "200 OK", header)) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        driver.get()
        assert driver.idle() == 0
        driver.request("HEAD", "/")
        assert driver.idle() == 0
        assert mesh.permits()[0] == 0
        assert server.accepted == 2
