"""What users of httpx rely on stays as it is, and what the mesh decides is visible."""

from __future__ import annotations

import errno
import gzip
import io
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

import meshlib
import meshlib.httpx
from meshlib import errors
from meshlib.resources.headers import HeaderEdits
from meshlib.resources.route import RetryPolicy
from meshlib.runtime.clock import FakeClock
from meshlib.transport.http.message import OutgoingRequest
from meshlib.transport.http.pools import pools_of
from meshlib.transport.http.sync_connection import SyncConnection
from tests.ports import reserved
from tests.transport.http.drivers import AsyncDriver, Driver, SyncDriver
from tests.transport.http.support import OK, info, mesh_for, read_request, response, serve


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port that refuses connections."""
    with reserved() as port:
        yield port


def test_a_plain_response(driver: Driver) -> None:
    with serve(response(b"hello", "200 Fine", "content-type: text/plain", "set-cookie: a=b")) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        answer = driver.get("/path?x=1")
        assert (answer.status_code, answer.text, answer.reason_phrase) == (200, "hello", "Fine")
        assert answer.http_version == "HTTP/1.1"
        assert answer.num_bytes_downloaded == 5
        assert answer.elapsed.total_seconds() > 0
        assert str(answer.url) == "http://backend/path?x=1"
        assert answer.is_closed
        assert answer.is_stream_consumed
        assert answer.headers["content-type"] == "text/plain"
        assert driver.client.cookies["a"] == "b"
        assert info(answer).cluster == "backend"
        assert info(answer).virtual_host == "all"
        assert (info(answer).flags, info(answer).details) == ("-", "via_upstream")
        assert info(answer).attempts[0].endpoint == f"127.0.0.1:{server.port}"
        request = server.received[0]
        assert request.startswith(b"GET /path?x=1 HTTP/1.1\r\nHost: backend\r\n")
        driver.get("/")
        assert b"Cookie: a=b" in server.received[1]
        assert mesh.permits() == (1, 0, 0, 0)
        assert driver.idle() == 1


def test_a_response_can_be_pickled_and_read_twice(driver: Driver) -> None:
    with serve(OK) as server:
        driver.open(mesh_for([server.port]))
        answer = pickle.loads(pickle.dumps(driver.get()))
        assert answer.text == "hello"
        assert answer.read() == b"hello"


@pytest.mark.interpreted
def test_a_wait_that_ends_early_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection waits by the system's time, the engine by its clock's: they need not agree to the microsecond."""
    limits: list[float] = []

    def early(connection: SyncConnection, request: OutgoingRequest, limit: float) -> None:
        limits.append(limit)
        connection.begin(request, None)
        raise TimeoutError

    driver = SyncDriver(httpx, meshlib.httpx)
    with serve(OK) as server:
        driver.open(mesh_for([server.port]), timeout=None)
        driver.get()
        monkeypatch.setattr(SyncConnection, "round_trip", early)
        assert driver.get().text == "hello"
        assert len(limits) == 1
        driver.close()


def test_encoded_bodies_are_decoded(driver: Driver) -> None:
    packed = gzip.compress(b"hello" * 100)
    with serve(response(packed, "200 OK", "content-encoding: gzip")) as server:
        driver.open(mesh_for([server.port]))
        answer = driver.get()
        assert answer.text == "hello" * 100
        assert answer.num_bytes_downloaded == len(packed)
        streamed, raw = driver.stream("/")
        assert raw == packed
        assert streamed.is_closed


def test_redirects_auth_and_hooks(driver: Driver) -> None:
    seen: list[int] = []

    def hook(answer: Any) -> None:
        seen.append(answer.status_code)

    async def async_hook(answer: Any) -> None:
        seen.append(answer.status_code)

    hooks = {"response": [async_hook if isinstance(driver, AsyncDriver) else hook]}
    with serve([response(b"", "302 Found", "location: /b"), OK]) as server:
        driver.open(mesh_for([server.port]), follow_redirects=True, event_hooks=hooks, auth=("u", "p"))
        answer = driver.get("/a")
        assert answer.text == "hello"
        assert [str(step.url) for step in answer.history] == ["http://backend/a"]
        assert seen == [302, 200]
        assert server.received[1].startswith(b"GET /b ")
        assert b"Authorization: Basic" in server.received[1]
        assert server.accepted == 1


