"""Path normalization of a Listener: what rules decide on, applications see as well; redirects and refusals are ours."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

import meshlib
from meshlib.server import asgi, wsgi
from meshlib.server.inbound import Inbound
from tests.server.http_servers import ASGI, SERVERS, serving
from tests.server.test_grpc_inbound import KINDS
from tests.server.test_grpc_inbound import serving as grpc_serving
from tests.server.test_inbound import DENIED, NAME, answer, arrival, chain, files, listener
from tests.server.test_middleware import environ, never, ok, run, scope, wsgi_answer

__all__ = ["files"]

Files = Callable[..., meshlib.Mesh]
Answer = tuple[int, str | None, str]

NORMAL: dict[str, Any] = {"normalize_path": True, "merge_slashes": True}
REDIRECT: dict[str, Any] = {"path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT", **NORMAL}
REJECT: dict[str, Any] = {"path_with_escaped_slashes_action": "REJECT_REQUEST", **NORMAL}
FORWARD: dict[str, Any] = {"path_with_escaped_slashes_action": "UNESCAPE_AND_FORWARD", **NORMAL}
RAW: dict[str, Any] = {}


def deny(prefix: str) -> dict[str, Any]:
    policy = {"permissions": [{"url_path": {"path": {"prefix": prefix}}}], "principals": [{"any": True}]}
    return {"rules": {"action": "DENY", "policies": {"p": policy}}}


def inbound(mesh: Files, manager: dict[str, Any]) -> Inbound:
    return Inbound(mesh(listener(chain(deny("/admin"), **manager))), listener=NAME)


def ask(port: int, path: str, *headers: tuple[str, str]) -> Answer:
    """Status, location, and the path that the application saw."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest("GET", path)
    for name, value in (*headers, ("connection", "close")):
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    body = response.read()
    connection.close()
    seen = json.loads(body)["path"] if response.status == 200 else body.decode()
    return response.status, response.headers.get("location"), seen


@pytest.mark.parametrize("kind", SERVERS)
def test_applications_see_what_the_rules_see(kind: str, files: Files) -> None:
    refused: Answer = 403, None, "RBAC: access denied"
    with serving(kind, inbound(files, FORWARD)) as port:
        for path in ("/public/../admin", "//admin", "/%61dmin/x", "/x/..;y/admin", "/public%2f..%5cadmin?q"):
            assert ask(port, path) == refused, path
        assert ask(port, "/public/../other//x%20%7e?q=/../") == (200, None, "/other/x ~")
        assert ask(port, "/admin/../a%2Fb%3F") == (200, None, "/a/b?")
        assert ask(port, "//x/.") == (200, None, "/x/")
        assert ask(port, "/%00") == (400, None, "")


@pytest.mark.parametrize("kind", SERVERS)
def test_redirects_and_refusals(kind: str, files: Files) -> None:
    with serving(kind, inbound(files, REDIRECT)) as port:
        assert ask(port, "/x%2F..%2fadmin?q=%2f") == (307, "/admin?q=%2f", "")
        assert ask(port, "/x/../y") == (200, None, "/y")
    with serving(kind, inbound(files, REJECT)) as port:
        assert ask(port, "/x%5cy") == (400, None, "")
        assert ask(port, "/x/../y?%2f") == (200, None, "/y")


@pytest.mark.parametrize("kind", ASGI)
def test_grpc_over_asgi_is_not_redirected(kind: str, files: Files) -> None:
    with serving(kind, inbound(files, REDIRECT)) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/s%2fm", headers={"content-type": "application/grpc"})
        response = connection.getresponse()
        assert (response.status, response.headers["grpc-status"]) == (200, "13")
        connection.close()


def test_without_the_fields_everything_stays_as_it_was_sent(files: Files) -> None:
    without = inbound(files, RAW)
    for path in ("/public/../admin", "//admin", "/%61dmin", "/a%2fb", "/%00"):
        admission = without.admit(arrival(path))
        assert (admission.refusal, admission.path) == (None, None)
    assert answer(without, arrival("/admin")) == DENIED


def test_rules_of_ones_own_see_the_path_as_it_was_sent() -> None:
    own = Inbound(rbac=deny("/admin"))
    assert own.admit(arrival("/public/../admin#x")).refusal is None
    assert answer(own, arrival("/admin")) == DENIED


