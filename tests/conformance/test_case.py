"""Reading cases: what is right is read, what is wrong is named with file, case and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.case import CASES, load_cases
from conformance.reader import CaseError
from conformance.resources import compile_case, with_addresses
from tests.conformance.helpers import case_of

MINIMAL = """
    cases:
    - name: one
      upstreams: {A: {}}
      routes: [{match: {prefix: /}, route: {cluster: A}}]
      requests: [{}]
"""


def test_every_case_of_the_suite_is_read() -> None:
    cases = load_cases()
    protocols = [case.protocol for case in cases]
    assert protocols.count("http") >= 90
    assert protocols.count("grpc") >= 70
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.file.startswith(case.name.partition("/")[0]) for case in cases)


def test_only_a_part() -> None:
    assert {case.file for case in load_cases(CASES, "outlier/comes")} == {"outlier.yaml", "grpc_outlier.yaml"}


def test_the_short_form(tmp_path: Path) -> None:
    case = case_of(tmp_path, MINIMAL)
    compiled = compile_case(case, {"A": 4711})
    (cluster,) = compiled.clusters
    assert cluster["name"] == "area/one.A"
    (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert endpoint["endpoint"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 4711}
    (host,) = compiled.hcm["route_config"]["virtual_hosts"]
    assert host["routes"][0]["route"]["cluster"] == "area/one.A"
    assert compiled.document()["resources"][0]["api_listener"]["api_listener"] is compiled.hcm


def test_cluster_names_are_made_unique_wherever_a_route_names_one(tmp_path: Path) -> None:
    case = case_of(
        tmp_path,
        """
        cases:
        - name: one
          upstreams: {A: {}, B: {}}
          routes:
          - match: {prefix: /}
            route:
              weighted_clusters: {clusters: [{name: A, weight: 1}, {name: B, weight: 1}]}
              request_mirror_policies: [{cluster: B}]
          requests: [{headers: {x-cluster: "${cluster.A}", x-at: "${A.address}"}}]
        """,
    )
    route = compile_case(case, {"A": 1, "B": 2}).hcm["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert [entry["name"] for entry in route["weighted_clusters"]["clusters"]] == ["area/one.A", "area/one.B"]
    assert route["request_mirror_policies"] == [{"cluster": "area/one.B"}]
    (request,) = with_addresses(case, {"A": 1, "B": 2}).requests
    assert request.headers == (("x-cluster", "area/one.A"), ("x-at", "127.0.0.1:1"))


def test_a_placeholder_for_nobody(tmp_path: Path) -> None:
    case = case_of(tmp_path, MINIMAL.replace("{A: {}}", "{A: {}}\n      clusters: {A: {upstreams: [B]}}"))
    with pytest.raises(CaseError, match=r"area.yaml: case area/one: .*no upstream 'B'"):
        compile_case(case, {"A": 1})


def test_each_multiplies_a_request(tmp_path: Path) -> None:
    case = case_of(
        tmp_path, MINIMAL.replace("[{}]", "[{method: PUT, each: [{path: /a}, {path: /b, method: GET}]}]")
    )
    assert [(request.method, request.path) for request in case.requests] == [("PUT", "/a"), ("GET", "/b")]


def test_defaults_are_merged(tmp_path: Path) -> None:
    case = case_of(tmp_path, "    defaults: {upstreams: {B: {kind: refused}}, doc: x}" + MINIMAL)
    assert sorted(case.upstreams) == ["A", "B"]
    assert case.doc == "x"


def test_concurrent_requests_have_no_order(tmp_path: Path) -> None:
    case = case_of(tmp_path, MINIMAL.replace("[{}]", "[{repeat: 2, concurrency: 2}]"))
    assert case.compare.any_order


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("requests: [{}]", "request: [{}]", "area.yaml: case one: requests: needs at least one request"),
        ("requests: [{}]", "requests: [{}]\n      extra: 1", "area.yaml: case one: extra: unknown field"),
        ("requests: [{}]", "requests: [{pth: /}]", r"area.yaml: case one: requests\[0\].pth: unknown field"),
        ("[{}]", "[{repeat: 0}]", r"requests\[0\].repeat: must be at least 1"),
        ("[{}]", "[{path: 7}]", r"requests\[0\].path: must be a string, not an integer"),
        ("[{}]", "[{headers: [[a]]}]", r"requests\[0\].headers\[0\]: must be \[name, value\]"),
        ("[{}]", "[{headers: {a: 1}}]", r"requests\[0\].headers\[0\]: must be \[name, value\], both strings"),
        ("[{}]", "[{body: 1}]", r"requests\[0\].body: must be a string or"),
        ("[{}]", "[{elapsed: {at_last: 1}}]", r"requests\[0\].elapsed.at_last: unknown field"),
        ("{A: {}}", "{A: {kind: slow}}", "upstreams.A.kind: 'slow' is not one of http, http2"),
        ("{A: {}}", "{A: {responses: [{stauts: 1}]}}", r"upstreams.A.responses\[0\].stauts: unknown field"),
        (
            "{A: {}}",
            "{A: {responses: [{action: x}]}}",
            r"upstreams.A.responses\[0\].action: 'x' is not one of",
        ),
        ("{A: {}}", "{A: {when: [{path: /}]}}", r"upstreams.A.when\[0\].then: needs at least one behaviour"),
        ("{A: {}}", "[]", "upstreams: must be a mapping, not a list"),
        ("name: one", "name: One", "area.yaml: case One: name: only lower-case"),
        ("name: one", "nam: one", r"area.yaml: cases\[0\].name: every case is a mapping with a name"),
        ("routes: [{match: {prefix: /}, route: {cluster: A}}]", "doc: x", "routes: needs routes"),
        (
            "requests: [{}]",
            "requests: [{}]\n      compare: {ignore: [x]}",
            "compare.ignore: 'x' is not one of",
        ),
        (
            "[{}]",
            "[{}]\n      compare: {distribution: {}}",
            "compare.distribution: a distribution needs at least",
        ),
        ("[{}]", "[{}]\n      expect: [{}, {}]", "expect: has 2 entries for 1 requests"),
        ("[{}]", "[{}]\n      expect: {stat: 1}", r"expect\[0\].stat: unknown field"),
        ("[{}]", "[{}]\n      rejected: maybe", "rejected: must be true or false, not a string"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    assert old in MINIMAL
    with pytest.raises(CaseError, match=complaint):
        case_of(tmp_path, MINIMAL.replace(old, new))


def test_names_are_unique(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("cases: [&c {name: x, rejected: true}, *c]")
    with pytest.raises(CaseError, match=r"a.yaml: case a/x: name: used twice"):
        load_cases(tmp_path)


def test_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("cases: [")
    with pytest.raises(CaseError, match=r"a.yaml: not YAML"):
        load_cases(tmp_path)


RPC = """
    cases:
    - name: one
      upstreams: {A: {responses: [{code: NOT_FOUND}]}}
      routes: [{match: {prefix: /}, route: {cluster: A}}]
      requests: [{rpc: /p.S/M, metadata: {k: v}, timeout: 0.5}]
