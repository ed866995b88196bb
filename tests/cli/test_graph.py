"""The forms of a graph: whatever services are called, and whoever calls whom."""

from __future__ import annotations

import html
import json
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.cli.graph import FORMS, _places

NAMES = st.text(min_size=1, max_size=8) | st.sampled_from(
    ["front", '"; drop', "</svg><script>", "a\nb", "%%", "\\"]
)


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(NAMES, min_size=1, max_size=6, unique=True))
    pairs = draw(
        st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), max_size=10, unique=True)
    )
    known = draw(st.booleans())
    return {
        "nodes": [
            {"id": name, "kind": "self" if number == 0 else "service"} for number, name in enumerate(names)
        ],
        "edges": [
            {
                "source": source,
                "destination": destination,
                "total": 3,
                "rate": 2.0 if known else None,
                "error_rate": 0.5 if known else None,
                "p50": 1.5,
                "tls": known,
                "mtls": known,
                "principal": "spiffe://x/<b>" if known else None,
            }
            for source, destination in pairs
        ],
    }


@given(graphs())
def test_every_service_has_a_place_of_its_own(graph: dict[str, Any]) -> None:
    places = _places(graph)
    assert set(places) == {node["id"] for node in graph["nodes"]}
    assert len(set(places.values())) == len(places)


class _Strict(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)


@given(graphs())
def test_no_name_becomes_markup(graph: dict[str, Any]) -> None:
    page = FORMS["html"](graph)
    parser = _Strict()
    parser.feed(page)
    assert "script" not in parser.tags
    assert "b" not in parser.tags
    assert parser.tags.count("rect") == len(graph["nodes"])
    for node in graph["nodes"]:
        assert html.escape(node["id"]) in page


@given(graphs())
def test_dot_and_mermaid_have_a_line_for_each(graph: dict[str, Any]) -> None:
    dot = FORMS["dot"](graph).split("\n")
    assert len(dot) == 4 + len(graph["nodes"]) + len(graph["edges"])
    assert all(line.endswith(("{", "}", ";")) for line in dot)
    mermaid = FORMS["mermaid"](graph).split("\n")
    assert len(mermaid) == 1 + len(graph["nodes"]) + len(graph["edges"])


@given(graphs())
def test_json_is_the_graph(graph: dict[str, Any]) -> None:
    assert json.loads(FORMS["json"](graph)) == graph


@pytest.mark.parametrize("form", FORMS)
def test_without_calls(form: str) -> None:
    assert FORMS[form]({"nodes": [{"id": "front", "kind": "self"}], "edges": []})
