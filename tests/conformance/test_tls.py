"""The TLS cases: their file, and that Envoy does what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.reader import CaseError
from conformance.tls.case import TlsCase, load, wrong
from conformance.tls.envoy import TlsOutcome, cluster_resource
from conformance.tls.listed import load_listed, unused
from conformance.tls.pairs import ORACLE, PAIRS, fields, run
from meshlib import proto

SOME = (ORACLE, "httpx.async-envoy", "envoy-asgi", "grpc-envoy.grpc", "grpc.aio-grpc")
"""Each kind of server and most kinds of clients; `make conformance` runs all pairs."""

HEAD = "authorities: {ours: td.example}\ncertificates: {}\ncases:\n"


def case(**expect: object) -> TlsCase:
    return TlsCase(name="x", client={}, server={}, expect=expect)


def test_every_case_makes_valid_resources() -> None:
    cases, materials = load()
    assert len(cases) > 50
    for each in cases:
        resource = cluster_resource(each, materials, 1)
        proto.from_dict(
            "envoy.config.cluster.v3.Cluster", {k: v for k, v in resource.items() if k != "@type"}
        )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- {name: a, client: {colour: red}, server: {}, expect: {status: 200}}", "case a: unknown: colour"),
        ("- {name: a, client: {}, server: plain, expect: {status: 200}}", "case a: unknown: plain"),
        ("- {name: a, client: {}, server: {}, expect: {state: 200}}", "case a: unknown: state"),
        ("- &x {name: a, client: {}, server: {}, expect: {status: 200}}\n- *x", "a name is there twice"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "cases.yaml"
    path.write_text(HEAD + text)
    with pytest.raises(CaseError, match=reason):
        load(path)


def test_what_is_expected_follows_from_a_few_words() -> None:
    assert case(status=200).expected == {"status": 200, "flags": "-", "transport": "", "body": "served"}
    failed = case(status=503, flags="UF", transport="TLS").expected
    assert failed["details"] == "upstream_reset_before_response_started{remote_connection_failure|TLS}"
    assert failed["body"].endswith("reset reason: remote connection failure")
    assert case(status=503, flags="UC", reason="connection termination").expected["details"] == (
        "upstream_reset_before_response_started{connection_termination}"
    )


def test_differences_are_found() -> None:
    outcome = TlsOutcome(status=200, body="served", client_stats=("a",))
    assert wrong(case(status=200, client_stats=["a"]), outcome) == {}
    assert wrong(case(status=200, client_stats=["b"]), outcome) == {"client_stats": (["b"], ("a",))}
    found = wrong(case(status=503, flags="UF", transport="x...z"), outcome)
    assert set(found) == {"status", "flags", "transport", "body", "details"}
    assert wrong(case(status=503, flags="UF"), outcome, ["status"]) == {"status": (503, 200)}
    assert wrong(case(status=503, transport="x...z"), TlsOutcome(transport="x.y.z"), ["transport"]) == {}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- {cases: [a], pairs: [b], fields: [c], category: by-design}", "an entry has cases, pairs"),
        ("- {cases: [a], pairs: [b], fields: [c], category: because, reason: x}", "category is 'because'"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "listed.yaml"
    path.write_text(text)
    with pytest.raises(CaseError, match=reason):
        load_listed(path)


def test_entries_that_cover_nothing_are_found(tmp_path: Path) -> None:
    path = tmp_path / "listed.yaml"
    path.write_text(
        "- {cases: [a, b-*], pairs: [x-y, '*-z'], fields: [status], category: by-design, reason: x}"
    )
    listed = load_listed(path)
    seen = [("x-y", "a", "status"), ("q-z", "b-1", "status"), ("q-z", "a", "body")]
    assert unused(listed, seen) == ["a *-z", "b-* x-y"]


def test_what_is_listed_is_there() -> None:
    cases, _ = load()
    for entry in load_listed():
        assert set(entry.cases) <= {each.name for each in cases}
        assert entry.reason


@pytest.mark.envoy
@pytest.mark.parametrize("pair", SOME)
def test_a_pair_does_what_two_envoys_do(pair: str) -> None:
    """Every case: who connects to whom, and in which words it is refused; equal, or listed with the reason."""
    assert pair in PAIRS
    cases, materials = load()
    listed = () if pair == ORACLE else load_listed()
    found = {
        (case.name, field): values
        for case, outcome in run(pair, cases, materials)
        for field, values in wrong(case, outcome, fields(pair)).items()
        if not any(entry.covers(pair, case.name, field) for entry in listed)
    }
    assert found == {}