def test_the_configuration_answers_by_itself(driver: Driver) -> None:
    driver.open(mesh_for([1]))
    answer = driver.get("/direct")
    assert (answer.status_code, answer.text) == (418, "short and stout")
    assert answer.elapsed.total_seconds() >= 0
    assert info(answer).details == "direct_response"
    moved = driver.get("/moved")
    assert (moved.status_code, moved.headers["location"]) == (301, "http://backend/elsewhere")


def test_edits_and_rewrites_reach_the_wire(driver: Driver) -> None:
    with serve(OK) as server:
        driver.open(
            mesh_for([server.port], prefix_rewrite="/v2/", response_headers=HeaderEdits(remove=("x",)))
        )
        answer = driver.get("/a", headers={b"X-Mixed": "ü".encode()})
        assert str(answer.url) == "http://backend/a"
        assert server.received[0].startswith(b"GET /v2/a HTTP/1.1\r\n")
        assert "ü".encode() in server.received[0]


def test_a_host_header_of_the_application_is_the_authority(driver: Driver) -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port], host="special")
        driver.open(mesh)
        assert driver.get("/", headers={"Host": "special"}).status_code == 200
        assert server.received[0].count(b"Host: special\r\n") == 1
        with pytest.raises(errors.NoRoute):
            driver.get("/")


def test_content_is_sent_with_its_length(driver: Driver) -> None:
    with serve(OK) as server:
        driver.open(mesh_for([server.port]))
        driver.request("POST", "/", json={"a": 1})
        assert server.received[-1].endswith(b'{"a":1}')
        big = bytes(range(256)) * 4096
        driver.request("POST", "/", content=big)
        assert server.received[-1].endswith(big)
        assert len(server.received[-1]) < len(big) + 300
        driver.request("POST", "/", content=b"")
        assert b"Content-Length: 0" in server.received[-1]
        assert server.accepted == 1


