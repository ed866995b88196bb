"""Metadata in JSON, in text, and as Python values."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib.observe.access_log.formatter import compile_line, compile_value
from meshlib.observe.access_log.json_text import json_text
from meshlib.resources.access_log import JsonFormat, JsonObject
from meshlib.resources.format import parse
from tests.observe.access_log.made import MadeFacts
from tests.observe.access_log.test_formatter import text

OF_CLUSTER = {
    "n": {"text": "a b", "whole": 2.0, "half": 0.5, "yes": True, "deep": {"b": [1.0, None]}, "null": None}
}


@pytest.mark.parametrize(
    ("operator", "in_text", "in_json", "value"),
    [
        ("CLUSTER_METADATA(n:text)", "a b", '"a b"', "a b"),
        ("CLUSTER_METADATA(n:whole)", "2", "2", 2.0),
        ("CLUSTER_METADATA(n:half)", "0.5", "0.5", 0.5),
        ("CLUSTER_METADATA(n:yes)", "true", "true", True),
        ("CLUSTER_METADATA(n:deep)", '{"b":[1,null]}', '{"b":[1,null]}', {"b": [1.0, None]}),
        ("METADATA(CLUSTER:n:deep:b)", "[1,null]", "[1,null]", [1.0, None]),
        ("METADATA(CLUSTER:n:text):1", "a", '"a"', "a"),
        ("METADATA(CLUSTER:n:deep):4", '{"b"', '{"b":[1,null]}', {"b": [1.0, None]}),
        ("CLUSTER_METADATA(n:null)", "-", "null", None),
        ("CLUSTER_METADATA(n:text:more)", "-", "null", None),
        ("CLUSTER_METADATA(none)", "-", "null", None),
        ("UPSTREAM_METADATA(n:text)", "-", "null", None),
        ("METADATA(LISTENER_FILTER_CHAIN:n)", "-", "null", None),
    ],
)
def test_values(operator: str, in_text: str, in_json: str, value: object) -> None:
    facts: Any = MadeFacts(labels={"CLUSTER": OF_CLUSTER})
    fmt = parse(f"%{operator}%")
    assert text(f"<%{operator}%>", facts) == f"<{in_text}>"
    line = compile_line(JsonFormat(root=JsonObject((("a", fmt), ("b", parse(f"<%{operator}%>"))))))
    assert line(facts) == f'{{"a":{in_json},"b":{json_text(f"<{in_text}>")}}}\n'
    assert compile_value(fmt)(facts) == value
    assert compile_value(fmt, text=True)(facts) == in_text


def test_json_of_nested_values() -> None:
    assert json_text({"b": 1e21, "a": [True, None, 'q"', {}]}) == '{"a":[true,null,"q\\"",{}],"b":1e+21}'
