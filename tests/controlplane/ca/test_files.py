"""SVIDs in files and the CA's own state: what is written, with which rights, and what is read back."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509

from meshlib.controlplane.ca import Authority, keys
from meshlib.controlplane.ca.files import bundle_map, replace_files, svid_files
from meshlib.controlplane.ca.store import STATE, create_state, load_state, save_state
from meshlib.errors import ConfigError
from meshlib.runtime.clock import FakeClock
from tests.controlplane.ca.chains import trusted

WEB = "spiffe://example.org/web"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_files_of_an_svid(authority: Authority, tmp_path: Path) -> None:
    svid = authority.issue(WEB)
    out = tmp_path / "deep" / "out"
    replace_files(out, svid_files(svid, authority.bundles, 1))
    assert sorted(path.name for path in out.iterdir() if not path.name.startswith("..")) == [
        "bundles.json",
        "ca.crt",
        "tls.crt",
        "tls.key",
    ]
    assert x509.load_pem_x509_certificate((out / "tls.crt").read_bytes()) == svid.leaf
    assert (out / "tls.key").read_bytes() == svid.key_pem()
    assert x509.load_pem_x509_certificates((out / "ca.crt").read_bytes()) == list(authority.bundle)
    assert mode(out / "tls.key") == 0o600
    assert mode(out / "tls.crt") == 0o644


def test_all_files_change_at_once_and_old_ones_go(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("stays")
    replace_files(tmp_path, {"a": b"1", "b": b"1"})
    first = (tmp_path / "..data").readlink()
    held = tmp_path / first
    links = {name: (tmp_path / name).lstat().st_ino for name in ("a", "b")}
    replace_files(tmp_path, {"a": b"2", "b": b"2"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == b"2"
    assert {name: (tmp_path / name).lstat().st_ino for name in ("a", "b")} == links, "one rename does it"
    assert not held.exists()
    assert (tmp_path / "mine").read_text() == "stays"
    assert len(list(tmp_path.iterdir())) == 5


def test_a_file_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "tls.key").write_text("precious")
    with pytest.raises(ConfigError, match="was not written by meshlib"):
        replace_files(tmp_path, {"tls.crt": b"x", "tls.key": b"x"})
    assert [path.name for path in tmp_path.iterdir()] == ["tls.key"]


@pytest.mark.parametrize(
    ("key_type", "expected"),
    [
        ("ecdsa-p256", {"kty": "EC", "crv": "P-256"}),
        ("ecdsa-p384", {"kty": "EC", "crv": "P-384"}),
        ("rsa-2048", {"kty": "RSA", "e": "AQAB"}),
        ("ed25519", {"kty": "OKP", "crv": "Ed25519"}),
    ],
)
def test_a_bundle_map(key_type: str, expected: dict[str, str]) -> None:
    authority = Authority("example.org", root_key_type=key_type)
    authority.federate("other.org", Authority("other.org").bundle)
    domains = json.loads(bundle_map(authority.bundles, 7))["trust_domains"]
    assert list(domains) == ["example.org", "other.org"]
    assert domains["example.org"]["spiffe_sequence"] == 7
    (key,) = domains["example.org"]["keys"]
    assert key.items() >= {"use": "x509-svid", **expected}.items()
    assert len(key["x5c"]) == 1


@pytest.mark.parametrize("intermediate", [False, True])
def test_a_ca_goes_on_where_it_was(tmp_path: Path, intermediate: bool) -> None:
    clock = FakeClock()
    authority = Authority("example.org", clock=clock, intermediate=intermediate)
    svid = authority.issue(WEB)
    authority.federate("other.org", Authority("other.org").bundle)
    authority.revoke(svid)
    authority.rotate()
    save_state(tmp_path, "example.org", authority.state)
    assert [path.name for path in tmp_path.iterdir()] == [STATE]
    assert mode(tmp_path / STATE) == 0o600

    again = Authority("example.org", clock=clock, state=load_state(tmp_path, "example.org"))
    assert again.bundles == authority.bundles
    assert again.state.phase is authority.state.phase
    assert again.state.revoked == authority.state.revoked
    assert trusted(again.issue(WEB), authority.bundle, clock.time())
    again.rotate()
    assert trusted(again.issue(WEB), authority.bundle[1:], clock.time())
    assert keys.to_pem(again.state.roots[0].jwt_key) == keys.to_pem(authority.state.roots[0].jwt_key)


def test_the_first_of_two_creators_wins(tmp_path: Path) -> None:
    assert load_state(tmp_path, "example.org") is None
    first, second = Authority("example.org"), Authority("example.org")
    assert create_state(tmp_path, "example.org", first.state)
    assert not create_state(tmp_path, "example.org", second.state)
    kept = load_state(tmp_path, "example.org")
    assert kept is not None
    assert kept.bundle == first.bundle
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"trust_domain": "example.org"}'])
def test_a_state_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / STATE).write_text(content)
    with pytest.raises(ConfigError, match="is not a CA that meshlib wrote"):
        load_state(tmp_path, "example.org")


def test_a_state_of_another_trust_domain_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path, "example.org", Authority("example.org").state)
    with pytest.raises(ConfigError, match=r"is the CA of example\.org, not of other\.org"):
        load_state(tmp_path, "other.org")
