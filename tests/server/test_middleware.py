"""The WSGI and ASGI middleware by themselves: WebSockets, other scopes, file responses, errors, and paths that servers decode."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

import meshlib
from meshlib.server import asgi, wsgi
from meshlib.server.inbound import Inbound
from meshlib.server.peer import NOBODY
from meshlib.server.tls import CONNECTION, PLAINTEXT, Connection
from tests.server.identities import CLIENT, allow
from tests.server.test_inbound import NAME, NOBODY_MAY, certified, chain, listener

Message = dict[str, Any]


def run(app: Any, scope: Message, connection: Connection | None = None) -> list[Message]:
    """What the application behind the middleware, or the middleware itself, has sent."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect" if scope["type"] == "websocket" else "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def main() -> None:
        if connection is not None:
            CONNECTION.set(connection)
        await app(scope, receive, send)

    asyncio.run(main())
    return sent


def scope(kind: str = "http", **more: Any) -> Message:
    return {
        "type": kind,
        "method": "GET",
        "scheme": "https",
        "path": "/",
        "query_string": b"",
        "headers": [(b"host", b"svc.example")],
        "client": ("10.0.0.1", 1),
        "server": ("10.0.0.9", 8080),
    } | more


async def never(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("the application was reached")


def seen(**more: Any) -> tuple[Any, list[Message]]:
    found: list[Message] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append({**scope, "peer": meshlib.current_peer()})

    return asgi.MeshMiddleware(app, Inbound(**more)), found


def test_a_web_socket_that_may_not_open() -> None:
    middleware = asgi.MeshMiddleware(never, Inbound(rbac=NOBODY_MAY))
    assert run(middleware, scope("websocket", scheme="wss")) == [{"type": "websocket.close", "code": 1008}]
    start, body = run(middleware, scope("websocket", extensions={"websocket.http.response": {}}))
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
    assert body == {"type": "websocket.http.response.body", "body": b"RBAC: access denied"}


def test_a_web_socket_knows_who_calls() -> None:
    middleware, found = seen(rbac=allow(CLIENT))
    assert run(middleware, scope("websocket", scheme="ws"), certified(CLIENT)) == []
    assert str(found[0]["peer"].spiffe_id) == CLIENT
    assert found[0]["scheme"] == "wss"


def test_other_scopes_pass() -> None:
    middleware, found = seen(rbac=NOBODY_MAY)
    run(middleware, {"type": "lifespan"})
    assert found[0]["type"] == "lifespan"


@pytest.mark.parametrize(
    ("connection", "scheme"), [(None, "https"), (PLAINTEXT, "http"), (Connection(tls=True), "https")]
)
def test_the_scheme_is_that_of_the_connection(connection: Connection | None, scheme: str) -> None:
    middleware, found = seen()
    run(middleware, scope(), connection)
    assert found[0]["scheme"] == scheme


def test_the_peer_is_forgotten_after_an_error() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async def main() -> object:
        CONNECTION.set(certified(CLIENT))
        with pytest.raises(ZeroDivisionError):
            await asgi.MeshMiddleware(failing, Inbound())(scope(), None, None)  # type: ignore[arg-type]
        return meshlib.current_peer()

    assert asyncio.run(main()) is NOBODY


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"raw_path": b"/a%20b"}, True),
        ({"path": "/a b"}, True),
        ({"raw_path": b"/a%20b?inside", "query_string": b"q"}, True),
        ({"raw_path": b"/a+b"}, False),
        ({"client": None, "server": None, "raw_path": b"/a%20b"}, True),
    ],
)
def test_the_path_as_it_was_sent(more: Message, refused: bool) -> None:
    rule = {"url_path": {"path": {"exact": "/a%20b"}}}
    policy = {"permissions": [rule], "principals": [{"any": True}]}
    middleware, found = seen(rbac={"rules": {"action": "DENY", "policies": {"p": policy}}})
    run(middleware, scope(**more))
    assert bool(found) is not refused


