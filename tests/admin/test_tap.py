"""Following live calls."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.admin import calls
from meshlib.admin.calls import Tap, TapFilter
from tests.admin.conftest import Get


def lines(tap: Tap) -> list[Any]:
    found = tap.take()
    assert found is not None
    return [json.loads(line) for line in found.splitlines()]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["/a", "/gone", "/b"]),
        ({"cluster": "reviews"}, ["/a", "/b"]),
        ({"cluster": "x"}, []),
        ({"route": "main"}, ["/a", "/b"]),
        ({"route": "0"}, ["/gone"]),
        ({"status": "410"}, ["/gone"]),
        ({"status": "2xx"}, ["/a", "/b"]),
        ({"flag": "any"}, []),
        ({"flag": "UH"}, []),
        ({"min_duration": "60000"}, []),
        ({"min_duration": "0"}, ["/a", "/gone", "/b"]),
        ({"header": "x-user"}, ["/a", "/b"]),
        ({"header": "X-User: bob"}, ["/b"]),
        ({"header": "x-user:eve"}, []),
        ({"header": "x-user:ann", "status": "200"}, ["/a"]),
    ],
)
def test_filters(
    mesh: meshlib.Mesh, client: httpx.Client, query: dict[str, str], expected: list[str]
) -> None:
    tap = Tap(mesh.engine, TapFilter(query))
    client.get("http://reviews/a", headers={"x-user": "ann"})
    client.get("http://reviews/gone")
    client.get("http://reviews/b", headers={"x-user": "bob"})
    assert [line["path"] for line in lines(tap)] == expected
    tap.close()


@pytest.mark.parametrize(
    "query",
    [{"status": "6000"}, {"status": "ok"}, {"min_duration": "x"}, {"header": ": x"}, {"colour": "blue"}],
)
def test_wrong_filters(get: Get, query: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"."):
        TapFilter(query)
    name, value = next(iter(query.items()))
    assert get(f"/tap?{name}={value}").status == 400


def test_each_call_comes_once_with_its_decision(mesh: meshlib.Mesh, client: httpx.Client) -> None:
    tap = Tap(mesh.engine, TapFilter({}))
    client.get("http://reviews/a?token=x")
    (first,) = lines(tap)
    assert (first["number"], first["status"], first["path"]) == (1, 200, "/a?token=[redacted]")
    assert first["decision"]["attempts"][0]["accepted"] is True
    assert lines(tap) == []
    client.get("http://reviews/b")
    assert lines(tap)[0]["number"] == 2
    tap.close()


def test_a_slow_reader_is_told_what_it_missed(
    mesh: meshlib.Mesh, client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "_MOST_WAITING", 2)
    tap = Tap(mesh.engine, TapFilter({}))
    for _ in range(5):
        client.get("http://reviews/gone")
    assert [line.get("left_out") for line in lines(tap)] == [None, None, 3]
    tap.close()


def test_nothing_is_observed_when_nobody_follows(mesh: meshlib.Mesh) -> None:
    before = mesh.engine.observers.members
    tap = Tap(mesh.engine, TapFilter({}))
    assert tap in mesh.engine.observers.members
    tap.close()
    tap.close()
    assert mesh.engine.observers.members == before
    assert tap.take() is None


def test_it_ends_with_the_mesh(mesh: meshlib.Mesh) -> None:
    tap = Tap(mesh.engine, TapFilter({}))
    assert tap.take() == b""
    mesh.close()
    assert tap.take() is None
    tap.close()