@pytest.mark.parametrize("kind", SERVERS)
@pytest.mark.parametrize("target", ["admin", "*", "x/../admin"])
def test_a_target_that_is_no_path_is_refused(kind: str, target: str, files: Files) -> None:
    for made in (inbound(files, RAW), Inbound(mode="DISABLE", rbac=deny("/admin"))):
        with serving(kind, made) as port:
            assert ask(port, target)[0] == 400


def test_an_empty_path_of_wsgi_is_the_root(files: Files) -> None:
    app = wsgi.MeshMiddleware(ok, Inbound(rbac=deny("/admin")))
    assert wsgi_answer(app, environ(PATH_INFO=""))[0] == "200 OK"
    assert (
        wsgi_answer(wsgi.MeshMiddleware(ok, Inbound(rbac=deny("/"))), environ(PATH_INFO=""))[0]
        == "403 Forbidden"
    )


@pytest.mark.parametrize("manager", [RAW, NORMAL])
def test_a_fragment_is_refused(manager: dict[str, Any], files: Files) -> None:
    admission = inbound(files, manager).admit(arrival("/a#b"))
    assert admission.refusal is not None
    assert (admission.refusal.status, admission.refusal.body) == (400, b"")
    assert admission.details == "path_normalization_failed"


def test_without_rules_too(files: Files) -> None:
    mesh = files(listener(chain(**REDIRECT)))
    admission = Inbound(mesh, listener=NAME).admit(arrival("/a/../b?c"))
    assert (admission.refusal, admission.path) == (None, "/b?c")
    redirected = Inbound(mesh, listener=NAME).admit(arrival("/a%2fb")).refusal
    assert redirected is not None
    assert (redirected.status, redirected.headers[0]) == (307, ("location", "/a/b"))


def test_routes_are_chosen_by_the_normal_path(files: Files) -> None:
    per_route = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
    free = {"prefix": "/free/"}
    routes = {
        "virtual_hosts": [
            {
                "name": "v",
                "domains": ["*"],
                "routes": [
                    {
                        "match": free,
                        "non_forwarding_action": {},
                        "typed_per_filter_config": {"rbac0": {"@type": per_route}},
                    },
                    {"match": {"prefix": "/"}, "non_forwarding_action": {}},
                ],
            }
        ]
    }
    mesh = files(listener(chain(deny("/"), route_config=routes, **NORMAL)))
    made = Inbound(mesh, listener=NAME)
    assert answer(made, arrival("/free/../closed")) == DENIED
    assert answer(made, arrival("/closed/..//free/x")) is None


# --- the adapters by themselves --------------------------------------------------------------------------------------


def test_an_asgi_server_that_decodes(files: Files) -> None:
    found: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope)

    middleware = asgi.MeshMiddleware(app, inbound(files, NORMAL))
    run(middleware, scope(path="/a/../b c/\u00e9", query_string=b"q=/../", scheme="http"))
    run(middleware, scope(path="/x", raw_path=b"/a/../b%20c/%c3%a9", scheme="http"))
    assert [(each["path"], each.get("raw_path")) for each in found] == [
        ("/b c/\u00e9", None),
        ("/b c/\u00e9", b"/b%20c/%c3%a9"),
    ]
    assert found[0]["query_string"] == b"q=/../"


def test_a_web_socket_is_redirected(files: Files) -> None:
    middleware = asgi.MeshMiddleware(never, inbound(files, REDIRECT))
    extensions: dict[str, Any] = {"websocket.http.response": {}}
    start, _ = run(
        middleware, scope("websocket", scheme="ws", raw_path=b"/a%2fb", path="/a/b", extensions=extensions)
    )
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 307)
    assert (b"location", b"/a/b") in start["headers"]


