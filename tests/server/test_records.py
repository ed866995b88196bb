"""Whoever watches a server hears of each request twice: when it begins, and, exactly once, when it is over."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import meshlib
from meshlib.engine.observer import InboundCall, InboundObserver
from meshlib.runtime.clock import FakeClock, SystemClock
from meshlib.server import asgi, wsgi
from meshlib.server.inbound import Inbound
from tests.server import http_servers
from tests.server.identities import CLIENT
from tests.server.records import QUIET, Recorder, watched
from tests.server.servers import SERVICE, asyncio_server, blocking_server
from tests.server.test_inbound import NAME, NOBODY_MAY, arrival, certified, chain, listener
from tests.server.test_middleware import environ, ok, run, scope


def outcome(record: InboundCall) -> tuple[int, str, str, int]:
    return record.status, ",".join(record.flags) or "-", record.details, record.bytes_sent


OK = (200, "-", "via_upstream")
GONE = (200, "DC", "downstream_remote_disconnect")


# --- WSGI ------------------------------------------------------------------------------------------------------------


def serve_wsgi(body: Any, headers: Any = (), take: int | None = None, **more: Any) -> InboundCall:
    """The record of a response of which the server took so many parts; None: all of them."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", list(headers))
        return body() if callable(body) else body

    with watched() as (mesh, recorder):
        given: Any = wsgi.MeshMiddleware(app, Inbound(mesh))(environ(**more), lambda *_: None)
        parts = iter(given)
        if take is None:
            list(parts)
        else:
            for _ in range(take):
                next(parts)
        for _ in range(2):
            if hasattr(given, "close"):
                given.close()
        return recorder.only


def parts() -> Iterator[bytes]:
    yield b"12"
    yield b"345"


def test_the_facts_of_a_request() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        clock.advance(0.25)
        start_response("201 Created", [("X-Answer", "1")])
        return [b"12"]

    clock = FakeClock()
    asked = environ(
        REQUEST_METHOD="POST", PATH_INFO="/a", QUERY_STRING="q=1", SERVER_PROTOCOL="HTTP/1.0",
        REMOTE_PORT="4711", CONTENT_LENGTH="7", HTTP_X_A="b",
    )  # fmt: skip
    with watched(clock=clock) as (mesh, recorder):
        wsgi.MeshMiddleware(app, Inbound(mesh))(asked, lambda *_: None)
        record = recorder.only
    assert (record.method, record.scheme, record.authority, record.path) == (
        "POST",
        "http",
        "svc.example",
        "/a?q=1",
    )
    assert (record.protocol, record.remote, record.client) == ("HTTP/1.0", "10.0.0.1:4711", "10.0.0.1")
    assert record.first("x-a") == "b"
    assert (record.peer, record.own, record.secure, record.listener, record.manager) == (
        None,
        None,
        False,
        "",
        None,
    )
    assert outcome(record) == (201, "-", "via_upstream", 2)
    assert record.bytes_received == 7
    assert list(record.response_headers) == [("x-answer", "1")]
    assert record.ended - record.started == pytest.approx(0.25)
    assert record.epoch == clock.time() - 0.25


@pytest.mark.parametrize("body", [[b"12", b"345"], (b"12345",), parts])
def test_each_kind_of_wsgi_body(body: Any) -> None:
    assert outcome(serve_wsgi(body)) == (*OK, 5)


@pytest.mark.parametrize(
    ("headers", "method", "expected"),
    [
        ([], "GET", (*GONE, 2)),
        ([("Content-Length", "5")], "GET", (*GONE, 2)),
        ([("Content-Length", "2")], "GET", (*OK, 2)),
        ([("Content-Length", "5")], "HEAD", (*OK, 2)),
    ],
)
def test_a_wsgi_response_that_is_closed_early(headers: Any, method: str, expected: Any) -> None:
    assert outcome(serve_wsgi(parts, headers, take=1, REQUEST_METHOD=method)) == expected