def test_streamed_content_is_chunked_or_has_the_declared_length(driver: Driver) -> None:
    with serve(OK) as server:
        driver.open(mesh_for([server.port]))
        driver.request("POST", "/", content=driver.body([b"ab", b"", b"c"]))
        assert server.received[-1].endswith(b"\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
        driver.request("POST", "/", content=driver.body([b"ab", b"c"]), headers={"Content-Length": "3"})
        assert server.received[-1].endswith(b"\r\n\r\nabc")
        driver.request("POST", "/", files={"f": ("name", io.BytesIO(b"file data"))})
        assert b"file data" in server.received[-1]
        pieces = [b"x" * 50_000] * 40
        driver.request("POST", "/", content=driver.body(pieces))
        assert server.received[-1].count(b"x") >= 2_000_000
        assert server.accepted == 1


@pytest.mark.parametrize(("length", "message"), [("2", "Too much"), ("9", "Too little")])
def test_a_wrong_declared_length_is_the_applications_error(driver: Driver, length: str, message: str) -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        with pytest.raises(driver.lib.LocalProtocolError, match=message):
            driver.request(
                "POST", "/", content=driver.body([b"ab", b"c"]), headers={"Content-Length": length}
            )
        assert mesh.permits() == (0, 0, 0, 0)


class Broken(Exception):
    pass


def test_an_error_of_the_applications_iterator_comes_back(driver: Driver) -> None:
    def pieces() -> Any:
        yield b"first"
        raise Broken

    with serve(OK) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        with pytest.raises(Broken):
            driver.request("POST", "/", content=driver.body(pieces()))
        assert mesh.permits() == (0, 0, 0, 0)
        assert mesh.active() == 0


@pytest.mark.parametrize(
    ("header", "value"),
    [("x", "a\r\nevil: 1"), ("x", "a\nb"), ("x", "a\0b"), ("x y", "1"), ("x:y", "1"), ("", "1")],
)
def test_headers_cannot_add_lines(driver: Driver, header: str, value: str) -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        with pytest.raises(driver.lib.LocalProtocolError):
            driver.get("/", headers={header: value})
        assert server.received == []
        assert mesh.permits()[1:] == (0, 0, 0)


@pytest.mark.parametrize("method", ["CONNECT", "GET /other HTTP/1.1\r\nx:", "GET /other", ""])
def test_methods_that_are_none_or_would_need_a_tunnel(driver: Driver, method: str) -> None:
    with serve(OK) as server:
        driver.open(mesh_for([server.port]))
        with pytest.raises(driver.lib.LocalProtocolError):
            driver.request(method, "/")
        assert driver.request("PURGE", "/").status_code == 200
        assert server.received[0].startswith(b"PURGE / ")


def test_streaming_a_response(driver: Driver) -> None:
    def script(sock: socket.socket, number: int) -> None:
        while read_request(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n")
            sock.sendall(b"x" * 3_000_000)

    with serve(script) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        _, data = driver.stream("/")
        assert data == b"x" * 3_000_000
        assert mesh.permits() == (1, 0, 0, 0)
        _, data = driver.stream("/", pieces=1)
        assert 0 < len(data) < 3_000_000
        assert mesh.permits() == (0, 0, 0, 0)
        assert driver.get().content == b"x" * 3_000_000
        assert server.accepted == 2


def test_an_early_answer_ends_the_upload(driver: Driver) -> None:
    """A server that refuses a large body and reads no more of it."""

    def script(sock: socket.socket, _number: int) -> None:
        sock.recv(1000)
        sock.sendall(response(b"too large", "413 Content Too Large"))
        done.wait(10)

    done = threading.Event()
    with serve(script) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        try:
            streamed = driver.request("POST", "/", content=driver.body([b"x" * 100_000] * 200))
            assert (streamed.status_code, streamed.text) == (413, "too large")
            whole = driver.request("POST", "/", content=b"x" * 20_000_000)
            assert (whole.status_code, whole.text) == (413, "too large")
            assert mesh.permits() == (0, 0, 0, 0)
            assert driver.idle() == 0
        finally:
            done.set()


def test_request_and_response_bodies_at_the_same_time(driver: Driver) -> None:
    """An echo server that blocks unless the client reads while it writes."""

    def script(sock: socket.socket, _number: int) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(4096)
        rest = head.partition(b"\r\n\r\n")[2]
        sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + rest)
        tail = rest
        while not tail.endswith(b"0\r\n\r\n"):
            piece = sock.recv(65536)
            tail = (tail + piece)[-5:]
            sock.sendall(piece)

    with serve(script) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        pieces = [bytes([number % 251]) * 100_000 for number in range(200)]
        answer = driver.request("POST", "/", content=driver.body(pieces))
        assert answer.content == b"".join(pieces)


def test_nothing_listens(driver: Driver, refusing: int) -> None:
    mesh = mesh_for([refusing])
    driver.open(mesh)
    with pytest.raises(errors.ConnectFailed) as caught:
        driver.get()
    assert isinstance(caught.value, driver.lib.ConnectError)
    assert caught.value.flags == "UF"
    assert "delayed_connect_error:_Connection_refused" in caught.value.details
    assert caught.value.attempts[0].failure == "remote connection failure"
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is type(caught.value)
    assert (copy.flags, copy.details, str(copy)) == ("UF", caught.value.details, str(caught.value))
    assert mesh.permits() == (0, 0, 0, 0)


def test_local_replies_as_responses(driver: Driver, refusing: int) -> None:
    mesh = mesh_for([refusing])
    driver.open(mesh, local_reply="response")
    answer = driver.get()
    assert answer.status_code == 503
    assert answer.text.endswith("reset reason: remote connection failure")
    assert info(answer).flags == "UF"
    assert answer.headers["content-type"] == "text/plain"
    missing = driver.get("/no-cluster")
    assert (missing.status_code, info(missing).flags) == (503, "NC")


def test_retries_go_to_another_endpoint_and_replay_the_body(driver: Driver) -> None:
    retry = RetryPolicy(retry_on=frozenset(["connect-failure", "5xx"]), num_retries=3)
    failing = response(b"", "503 Service Unavailable")
    with serve(failing) as bad, serve(OK) as good:
        mesh = mesh_for([bad.port, good.port], retry=retry)
        driver.open(mesh)
        for _ in range(4):
            answer = driver.request("POST", "/", content=driver.body([b"part one, ", b"part two"]))
            assert answer.text == "hello"
            assert good.received[-1].endswith(b"a\r\npart one, \r\n8\r\npart two\r\n0\r\n\r\n")
        assert bad.received
        assert bad.received[-1].endswith(b"0\r\n\r\n")
        assert mesh.permits()[1:] == (0, 0, 0)


def test_a_body_beyond_the_buffer_is_not_sent_again(driver: Driver) -> None:
    retry = RetryPolicy(retry_on=frozenset(["5xx"]), num_retries=3)
    with serve(response(b"busy", "503 Service Unavailable")) as server:
        driver.open(mesh_for([server.port], retry=retry))
        answer = driver.request("POST", "/", content=driver.body([b"x" * 400_000] * 4))
        assert answer.status_code == 503
        assert len(server.received) == 1
        answer = driver.request("POST", "/", content=driver.body([b"x" * 400_000]))
        assert len(server.received) == 5


def test_https_urls_are_refused_with_what_to_do(driver: Driver) -> None:
    driver.open(mesh_for([1]))
    with pytest.raises(driver.lib.UnsupportedProtocol, match="use an http:// URL"):
        driver.get("https://backend/")


def test_unknown_hosts_can_go_without_the_mesh(driver: Driver) -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port], passthrough=True)
        driver.open(mesh)
        answer = driver.get(f"http://127.0.0.1:{server.port}/")
        assert answer.text == "hello"
        assert "meshlib" not in answer.extensions
        assert "meshlib" in driver.get("http://backend/").extensions
        with pytest.raises(driver.lib.UnsupportedProtocol):
            driver.get("https://backend:80/")
        mesh.passthrough = False
        driver.close_client()
        driver.open(mesh)
        with pytest.raises(errors.UnknownHost) as caught:
            driver.get(f"http://127.0.0.1:{server.port}/")
        assert isinstance(caught.value, driver.lib.ConnectError)


