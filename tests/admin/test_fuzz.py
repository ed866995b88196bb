"""Whatever is asked, in whatever bytes: an answer, and nothing else."""

from __future__ import annotations

import json
import threading
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import meshlib
from meshlib.admin.admin import Admin
from meshlib.admin.config_dump import masked
from meshlib.admin.handler import PATHS
from meshlib.admin.http import Request
from meshlib.admin.server import _BadRequest, _encode_head, _parse

NAMES = (
    "filter",
    "format",
    "usedonly",
    "name_regex",
    "mask",
    "resource",
    "include_eds",
    "cluster",
    "start",
    "limit",
)
MORE = (
    "number",
    "url",
    "method",
    "headers",
    "process",
    "status",
    "flag",
    "header",
    "min_duration",
    "level",
    "scope",
)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_a_bad_one(data: bytes) -> None:
    try:
        request, length = _parse(data, local=True, trusted=False)
    except _BadRequest:
        return
    assert request.path.startswith("/")
    assert length >= 0


@given(
    st.sampled_from(["GET", "POST", "HEAD", "get", "G E"]),
    st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
    st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=4),
)
def test_any_head(method: str, target: str, headers: dict[str, str]) -> None:
    lines = [f"{method} /{target} HTTP/1.1", *(f"{name}:{value}" for name, value in headers.items())]
    try:
        request, _ = _parse("\r\n".join(lines).encode("utf-8", "surrogatepass"), local=True, trusted=False)
    except _BadRequest:
        return
    assert all(name == name.lower() == name.strip() for name in request.headers)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    path=st.sampled_from([path for path in PATHS if path not in ("/logging", "/healthcheck/fail")])
    | st.text(max_size=20).map(lambda text: "/" + text)
    | st.text(max_size=20).map(lambda text: "/static/" + text),
    query=st.dictionaries(
        st.sampled_from((*NAMES, *MORE)),
        st.text(max_size=12) | st.sampled_from(["1", "json", "("]),
        max_size=3,
    ),
)
def test_any_question_has_an_answer(admin: Admin, path: str, query: dict[str, str]) -> None:
    reply = admin.handler.handle(Request(method="GET", path=path, query=query))
    assert reply.status in (200, 304, 400, 404, 405, 503)
    head = _encode_head(reply)
    assert head.count(b"\r\n\r\n") == 1
    if isinstance(reply.body, bytes):
        if reply.content_type == "application/json" and reply.status == 200:
            json.loads(reply.body)
    else:
        reply.body.close()


JSON = st.recursive(
    st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner),
)


@given(
    st.dictionaries(st.sampled_from("abc"), JSON),
    st.lists(st.lists(st.sampled_from("abc"), max_size=3), max_size=4),
)
def test_a_mask_only_takes_away(value: dict[str, Any], paths: list[list[str]]) -> None:
    kept = masked(value, paths)
    assert set(kept) <= {path[0] for path in paths if path} & set(value)
    assert masked({"@type": "t", **value}, paths) == {"@type": "t", **kept}
    assert masked(value, [[name] for name in value]) == value
    assert masked(kept, paths) == kept


def test_many_ask_while_calls_go_on(mesh: meshlib.Mesh, client: httpx.Client, admin: Admin) -> None:
    problems: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                for path in ("/mesh.json", "/clusters", "/stats", "/config_dump", "/mesh/call.json"):
                    reply = admin.handler.handle(Request(method="GET", path=path, query={"number": "1"}))
                    assert reply.status in (200, 404)
        except BaseException as error:  # noqa: BLE001 - said by the test's own thread
            problems.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(150):
        client.get(f"http://reviews/{number}")
    stop.set()
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
    assert mesh.recent is not None
    assert mesh.recent.newest(1)[0][0] == 150


@pytest.mark.parametrize("pattern", ["(a+)+$", "a{1000}", "\\", "[", "(?P<x>a)(?P<x>b)", "\ud800"])
def test_any_pattern(admin: Admin, pattern: str) -> None:
    reply = admin.handler.handle(Request(method="GET", path="/stats", query={"filter": pattern}))
    assert reply.status in (200, 400)