@pytest.mark.parametrize(
    ("given", "script", "info", "raw"),
    [
        ({"RAW_URI": "/a/../b%20c?q"}, "", "/b c", "/b%20c?q"),
        ({"REQUEST_URI": "//x", "PATH_INFO": "/x"}, "", "/x", "/x"),
        ({"PATH_INFO": "/a/../b"}, "", "/b", None),
        ({"PATH_INFO": "/a/..;x/b%c"}, "", "/b%c", None),
        ({"SCRIPT_NAME": "/m", "PATH_INFO": "/a/../b", "RAW_URI": "/m/a/../b"}, "/m", "/b", "/m/b"),
        ({"SCRIPT_NAME": "/m", "PATH_INFO": "/./", "RAW_URI": "/m/./"}, "/m", "/", "/m/"),
        ({"SCRIPT_NAME": "/m", "PATH_INFO": "", "RAW_URI": "/m"}, "/m", "", "/m"),
        ({"SCRIPT_NAME": "/m", "PATH_INFO": "/../b", "RAW_URI": "/m/../b"}, "", "/b", "/b"),
        ({"SCRIPT_NAME": "/m", "PATH_INFO": "/../mm", "RAW_URI": "/m/../mm"}, "", "/mm", "/mm"),
        ({"SCRIPT_NAME": "/proxied", "PATH_INFO": "/a", "RAW_URI": "/./a"}, "/proxied", "/a", "/a"),
        ({"RAW_URI": "http://svc.example/a/../b?q"}, "", "/b", "/b?q"),
        ({"RAW_URI": "/%C3%A9/."}, "", "/\u00c3\u00a9/", "/%C3%A9/"),
    ],
)
def test_what_wsgi_applications_see(
    given: dict[str, str], script: str, info: str, raw: str | None, files: Files
) -> None:
    found: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        found.append(dict(environ))
        return ok(environ, start_response)

    wsgi_answer(wsgi.MeshMiddleware(app, inbound(files, NORMAL)), environ(**given))
    assert (found[0]["SCRIPT_NAME"], found[0]["PATH_INFO"]) == (script, info)
    assert found[0].get("RAW_URI", found[0].get("REQUEST_URI")) == raw


def test_a_wsgi_redirect_has_no_content_type(files: Files) -> None:
    sent: list[Any] = []

    def start(status: str, headers: Any) -> None:
        sent.extend((status, headers))

    app = wsgi.MeshMiddleware(ok, inbound(files, REDIRECT))
    assert list(app(environ(RAW_URI="/a%2fb"), start)) == [b""]
    assert sent == ["307 Temporary Redirect", [("location", "/a/b"), ("content-length", "0")]]


# --- gRPC ------------------------------------------------------------------------------------------------------------


def call(port: int, method: str) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            channel.unary_unary(method, _registered_method=False)(b"", timeout=10)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ""


@pytest.mark.parametrize("kind", KINDS)
def test_methods_are_found_by_their_normal_path(kind: str, files: Files) -> None:
    seen: list[int] = []
    rules = deny("/tests.Server/stream")
    mesh = files(listener(chain(rules, **FORWARD)))
    with grpc_serving(kind, Inbound(mesh, listener=NAME), lambda: seen.append(1)) as port:
        for path in (
            "/tests.Server/unary_unary",
            "/x/../tests.Server/unary%5Funary",
            "//tests.Server%2funary_unary",
        ):
            assert call(port, path) == (grpc.StatusCode.OK, ""), path
        assert len(seen) == 3
        denied = grpc.StatusCode.PERMISSION_DENIED, "RBAC: access denied"
        assert call(port, "/tests.Server/x/../stream_unary") == denied
        assert call(port, "/tests.Server/%00")[0] is grpc.StatusCode.UNIMPLEMENTED
    assert len(seen) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_methods_stay_as_they_were_sent(kind: str, files: Files) -> None:
    with grpc_serving(kind, Inbound(files(listener(chain())), listener=NAME), lambda: None) as port:
        assert call(port, "/tests.Server/unary_unary") == (grpc.StatusCode.OK, "")
        assert call(port, "/tests.Server/x/../unary_unary")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_a_method_where_filter_chains_differ(files: Files) -> None:
    here = {"source_prefix_ranges": [{"address_prefix": "127.0.0.0", "prefix_len": 8}]}
    made = Inbound(files(listener(chain(match=here, **NORMAL), chain())), listener=NAME)
    assert made.method("/a/./b") == "/a/./b"
    assert made.method("/a/b") == "/a/b"
    assert Inbound(files(listener(chain(**REDIRECT))), listener=NAME).method("/a%2fb") == "/a%2fb"
    assert Inbound().method("/a/./b") == "/a/./b"