def test_the_route_timeout_cuts_a_silent_server(driver: Driver) -> None:
    done = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        done.wait(10)

    with serve(script) as server:
        mesh = mesh_for([server.port], timeout=0.05)
        driver.open(mesh)
        with pytest.raises(errors.DeadlineExceeded) as caught:
            driver.get()
        assert isinstance(caught.value, driver.lib.ReadTimeout)
        assert (caught.value.flags, caught.value.details) == ("UT", "response_timeout")
        assert mesh.permits() == (0, 0, 0, 0)
        done.set()


def test_the_route_timeout_cuts_a_dripping_body(driver: Driver) -> None:
    """Each byte comes well within httpx's read timeout; the deadline is absolute all the same."""
    cut = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not cut.wait(0.01):
            sock.sendall(b"x")

    with serve(script) as server:
        mesh = mesh_for([server.port], timeout=0.1)
        driver.open(mesh)
        with pytest.raises(errors.DeadlineExceeded):
            driver.get()
        assert mesh.permits() == (0, 0, 0, 0)
        cut.set()


def test_httpx_timeouts_go_on_applying(driver: Driver) -> None:
    done = threading.Event()

    def script(sock: socket.socket, number: int) -> None:
        read_request(sock)
        if number:
            sock.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc")
        done.wait(10)

    with serve(script) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        for _ in range(2):
            with pytest.raises(driver.lib.ReadTimeout) as caught:
                driver.get("/", timeout=driver.lib.Timeout(10.0, read=0.05))
            assert isinstance(caught.value, meshlib.MeshError)
        assert mesh.permits() == (0, 0, 0, 0)
        done.set()


def test_the_nearer_timeout_decides(driver: Driver) -> None:
    """httpx's read timeout counts from the request, not from some later look at the clock."""
    done = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        while read_request(sock):
            if done.wait(0.001):
                return
            sock.sendall(OK)
            done.wait(10)

    with serve(script) as server:
        driver.open(mesh_for([server.port], timeout=0.9))
        driver.get()
        with pytest.raises(errors.DeadlineExceeded) as caught:
            driver.get("/", timeout=0.5)
        assert caught.value.details != "response_timeout"
        done.set()


def test_httpx_write_timeout(driver: Driver) -> None:
    done = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        sock.recv(100)
        done.wait(10)

    with serve(script) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        timeout = driver.lib.Timeout(10.0, write=0.05)
        with pytest.raises(driver.lib.WriteTimeout):
            driver.request("POST", "/", content=driver.body([b"x" * 1_000_000] * 50), timeout=timeout)
        assert mesh.permits() == (0, 0, 0, 0)
        done.set()


def test_options_of_the_surrounding_block_apply(driver: Driver) -> None:
    done = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        done.wait(10)

    with serve(script) as server:
        driver.open(mesh_for([server.port]))
        with meshlib.call(timeout=0.05), pytest.raises(meshlib.DeadlineExceeded):
            driver.get()
        done.set()


