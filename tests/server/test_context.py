"""What calls inherit from the request that is being answered: over WSGI and ASGI, on real servers, and over gRPC."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator, Iterator
from contextvars import ContextVar
from random import Random
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import meshlib
from meshlib.engine.context import INBOUND
from meshlib.engine.options import deadline_of
from meshlib.resources.inbound import DownstreamHttp, FilterChain
from meshlib.resources.listener import HttpConnectionManager
from meshlib.runtime.clock import FakeClock
from meshlib.server import asgi, wsgi
from meshlib.server.inbound import Inbound
from meshlib.server.tls import UNKNOWN
from meshlib.server.visit import inherited, request_id
from tests.server import http_servers
from tests.server.identities import CLIENT
from tests.server.records import QUIET, watched
from tests.server.servers import ARITIES, SERVERS, call
from tests.server.test_inbound import NAME, arrival, certified, chain, listener
from tests.server.test_middleware import environ, run, scope

NOW = 1_000.0
EXPECTED = "x-envoy-expected-rq-timeout-ms"


# --- headers ---------------------------------------------------------------------------------------------------------


@given(
    milliseconds=st.none() | st.integers(0, 10**7),
    timeout=st.none() | st.tuples(st.integers(0, 99_999_999), st.sampled_from("HMSmun")),
    remaining=st.none() | st.floats(0, 10**6),
)
def test_the_deadline_is_the_earliest_that_is_told(
    milliseconds: int | None, timeout: tuple[int, str] | None, remaining: float | None
) -> None:
    headers, left = [("host", "x")], []
    if milliseconds is not None:
        headers.append((EXPECTED, str(milliseconds)))
        left += [milliseconds / 1000] if milliseconds else []
    if timeout is not None:
        headers.append(("grpc-timeout", f"{timeout[0]}{timeout[1]}"))
        left.append(timeout[0] * {"H": 3600, "M": 60, "S": 1, "m": 1e-3, "u": 1e-6, "n": 1e-9}[timeout[1]])
    if remaining is not None:
        left.append(remaining)
    found = inherited(headers, NOW, remaining).deadline
    expected = min(left, default=1e10)
    if expected > 9e9:  # longer than a lock can wait
        assert found is None
    else:
        assert found == pytest.approx(NOW + expected)


@pytest.mark.parametrize("value", ["", "abc", "-5", "1.5", "1,2", "0", str(10**19)])
def test_what_is_no_timeout_is_none(value: str) -> None:
    assert inherited([(EXPECTED, value), ("grpc-timeout", value)], NOW).deadline is None


def test_what_else_is_inherited() -> None:
    context = inherited([("x-request-id", "a"), ("x-request-id", "b"), ("x-envoy-force-trace", "1")], NOW)
    assert (context.request_id, context.forced) == ("a", True)
    assert inherited([("x-request-id", "")], NOW).request_id is None


@pytest.mark.parametrize(
    ("given", "generates", "edge", "preserves", "expected"),
    [
        ("a", True, False, False, "a"),
        ("a", False, False, False, "a"),
        ("a", True, True, False, "new"),
        ("a", True, True, True, "a"),
        ("a", False, True, False, "a"),
        (None, True, False, False, "new"),
        (None, False, False, False, None),
    ],
)
def test_the_request_id_by_the_listener(
    given: str | None, generates: bool, edge: bool, preserves: bool, expected: str | None
) -> None:
    manager = HttpConnectionManager(
        route_config_name="r",
        http_filters=(),
        generate_request_id=generates,
        preserve_external_request_id=preserves,
    )
    found = request_id(
        given,
        FilterChain(http=manager, downstream=DownstreamHttp(use_remote_address=edge)),
        envoy=False,
        random=Random(1),
    )
    assert ("new" if found not in (None, "a") else found) == expected
    if expected == "new":
        assert found is not None
        assert (len(found), found[14]) == (36, "4")


def test_the_request_id_without_a_listener() -> None:
    assert request_id("a", None, envoy=True, random=Random(1)) == "a"
    assert request_id(None, None, envoy=False, random=Random(1)) is None
    assert request_id(None, None, envoy=True, random=Random(1)) is not None


# --- WSGI ------------------------------------------------------------------------------------------------------------

OWN: ContextVar[str] = ContextVar("own", default="unset")


def seen_now(clock: FakeClock | None = None) -> dict[str, Any]:
    inbound = INBOUND.get()
    now = 0.0 if clock is None else clock.monotonic()
    deadline = deadline_of(None, lambda: 0.0)
    return {
        "id": None if inbound is None else inbound.request_id,
        "left": None if deadline is None else round(deadline - now, 6),
        "peer": meshlib.current_peer().address,
        "own": OWN.get(),
    }


def asking(**more: str) -> dict[str, Any]:
    return environ(HTTP_X_REQUEST_ID="a", HTTP_X_ENVOY_EXPECTED_RQ_TIMEOUT_MS="250", **more)


def test_each_step_of_a_wsgi_response_has_the_context_of_its_request() -> None:
    clock = FakeClock()
    found: list[dict[str, Any]] = []

    def body() -> Iterator[bytes]:
        try:
            found.append(seen_now(clock))
            yield b"1"
            found.append(seen_now(clock))
            yield b"2"
        finally:
            found.append(seen_now(clock))

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        OWN.set("set")
        found.append(seen_now(clock))
        return body()

    with watched(clock=clock) as (mesh, _):
        response: Any = wsgi.MeshMiddleware(app, Inbound(mesh))(asking(), lambda *_: None)
        nothing = {"id": None, "left": None, "peer": "", "own": "unset"}
        assert seen_now(clock) == nothing
        assert next(response) == b"1"
        assert seen_now(clock) == nothing
        assert next(response) == b"2"
        response.close()
        assert seen_now(clock) == nothing
    everything = {"id": "a", "left": 0.25, "peer": "10.0.0.1", "own": "set"}
    assert found == [everything] * 4


def test_nothing_is_left_to_the_next_request_of_the_thread() -> None:
    """Also where a server forgets to close what it was given."""

    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        before = seen_now()
        OWN.set("set")
        yield json.dumps(before).encode()

    middleware = wsgi.MeshMiddleware(app)
    first: Any = middleware(asking(), lambda *_: None)
    assert json.loads(next(first))["id"] == "a"
    second: Any = middleware(environ(REMOTE_ADDR="10.0.0.2"), lambda *_: None)
    assert json.loads(next(second)) == {"id": None, "left": None, "peer": "10.0.0.2", "own": "unset"}


def test_flasks_test_client_keeps_the_context_of_the_application() -> None:
    import flask

    app = flask.Flask(__name__)
    app.wsgi_app = wsgi.MeshMiddleware(app.wsgi_app)  # type: ignore[method-assign]

    @app.get("/parts")
    def parts() -> flask.Response:
        def each() -> Iterator[str]:
            for _ in range(2):
                yield f"{flask.request.path} {seen_now()['id']} "

        return flask.Response(flask.stream_with_context(each()))

    @app.get("/broken")
    def broken() -> str:
        raise ZeroDivisionError

    app.testing = True
    with app.test_client() as client:
        client.get("/parts", headers={"x-request-id": "b"})
        assert (seen_now()["id"], seen_now()["peer"]) == (None, "")
        assert client.get("/parts", headers={"x-request-id": "a"}).text == "/parts a /parts a "
        assert flask.request.path == "/parts"
        assert seen_now()["id"] is None
        with pytest.raises(ZeroDivisionError):
            client.get("/broken", headers={"x-request-id": "a"})
        assert (seen_now()["id"], seen_now()["peer"]) == (None, "")
    assert not flask.has_request_context()


def test_an_application_sees_the_request_id_that_counts() -> None:
    found: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        found.append((environ.get("HTTP_X_REQUEST_ID"), INBOUND.get().request_id))  # type: ignore[union-attr]
        return []

    with watched(headers="envoy") as (mesh, recorder):
        wsgi.MeshMiddleware(app, Inbound(mesh))(environ(), lambda *_: None)
        ((shown, inherits),) = found
        assert shown == inherits == recorder.only.first("x-request-id")
        assert len(shown) == 36

    edge = listener(chain(use_remote_address=True))
    with watched(edge) as (mesh, recorder):
        inbound = Inbound(mesh, listener=NAME)
        wsgi.MeshMiddleware(app, inbound)(environ(HTTP_X_REQUEST_ID="forged"), lambda *_: None)
        assert found[1][0] == found[1][1] == recorder.only.first("x-request-id") != "forged"

        async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
            found.append(([v for n, v in scope["headers"] if n == b"x-request-id"], seen_now()["id"]))

        run(asgi.MeshMiddleware(asgi_app, inbound), scope(headers=[(b"x-request-id", b"forged")]))
        assert found[2][0] == [found[2][1].encode()] != [b"forged"]


@pytest.mark.parametrize("rules", [(), ({"rules": {"action": "ALLOW"}},)], ids=["let in", "refused"])
def test_the_request_id_in_the_response(rules: Any) -> None:
    told: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("X-Request-Id", "mine")])
        return []

    async def asgi_app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"X-Request-Id", b"mine")]})
        await send({"type": "http.response.body"})

    asked = listener(chain(*rules, always_set_request_id_in_response=True))
    with watched(asked) as (mesh, _):
        inbound = Inbound(mesh, listener=NAME)
        wsgi.MeshMiddleware(app, inbound)(asking(), lambda status, headers: told.append(headers))
        start, _body = run(asgi.MeshMiddleware(asgi_app, inbound), scope(headers=[(b"x-request-id", b"a")]))
    for headers in (told[0], [(name.decode(), value.decode()) for name, value in start["headers"]]):
        assert [value for name, value in headers if name.lower() == "x-request-id"] == ["a"]


@pytest.mark.parametrize("certificate", [True, False])
@pytest.mark.parametrize("edge", [True, False])
def test_who_may_ask_for_a_trace(certificate: bool, edge: bool) -> None:
    asked = arrival(connection=certified(CLIENT) if certificate else UNKNOWN)
    asked.headers.append(("x-envoy-force-trace", "1"))
    with watched(listener(chain(use_remote_address=edge))) as (mesh, recorder):
        visit = Inbound(mesh, listener=NAME).receive(asked, "HTTP/1.1")
        assert visit.context.forced is recorder.begun[0].forced is (certificate and not edge)


# --- ASGI ------------------------------------------------------------------------------------------------------------


def test_tasks_inherit_and_what_goes_on_after_the_answer_is_not_cut() -> None:
    found: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        answered = asyncio.Event()

        async def detached() -> None:
            found["task"] = seen_now()
            await answered.wait()
            found["task after the answer"] = seen_now()

        async with asyncio.TaskGroup() as group:
            group.create_task(detached())
            found["thread"] = await asyncio.to_thread(seen_now)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": True})
            found["app"] = seen_now()
            await send({"type": "http.response.body", "body": b""})
            found["background"] = seen_now()
            answered.set()

    headers = [(b"x-request-id", b"a"), (EXPECTED.encode(), b"60000")]

    async def main() -> None:
        async def ignore(*_: Any) -> Any:
            return {"type": "http.disconnect"}

        await asgi.MeshMiddleware(app)(scope(headers=headers), ignore, ignore)
        assert seen_now()["id"] is None

    asyncio.run(main())
    assert {name: (each["id"], each["left"] is None) for name, each in found.items()} == {
        "task": ("a", False),
        "thread": ("a", False),
        "app": ("a", False),
        "background": ("a", True),
        "task after the answer": ("a", True),
    }


def test_an_application_that_is_closed_elsewhere() -> None:
    """The garbage collector ends a coroutine in whatever context it runs in."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    class Never:
        def __await__(self) -> Generator[None, None, None]:
            yield

    async def receive() -> Any:
        await Never()

    coroutine: Any = asgi.MeshMiddleware(app)(scope(), receive, receive)  # type: ignore[arg-type]
    import contextvars

    contextvars.copy_context().run(coroutine.send, None)
    coroutine.close()


