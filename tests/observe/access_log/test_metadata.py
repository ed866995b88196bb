"""Metadata in JSON, in text, and as Python values."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

import meshlib
from meshlib.httpx import MeshTransport
from meshlib.observe.access_log.formatter import compile_line, compile_value
from meshlib.observe.access_log.json_text import json_text
from meshlib.observe.access_log.metadata import _endpoints
from meshlib.resources.access_log import JsonFormat, JsonObject
from meshlib.resources.format import parse
from meshlib.testing import Upstream, messages, serve, service
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


def test_the_metadata_of_an_endpoint_is_that_of_the_latest_assignment(tmp_path: Path) -> None:
    """Also where other endpoints of the address have none."""
    with Upstream() as upstream:
        config = service("svc", upstream.address)
        endpoint = config["resources"][3]["endpoints"][0]["lb_endpoints"][0]
        others = [
            {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
            for port in range(20_000, 20_003)
        ]
        log = meshlib.AccessLog(
            format="%UPSTREAM_METADATA(n:who)% %METADATA(UPSTREAM_HOST:n:who)%\n", to=tmp_path / "log"
        )
        observe = meshlib.Observe(access_log=[log], tracing=False, metrics=False, recent_calls=0)
        with (
            serve(config) as control_plane,
            meshlib.Mesh(bootstrap=control_plane.bootstrap(), observe=observe) as mesh,
            httpx.Client(transport=MeshTransport(mesh)) as client,
        ):
            client.get("http://svc/")
            for who in ("a", "b"):
                labelled = {**endpoint, "metadata": {"filter_metadata": {"n": {"who": who}}}}
                localities = [{"lb_endpoints": others, "priority": 1}, {"lb_endpoints": [labelled]}]
                assignment = config["resources"][3] | {"endpoints": localities}
                changed = threading.Event()
                mesh.engine.await_program(changed.set, mesh.engine.program)
                control_plane.store.update(*messages({"resources": [assignment]}))
                assert changed.wait(10)
                client.get("http://svc/")
            assert _endpoints["svc"].assignment is mesh.engine.program.clusters["svc"].assignment
    assert (tmp_path / "log").read_text() == "- -\na a\nb b\n"