def test_limits_overflow_at_once(driver: Driver) -> None:
    driver.open(mesh_for([1], max_pending=0))
    with pytest.raises(errors.CircuitFull) as caught:
        driver.get()
    assert isinstance(caught.value, driver.lib.ConnectError)
    assert caught.value.flags == "UO"


def test_connections_retire(driver: Driver) -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port], max_requests_per_connection=2)
        driver.open(mesh)
        for _ in range(5):
            driver.get()
        assert server.accepted == 3
        assert mesh.permits()[0] == 1


def test_no_descriptor_is_left(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call fails as where nobody listens, and nothing remembers the connection that never was."""

    def none_left(*_arguments: Any) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with serve(OK) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", none_left)
            with pytest.raises(errors.ConnectFailed):
                driver.get()
        pools = pools_of(mesh.engine)
        assert not any(pool.members for pool in (pools.sync, *pools._by_loop.values()))
        assert mesh.permits() == (0, 0, 0, 0)
        assert driver.get().status_code == 200


def test_idle_connections_expire(driver: Driver) -> None:
    clock = FakeClock()
    with serve(OK) as server:
        driver.open(mesh_for([server.port], idle_timeout=10.0, clock=clock))
        driver.get()
        clock.advance(9)
        driver.get()
        assert server.accepted == 1
        clock.advance(11)
        driver.get()
        assert server.accepted == 2


def test_a_departed_endpoints_connection_is_closed(driver: Driver) -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        driver.get()
        state = mesh.engine.store.cluster("backend")
        for endpoint in state.endpoints.values():
            endpoint.departed = True
        driver.get()
        assert driver.idle() == 0
        assert mesh.permits() == (0, 0, 0, 0)


def test_closing_is_idempotent_and_closes_idle_connections(driver: Driver) -> None:
    with serve(OK) as server:
        mesh = mesh_for([server.port])
        driver.open(mesh)
        driver.get()
        assert mesh.permits()[0] == 1
        driver.close_client()
        driver.close_client()
        assert mesh.permits()[0] == 0


def test_no_mesh_means_the_default_mesh(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = mesh_for([1])
    monkeypatch.setattr(meshlib, "default_mesh", lambda: mesh, raising=False)
    driver.open(None)  # type: ignore[arg-type]
    assert driver.get("/direct").status_code == 418


def test_options_are_checked(driver: Driver) -> None:
    with pytest.raises(ValueError, match="local_reply"):
        driver.open(mesh_for([1]), local_reply="maybe")


def test_a_stream_that_goes_on_is_not_idle_and_one_that_stops_is(driver: Driver) -> None:
    """stream_idle_timeout counts from the last piece."""
    taken, done, clock = threading.Semaphore(0), threading.Event(), FakeClock()

    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            sock.sendall(b"1\r\nx\r\n")
            taken.acquire(timeout=10)
        done.wait(10)

    with serve(script) as server:
        mesh = mesh_for([server.port], timeout=0.0, stream_idle_timeout=0.15, clock=clock)
        driver.open(mesh, timeout=None)
        seen: list[bytes] = []

        def read() -> None:
            for piece in driver.pieces("/"):
                seen.append(piece)
                clock.advance(0.1 if len(seen) < 20 else 0.2)
                taken.release()

        with pytest.raises(errors.DeadlineExceeded) as caught:
            read()
        assert seen == [b"x"] * 20
        assert caught.value.details == "stream_idle_timeout"
        done.set()


def test_a_body_that_never_pauses_is_cut_at_the_deadline(driver: Driver) -> None:
    cut = threading.Event()

    def script(sock: socket.socket, _number: int) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while not cut.is_set():
            sock.sendall(b"x" * 65536)

    with serve(script) as server:
        mesh = mesh_for([server.port], timeout=0.1)
        driver.open(mesh)
        with pytest.raises(errors.DeadlineExceeded):
            sum(map(len, driver.pieces("/")))
        assert mesh.permits() == (0, 0, 0, 0)
        cut.set()


def test_a_host_that_the_listener_normalises_goes_out_normalised(driver: Driver) -> None:
    with serve(OK) as server:
        driver.open(mesh_for([server.port], strip_any_host_port=True))
        driver.get("http://backend:8080/")
        assert b"\r\nHost: backend\r\n" in server.received[0]