# --- WSGI ------------------------------------------------------------------------------------------------------------


def environ(**more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/",
        "QUERY_STRING": "",
        "SERVER_PORT": "8080",
        "REMOTE_ADDR": "10.0.0.1",
        "wsgi.url_scheme": "http",
        "HTTP_HOST": "svc.example",
    } | more


def wsgi_answer(app: Any, given: dict[str, Any]) -> tuple[str, bytes]:
    started: list[str] = []
    body: Any = app(given, lambda status, headers: started.append(status))
    try:
        return started[0], b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()


def ok(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


def deny(**rule: Any) -> Inbound:
    policy = {"permissions": [rule], "principals": [{"any": True}]}
    return Inbound(rbac={"rules": {"action": "DENY", "policies": {"p": policy}}})


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ({"RAW_URI": "/a%20b?q"}, True),
        ({"REQUEST_URI": "/a%20b"}, True),
        ({"PATH_INFO": "/a b"}, True),
        ({"SCRIPT_NAME": "/a b", "PATH_INFO": ""}, True),
        ({"RAW_URI": "http://svc.example/a%20b?q"}, True),
        ({"RAW_URI": "/other", "PATH_INFO": "/a b"}, False),
    ],
)
def test_the_path_of_wsgi(more: dict[str, Any], refused: bool) -> None:
    app = wsgi.MeshMiddleware(ok, deny(url_path={"path": {"exact": "/a%20b"}}))
    expected = ("403 Forbidden", b"RBAC: access denied") if refused else ("200 OK", b"ok")
    assert wsgi_answer(app, environ(**more)) == expected


def test_what_may_stand_in_a_path_is_not_escaped_again() -> None:
    path = "/v1/x:delete;a=b,(c)@d!$&'*+~"
    app = wsgi.MeshMiddleware(ok, deny(url_path={"path": {"exact": path}}))
    assert wsgi_answer(app, environ(PATH_INFO=path))[0] == "403 Forbidden"


@pytest.mark.parametrize(
    ("value", "refused"), [("1", True), ("0,1", True), ("1, 0", True), ("10", False), ("", False)]
)
def test_joined_headers_of_wsgi(value: str, refused: bool) -> None:
    app = wsgi.MeshMiddleware(ok, deny(header={"name": "x-a", "string_match": {"exact": "1"}}))
    assert wsgi_answer(app, environ(HTTP_X_A=value))[0].startswith("403" if refused else "200")


@pytest.mark.parametrize(
    ("name", "key"), [("content-type", "CONTENT_TYPE"), ("content-length", "CONTENT_LENGTH")]
)
def test_headers_without_a_prefix(name: str, key: str) -> None:
    app = wsgi.MeshMiddleware(ok, deny(header={"name": name, "present_match": True}))
    assert wsgi_answer(app, environ(**{key: "1"}))[0] == "403 Forbidden"
    assert wsgi_answer(app, environ(**{key: ""}))[0] == "200 OK"


def test_a_port_without_an_address() -> None:
    app = wsgi.MeshMiddleware(ok, deny(destination_port=8080))
    assert wsgi_answer(app, environ())[0] == "403 Forbidden"
    assert wsgi_answer(app, environ(SERVER_PORT="80"))[0] == "200 OK"
    assert wsgi_answer(app, environ(SERVER_PORT=""))[0] == "403 Forbidden"  # nobody knows


def test_xfcc_of_an_untrusted_caller_is_taken_away() -> None:
    found: list[object] = []

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        found.append(environ.get("HTTP_X_FORWARDED_CLIENT_CERT"))
        return ok(environ, start_response)

    wsgi_answer(wsgi.MeshMiddleware(app), environ(HTTP_X_FORWARDED_CLIENT_CERT="URI=spiffe://td/admin"))
    assert found == [None]


