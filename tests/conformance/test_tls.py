"""The TLS cases: their file, and that Envoy does what they say."""

from __future__ import annotations

from pathlib import Path

import pytest

from conformance.reader import CaseError
from conformance.tls.case import TlsCase, load, wrong
from conformance.tls.envoy import TlsOutcome, cluster_resource
from conformance.tls.run import envoy_to_envoy
from meshlib import proto

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


@pytest.mark.envoy
def test_envoy_does_what_the_cases_say() -> None:
    pytest.importorskip("envoy")
    outcomes = envoy_to_envoy(*load())
    assert {each.name: found for each, outcome in outcomes if (found := wrong(each, outcome))} == {}