def test_a_wsgi_application_that_raises() -> None:
    def failing() -> Iterator[bytes]:
        yield b"12"
        raise ZeroDivisionError

    with watched() as (mesh, recorder):

        def app(environ: Any, start_response: Any) -> Any:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            wsgi.MeshMiddleware(app, Inbound(mesh))(environ(), lambda *_: None)
        assert isinstance(recorder.only.error, ZeroDivisionError)
        assert outcome(recorder.only) == (500, "-", "via_upstream", 0)
    with watched() as (mesh, recorder):
        inbound = Inbound(mesh)
        given: Any = wsgi.MeshMiddleware(lambda e, s: (s("200 OK", []), failing())[1], inbound)(
            environ(), lambda *_: None
        )
        with pytest.raises(ZeroDivisionError):
            list(given)
        given.close()
        assert isinstance(recorder.only.error, ZeroDivisionError)
        assert outcome(recorder.only) == (*OK, 2)


@pytest.mark.parametrize("slots", [False, True])
def test_a_file_is_over_when_it_is_closed(slots: bool) -> None:
    class Wrapper:
        closed = False

        def __iter__(self) -> Iterator[bytes]:
            return iter([b"file"])

        def close(self) -> None:
            self.closed = True

    class Sealed(Wrapper):
        __slots__ = ()

        def __setattr__(self, name: str, value: Any) -> None:
            if name == "close":
                raise AttributeError(name)
            super().__setattr__(name, value)

    cls = Sealed if slots else Wrapper
    wrapped = cls()
    with watched() as (mesh, recorder):

        def app(environ: Any, start_response: Any) -> Any:
            start_response("200 OK", [("Content-Length", "4")])
            return wrapped

        given: Any = wsgi.MeshMiddleware(app, Inbound(mesh))(
            environ(**{"wsgi.file_wrapper": cls}), lambda *_: None
        )
        assert given is wrapped
        assert len(recorder.over) == slots
        given.close()
        assert wrapped.closed
        assert outcome(recorder.only) == (*OK, 4)


def test_what_write_sends_counts() -> None:
    sent: list[bytes] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])(b"123")
        return [b"4"]

    with watched() as (mesh, recorder):
        wsgi.MeshMiddleware(app, Inbound(mesh))(environ(), lambda *_: sent.append)
        assert outcome(recorder.only) == (*OK, 4)
    assert sent == [b"123"]


def test_flask_tells_its_route() -> None:
    import flask

    app = flask.Flask(__name__)

    @app.get("/users/<int:number>")
    def user(number: int) -> str:
        return str(number)

    with watched() as (mesh, recorder):
        app.wsgi_app = wsgi.MeshMiddleware(app.wsgi_app, Inbound(mesh))  # type: ignore[method-assign]
        with app.test_client() as client:
            assert client.get("/users/7").text == "7"
        assert (recorder.only.operation, *outcome(recorder.only)) == ("/users/<int:number>", *OK, 1)
        assert b"not found" in app.test_client().get("/nothing").data
        assert (recorder.over[1].operation, recorder.over[1].status) == ("", 404)


# --- refusals --------------------------------------------------------------------------------------------------------

DENIED = "rbac_access_denied_matched_policy[none]"


def test_refusals_are_told_too() -> None:
    with watched() as (mesh, recorder):
        inbound = Inbound(mesh, rbac=NOBODY_MAY)
        wsgi.MeshMiddleware(ok, inbound)(environ(), lambda *_: None)
        assert outcome(recorder.only) == (403, "-", DENIED, 19)
        run(asgi.MeshMiddleware(http_servers.asgi_app, inbound), scope(scheme="http"))
        run(asgi.MeshMiddleware(http_servers.asgi_app, inbound), scope("websocket", scheme="ws"))
        of_grpc = [(b"content-type", b"application/grpc")]
        run(asgi.MeshMiddleware(http_servers.asgi_app, inbound), scope(headers=of_grpc))
        assert [outcome(each)[:3] for each in recorder.over[1:]] == [
            (403, "-", DENIED),
            (403, "-", DENIED),
            (200, "-", DENIED),
        ]
        assert recorder.over[3].grpc_status == "7"
        assert len(recorder.begun) == 4