def test_a_file_response_stays_one() -> None:
    class Wrapper:
        def __iter__(self) -> Iterator[bytes]:
            return iter([b"file"])

    wrapped = Wrapper()
    app = wsgi.MeshMiddleware(lambda environ, start_response: wrapped)
    assert app(environ(**{"wsgi.file_wrapper": Wrapper}), lambda *_: None) is wrapped
    assert app(environ(), lambda *_: None) is not wrapped
    assert meshlib.current_peer() is NOBODY


def test_a_body_is_closed_with_the_response() -> None:
    closed: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield meshlib.current_peer().address.encode()

        def close(self) -> None:
            closed.append(meshlib.current_peer().address)

    assert (
        wsgi_answer(wsgi.MeshMiddleware(lambda e, s: (s("200 OK", []), Body())[1]), environ())[1]
        == b"10.0.0.1"
    )
    assert closed == ["10.0.0.1"]
    assert meshlib.current_peer() is NOBODY


def test_an_application_that_fails() -> None:
    def failing(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        wsgi.MeshMiddleware(failing)(environ(), lambda *_: None)
    assert meshlib.current_peer() is NOBODY


def test_who_calls_is_unknown_where_another_context_ended_tls() -> None:
    """Not the same as nobody: a DENY rule on a name can't be got round so."""
    rules: dict[str, Any] = {"rules": {**allow(CLIENT)["rules"], "action": "DENY"}}
    middleware, found = seen(rbac=rules)
    start, _ = run(middleware, scope(scheme="https"))
    assert start["status"] == 403
    assert run(middleware, scope(scheme="http")) == []
    assert len(found) == 1
    app = wsgi.MeshMiddleware(ok, Inbound(rbac=rules))
    assert wsgi_answer(app, environ(**{"wsgi.url_scheme": "https"}))[0] == "403 Forbidden"
    assert wsgi_answer(app, environ(**{"wsgi.url_scheme": "http"}))[0] == "200 OK"


def test_a_server_that_tells_no_addresses() -> None:
    for rule in (
        {"destination_port": 1},
        {"destination_ip": {"address_prefix": "192.0.2.1", "prefix_len": 32}},
    ):
        middleware = asgi.MeshMiddleware(never, deny(**rule))
        start, _ = run(middleware, scope(server=None))
        assert start["status"] == 403
    policy = {"permissions": [{"any": True}], "principals": [{"direct_remote_ip": {"address_prefix": "::1"}}]}
    rules: dict[str, Any] = {"rules": {"action": "DENY", "policies": {"p": policy}}}
    middleware, found = seen(rbac=rules)
    (start, _) = run(middleware, scope(client=None))
    assert start["status"] == 403
    assert run(middleware, scope(client=None, server=("/run/app.sock", None))) == []
    assert found[0]["peer"].address == ""


def test_a_caller_that_has_gone() -> None:
    class Gone:
        def getsockname(self) -> object:
            raise OSError

    app = wsgi.MeshMiddleware(ok, deny(destination_port=1))
    assert wsgi_answer(app, environ(**{"werkzeug.socket": Gone()}))[0] == "403 Forbidden"


@pytest.mark.parametrize(("hops", "refused"), [(1, True), (2, False), (3, False)])
def test_joined_addresses_of_wsgi_count_once(hops: int, refused: bool) -> None:
    """Beyond the first of them there is the connection's own."""
    policy = {
        "permissions": [{"any": True}],
        "principals": [{"remote_ip": {"address_prefix": "192.0.2.0", "prefix_len": 24}}],
    }
    rules: dict[str, Any] = {"rules": {"action": "DENY", "policies": {"p": policy}}}
    resources = [listener(chain(rules, xff_num_trusted_hops=hops))]
    with meshlib.Mesh(config=[{"resources": resources}]) as mesh:
        app = wsgi.MeshMiddleware(ok, Inbound(mesh, listener=NAME))
        told = environ(HTTP_X_FORWARDED_FOR="192.0.2.7, 192.0.2.8")
        assert wsgi_answer(app, told)[0] == ("403 Forbidden" if refused else "200 OK")