"""


def test_a_grpc_case(tmp_path: Path) -> None:
    case = case_of(tmp_path, RPC)
    assert (case.protocol, case.upstreams["A"].kind) == ("grpc", "grpc")
    (request,) = case.requests
    assert (request.path, request.headers) == ("/p.S/M", (("k", "v"),))
    assert request.rpc is not None
    assert (request.rpc.arity, request.rpc.timeout) == ("unary-unary", 0.5)
    (cluster,) = compile_case(case, {"A": 4711}).clusters
    (options,) = cluster["typed_extension_protocol_options"].values()
    assert "http2_protocol_options" in options["explicit_http_config"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("NOT_FOUND", "NOT_HERE", r"A.responses\[0\].code: 'NOT_HERE' is not a gRPC status"),
        ("/p.S/M", "p.S/M", r"rpc: must be /package.Service/Method"),
        ("timeout: 0.5", "messages: [a, b]", "messages: unary-unary sends exactly one message"),
        ("timeout: 0.5", "body: x", "body: unknown field"),
        ("timeout: 0.5", "cancel_at: 1", "cancel_at: counts the messages of a stream of responses"),
        ("[{rpc", "[{path: /}, {rpc", "requests: are either all gRPC calls or none is"),
    ],
)
def test_mistakes_in_a_grpc_case(tmp_path: Path, old: str, new: str, complaint: str) -> None:
    with pytest.raises(CaseError, match=complaint):
        case_of(tmp_path, RPC.replace(old, new))