# --- real servers ------------------------------------------------------------------------------------------------------


async def telling(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await http_servers.asgi_app(scope, receive, send)
        return
    body = json.dumps(seen_now()).encode()
    OWN.set("left over")
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


def telling_wsgi(environ: Any, start_response: Any) -> Any:
    start_response("200 OK", [("Content-Type", "application/json")])
    yield b""
    yield json.dumps(seen_now()).encode()
    OWN.set("left over")


@pytest.mark.parametrize("kind", http_servers.SERVERS)
def test_servers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_servers, "asgi_app", _with_lifespan(http_servers.asgi_app))
    monkeypatch.setattr(http_servers, "wsgi_app", telling_wsgi)
    with meshlib.Mesh(config=[], observe=QUIET) as mesh:
        inbound = Inbound(mesh, mode="DISABLE")
        with http_servers.serving(kind, inbound) as port, httpx.Client() as client:
            url = f"http://127.0.0.1:{port}/"
            with_all = {"x-request-id": "a", "x-envoy-expected-rq-timeout-ms": "60000"}
            for headers, identity in ((with_all, "a"), ({}, None), ({"x-request-id": "b"}, "b")):
                told = client.get(url, headers=headers).json()
                assert (told["id"], told["peer"], told["own"]) == (identity, "127.0.0.1", "unset")
                assert (told["left"] is None) == (headers is not with_all)


def _with_lifespan(before: Any) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await (before if scope["type"] == "lifespan" else telling)(scope, receive, send)

    return app


# --- gRPC ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize("kind", SERVERS)
def test_every_step_of_a_handler_has_the_id_of_its_call_only(kind: str, arity: str) -> None:
    serve, handlers = SERVERS[kind]
    seen: list[str | None] = []

    def look() -> None:
        inbound = INBOUND.get()
        assert inbound is not None
        seen.append(inbound.request_id)

    with serve(handlers(look), FakeClock()) as address, grpc.insecure_channel(address) as channel:
        for metadata, expected in (((("x-request-id", "a"),), "a"), (None, None)):
            seen.clear()
            call(channel, arity, None, metadata)
            assert set(seen) == {expected}