def test_the_listener_and_who_calls() -> None:
    with watched(listener(chain(xff_num_trusted_hops=1))) as (mesh, recorder):
        middleware = asgi.MeshMiddleware(http_servers.asgi_app, Inbound(mesh, listener=NAME))
        headers = [(b"x-forwarded-for", b"192.0.2.1, 192.0.2.2")]
        run(middleware, scope(headers=headers), certified(CLIENT))
        record = recorder.only
    assert (record.listener, record.peer, record.secure) == (NAME, CLIENT, True)
    assert (record.client, record.remote) == ("192.0.2.1", "10.0.0.1:1")
    assert record.manager is not None
    assert record.manager.stat_prefix == "in"


# --- ASGI ------------------------------------------------------------------------------------------------------------

Message = dict[str, Any]
START: Message = {"type": "http.response.start", "status": 200, "headers": [(b"X-A", b"b")]}
TRAILERS: Message = {"type": "http.response.trailers", "headers": [(b"grpc-status", b"5")]}
ACCEPT: Message = {"type": "websocket.accept"}


def part(data: bytes = b"12", more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


def serve_asgi(
    sends: list[Message],
    receives: Sequence[Message] = (),
    error: BaseException | None = None,
    **more: Any,
) -> InboundCall:
    """The record of an application that receives these messages, sends those, and raises."""
    with watched() as (mesh, recorder):

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["route"] = type("Route", (), {"path": "/users/{number}"})
            for _ in receives:
                await receive()
            for message in sends:
                await send(message)
            if error is not None:
                raise error

        async def main() -> None:
            waiting = iter(receives)

            async def receive() -> Any:
                return next(waiting)

            async def send(message: Any) -> None: ...

            with contextlib.suppress(ZeroDivisionError, asyncio.CancelledError):
                await asgi.MeshMiddleware(app, Inbound(mesh))(scope(**more), receive, send)

        asyncio.run(main())
        return recorder.only


@pytest.mark.parametrize(
    ("sends", "receives", "expected"),
    [
        ([START, part()], [], (*OK, 2)),
        ([START, part(more=True), part(b"345")], [], (*OK, 5)),
        ([START, part(more=True)], [{"type": "http.disconnect"}], (*GONE, 2)),
        ([START, part()], [{"type": "http.disconnect"}], (*OK, 2)),
        ([{**START, "trailers": True}, part(), TRAILERS], [], (*OK, 2)),
        ([], [{"type": "http.disconnect"}], (0, "DC", "downstream_remote_disconnect", 0)),
        ([START, {"type": "http.response.pathsend", "path": "/f"}], [], (*OK, 0)),
    ],
)
def test_each_end_of_an_asgi_response(sends: list[Message], receives: list[Message], expected: Any) -> None:
    record = serve_asgi(sends, receives)
    assert outcome(record) == expected
    assert record.operation == "/users/{number}"
    assert list(record.response_headers) == ([("x-a", "b")] if sends else [])


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", "/users/{number}"),
        ("/mount", "/mount", "/users/{number}"),
        ("/mount", "/mount/api", "/api/users/{number}"),
        ("", "/t/blue", "/t/{tenant}/users/{number}"),
        ("/mount", "/other", "/users/{number}"),
    ],
)
def test_the_route_of_what_is_mounted(before: str, after: str, expected: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = type("Route", (), {"path": "/users/{number:int}", "path_format": "/users/{number}"})
        scope["root_path"], scope["path_params"] = after, {"tenant": "blue", "number": 7}
        await send(START)
        await send(part())

    with watched() as (mesh, recorder):
        run(asgi.MeshMiddleware(app, Inbound(mesh)), scope(root_path=before))
        assert recorder.only.operation == expected


def test_what_is_received_and_the_status_of_grpc() -> None:
    pieces: list[Message] = [
        {"type": "http.request", "body": b"123", "more_body": True},
        {"type": "http.request"},
    ]
    record = serve_asgi([{**START, "trailers": True}, part(), TRAILERS], pieces)
    assert (record.bytes_received, record.grpc_status) == (3, "5")
    assert list(record.response_trailers) == [("grpc-status", "5")]


@pytest.mark.parametrize(
    ("sends", "error", "expected"),
    [
        ([], ZeroDivisionError(), (500, "-", "via_upstream", 0)),
        ([START, part(more=True)], ZeroDivisionError(), (*OK, 2)),
        ([START, part()], ZeroDivisionError(), (*OK, 2)),
        ([START], asyncio.CancelledError(), (*GONE, 0)),
    ],
)
def test_an_asgi_application_that_raises(
    sends: list[Message], error: BaseException, expected: tuple[Any, ...]
) -> None:
    record = serve_asgi(sends, error=error)
    assert outcome(record) == expected
    over_before = any(not message.get("more_body", True) for message in sends)
    cancelled = isinstance(error, asyncio.CancelledError)
    assert record.error is (None if over_before or cancelled else error)


@pytest.mark.parametrize(
    ("sends", "receives", "expected"),
    [
        ([ACCEPT, {"type": "websocket.send", "text": "é"}, {"type": "websocket.close"}], [], (101, "-", 2)),
        ([{"type": "websocket.close"}], [], (403, "-", 0)),
        ([ACCEPT], [{"type": "websocket.disconnect", "code": 1000}], (101, "-", 0)),
        ([ACCEPT], [{"type": "websocket.disconnect", "code": 1006}], (101, "DC", 0)),
        ([ACCEPT], [], (101, "-", 0)),
    ],
)
def test_web_sockets(sends: list[Message], receives: list[Message], expected: Any) -> None:
    record = serve_asgi(sends, [*receives], kind="websocket")
    assert (record.status, ",".join(record.flags) or "-", record.bytes_sent) == expected


@given(st.lists(st.sampled_from([START, part(more=True), part(), TRAILERS, ACCEPT]), max_size=6))
def test_an_end_is_told_once_whatever_is_sent(sends: list[Message]) -> None:
    assert serve_asgi(sends).ended > 0


def test_the_answer_is_over_before_what_goes_on_behind_it() -> None:
    with watched() as (mesh, recorder):

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send(START)
            await send(part())
            assert len(recorder.over) == 1
            mesh.clock.advance(60)  # type: ignore[attr-defined]

        mesh.engine.clock = mesh.clock = clock = FakeClock()
        run(asgi.MeshMiddleware(app, Inbound(mesh)), scope())
        assert recorder.only.ended == clock.monotonic() - 60


def test_what_an_observer_sets_is_undone_where_it_was_set() -> None:
    from contextvars import ContextVar

    own: ContextVar[str] = ContextVar("own", default="")
    found: list[str] = []

    class Setting(InboundObserver):
        def inbound_begun(self, record: InboundCall) -> None:
            token = own.set("set")
            record.undo.append(lambda: own.reset(token))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(own.get())

    def wsgi_app(environ: Any, start_response: Any) -> Any:
        found.append(own.get())
        return []

    with watched() as (mesh, _):
        mesh.engine.observe(Setting())

        async def main() -> None:
            await asgi.MeshMiddleware(app, Inbound(mesh))(scope(), None, None)  # type: ignore[arg-type]
            found.append(own.get())

        asyncio.run(main())
        wsgi.MeshMiddleware(wsgi_app, Inbound(mesh))(environ(), lambda *_: None)
        found.append(own.get())
    assert found == ["set", "", "set", ""]


def test_an_observer_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(InboundObserver):
        def inbound_begun(self, record: InboundCall) -> None:
            raise ZeroDivisionError

        def inbound_over(self, record: InboundCall) -> None:
            raise ZeroDivisionError

    with watched() as (mesh, recorder):
        mesh.engine.observe(Failing())
        for _ in range(3):
            wsgi.MeshMiddleware(ok, Inbound(mesh))(environ(), lambda *_: None)
        assert len(recorder.over) == 3
    assert len(caplog.records) <= 2


def test_a_mesh_that_cannot_start_keeps_nobody_from_being_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def start() -> None:
        raise meshlib.ConfigError("gevent has patched `threading`")

    with watched() as (mesh, recorder):
        mesh.engine.starting = start
        inbound = Inbound(mesh)
        for _ in range(2):
            assert wsgi.MeshMiddleware(ok, inbound)(environ(), lambda *_: None) == [b"ok"]
        assert len(recorder.over) == 2
    assert [each.message for each in caplog.records if each.name == "meshlib.server"] == [
        "the Mesh of this server does not start: gevent has patched `threading`"
    ]


def test_nobody_watches() -> None:
    with meshlib.Mesh(config=[], observe=QUIET) as mesh:
        visit = Inbound(mesh).receive(arrival(), "HTTP/1.1")
        assert visit.record is None
        assert not visit.is_watched
        visit.over()
        visit.lost()


@pytest.mark.parametrize("kind", http_servers.SERVERS)
def test_real_servers_end_each_request_once(kind: str) -> None:
    with watched() as (mesh, recorder):
        inbound = Inbound(mesh, mode="DISABLE")
        with http_servers.serving(kind, inbound) as port, httpx.Client() as client:
            for path in ("/a", "/slow", "/a"):
                client.get(f"http://127.0.0.1:{port}{path}").read()
    assert [each.path for each in recorder.over] == ["/a", "/slow", "/a"]
    for record in recorder.over:
        assert outcome(record)[:3] == OK
        assert record.bytes_sent > 0
        assert record.remote.startswith("127.0.0.1:") or kind == "werkzeug"


# --- gRPC ------------------------------------------------------------------------------------------------------------


class Ends:
    """Handlers by how they end. told: set by the handlers that then wait for their caller to go."""

    def __init__(self) -> None:
        self.told = threading.Event()

    def blocking(self) -> dict[str, Any]:
        def good(request: Any, context: Any) -> bytes:
            return b""

        def noted(request: Any, context: Any) -> bytes:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return b""

        def aborts(request: Any, context: Any) -> bytes:
            context.abort(grpc.StatusCode.ABORTED, "no")
            raise AssertionError

        def fails(request: Any, context: Any) -> bytes:
            raise ZeroDivisionError

        def waits(request: Any, context: Any) -> Iterator[bytes]:
            left = threading.Event()
            context.add_callback(left.set)
            yield b""
            self.told.set()
            left.wait(10)

        def echoes(requests: Any, context: Any) -> Iterator[bytes]:
            yield from requests

        return _handlers(good, noted, aborts, fails, waits, echoes)

    def asyncio(self) -> dict[str, Any]:
        async def good(request: Any, context: Any) -> bytes:
            return b""

        async def noted(request: Any, context: Any) -> bytes:
            context.set_code(grpc.StatusCode.NOT_FOUND)
            return b""

        async def aborts(request: Any, context: Any) -> None:
            await context.abort(grpc.StatusCode.ABORTED, "no")

        async def fails(request: Any, context: Any) -> bytes:
            raise ZeroDivisionError

        async def waits(request: Any, context: Any) -> AsyncIterator[bytes]:
            yield b""
            self.told.set()
            await asyncio.Event().wait()

        async def echoes(requests: Any, context: Any) -> AsyncIterator[bytes]:
            async for request in requests:
                yield request

        return _handlers(good, noted, aborts, fails, waits, echoes)


def _handlers(*functions: Any) -> dict[str, Any]:
    made = {each.__name__: grpc.unary_unary_rpc_method_handler(each) for each in functions[:4]}
    waits, echoes = functions[4:]
    made["waits"] = grpc.unary_stream_rpc_method_handler(waits)
    made["echoes"] = grpc.stream_stream_rpc_method_handler(echoes)
    return made


KINDS = {
    "blocking": (blocking_server, Ends.blocking),
    "asyncio": (asyncio_server, Ends.asyncio),
    "asyncio-blocking": (asyncio_server, Ends.blocking),
}


def settled(recorder: Recorder, number: int) -> None:
    """A server tells of the end of a call a moment after its caller has seen it."""
    pause = threading.Event()
    for _ in range(2_000):
        if len(recorder.over) >= number:
            return
        pause.wait(0.005)
    raise AssertionError(f"{len(recorder.over)} of {number} are over")


@pytest.mark.parametrize("kind", KINDS)
def test_each_end_of_a_grpc_call(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    serve, handlers = KINDS[kind]
    expected = {"good": "0", "noted": "5", "aborts": "10", "fails": "2"}
    with watched() as (mesh, recorder):
        with serve(handlers(Ends()), SystemClock(), Inbound(mesh)) as address:
            with grpc.insecure_channel(address) as channel:
                for name, code in expected.items():
                    done = channel.unary_unary(f"/{SERVICE}/{name}").future(b"", timeout=20)
                    assert str(done.code().value[0]) == code
                sent = channel.stream_stream(f"/{SERVICE}/echoes")(iter([b"1", b"2", b"3"]), timeout=20)
                assert list(sent) == [b"1", b"2", b"3"]
            settled(recorder, 5)
    records = {record.operation.rpartition("/")[2]: record for record in recorder.over}
    assert len(recorder.over) == len(recorder.begun) == 5
    for name, code in expected.items():
        record = records[name]
        assert (record.grpc_status, outcome(record)[:3], record.protocol) == (code, OK, "HTTP/2")
        assert (record.messages_received, record.messages_sent) == (1, int(name in ("good", "noted")))
        assert isinstance(record.error, ZeroDivisionError) is (name == "fails")
        assert record.client == "127.0.0.1"
    assert (records["echoes"].messages_received, records["echoes"].messages_sent) == (3, 3)
    caplog.clear()  # what was logged has the frames of the server


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_callers_that_go_away(kind: str, late: bool) -> None:
    serve, handlers = KINDS[kind]
    ends = Ends()
    with watched() as (mesh, recorder):
        with serve(handlers(ends), SystemClock(), Inbound(mesh)) as address:
            with grpc.insecure_channel(address) as channel:
                waits = channel.unary_stream(f"/{SERVICE}/waits")
                responses = waits(b"", timeout=0.5 if late else 30)
                assert next(responses) == b""
                assert ends.told.wait(20)
                if late:
                    with pytest.raises(grpc.RpcError):
                        next(responses)
                else:
                    responses.cancel()
                settled(recorder, 1)
        record = recorder.only
    assert outcome(record)[:3] == GONE
    assert record.grpc_status in (("4", "1") if late else ("1",))
    assert record.messages_sent == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_is_refused(kind: str) -> None:
    serve, handlers = KINDS[kind]
    with watched() as (mesh, recorder):
        with serve(handlers(Ends()), SystemClock(), Inbound(mesh, rbac=NOBODY_MAY)) as address:
            with grpc.insecure_channel(address) as channel:
                for name in ("good", "waits"):
                    method = channel.unary_unary if name == "good" else channel.unary_stream
                    with pytest.raises(grpc.RpcError) as raised:
                        list(method(f"/{SERVICE}/{name}")(b"", timeout=20))
                    assert raised.value.code() is grpc.StatusCode.PERMISSION_DENIED
            settled(recorder, 2)
    for record in recorder.over:
        assert (record.grpc_status, record.details, record.messages_sent) == ("7", DENIED, 0)
    assert len(recorder.begun) == len(recorder.over) == 2
