"""Certificate providers of a bootstrap."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from meshlib.controlplane.ca import Authority
from meshlib.controlplane.ca.files import bundle_map as write_bundle_map
from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.provider import REFRESH, certificate_providers
from meshlib.identity.resolve import bundle_map
from meshlib.identity.source import IdentityUpdate
from meshlib.runtime.clock import FakeClock
from tests.identity.ca import TestCA

ID = "spiffe://td.example/a"


def heard(config: dict[str, Any]) -> IdentityUpdate:
    entry = {"plugin_name": "file_watcher", "config": config}
    source = certificate_providers({"default": entry}, FakeClock())["default"]
    updates: list[IdentityUpdate] = []
    source.start(updates.append)
    source.close()
    return updates[0]


def test_files(tmp_path: Path) -> None:
    ca = TestCA()
    issued = ca.issue(ID)
    for name, content in (("crt", issued.chain), ("key", issued.key), ("ca", ca.pem)):
        (tmp_path / name).write_bytes(content)
    config = {
        "certificate_file": str(tmp_path / "crt"),
        "private_key_file": str(tmp_path / "key"),
        "ca_certificate_file": str(tmp_path / "ca"),
        "refresh_interval": "5s",
    }
    update = heard(config)
    assert update.svids[0].leaf == issued.der
    assert update.roots == (ca.der,)
    assert not update.bundles
    update = heard({"ca_certificate_file": str(tmp_path / "ca")})
    assert update.svids == ()


def test_a_bundle_map_takes_the_place_of_the_ca(tmp_path: Path) -> None:
    authority = Authority("td.example")
    authority.federate("other.example", Authority("other.example").bundle)
    (tmp_path / "map").write_bytes(write_bundle_map(authority.bundles, 3))
    (tmp_path / "ca").write_bytes(TestCA().pem)
    config = {
        "ca_certificate_file": str(tmp_path / "ca"),
        "spiffe_trust_bundle_map_file": str(tmp_path / "map"),
    }
    update = heard(config)
    assert set(update.bundles) == {"td.example", "other.example"}
    assert update.bundles["td.example"].version == 3
    assert update.roots == ()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("x", "expected an object"),
        ({}, "plugin_name"),
        ({"plugin_name": "mesh_ca"}, "'mesh_ca' is not known"),
        ({"plugin_name": "file_watcher"}, "names neither"),
        ({"plugin_name": "file_watcher", "config": []}, "names neither"),
        ({"plugin_name": "file_watcher", "config": "x"}, "expected an object"),
        ({"plugin_name": "file_watcher", "config": {"certificate_file": "a"}}, "belong together"),
        ({"plugin_name": "file_watcher", "config": {"private_key_file": "a"}}, "belong together"),
        ({"plugin_name": "file_watcher", "config": {"ca_certificate_file": 5}}, "expected a string"),
        *(
            (
                {
                    "plugin_name": "file_watcher",
                    "config": {"ca_certificate_file": "a", "refresh_interval": value},
                },
                "duration",
            )
            for value in ("5", 5, "0s", "-1s", "xs", "infs", "nans")
        ),
    ],
)
def test_what_is_wrong(entry: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        certificate_providers({"default": entry})


def test_the_default_of_the_interval() -> None:
    assert REFRESH == 600.0


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"trust_domains": {}}',
        b'{"trust_domains": []}',
        b'{"trust_domains": {"td": {}}}',
        b'{"trust_domains": {"td": {"keys": []}}}',
        b'{"trust_domains": {"td": {"keys": [{"use": "jwt-svid"}]}}}',
        b'{"trust_domains": {"td": {"keys": [{"use": "x509-svid"}]}}}',
        b'{"trust_domains": {"td": {"keys": [{"use": "x509-svid", "x5c": []}]}}}',
        b'{"trust_domains": {"td": {"keys": [{"use": "x509-svid", "x5c": ["!!"]}]}}}',
        b'{"trust_domains": {"td": {"keys": [{"use": "x509-svid", "x5c": ["AAAA"]}]}}}',
        b'{"trust_domains": {"td": {"keys": [{"use": "x509-svid", "x5c": [5]}]}}}',
        b"[" * 100_000,
    ],
)
def test_bundle_maps_that_are_none(document: bytes) -> None:
    with pytest.raises(IdentityError):
        bundle_map(document)


def test_names_in_a_bundle_map_are_checked() -> None:
    document = json.loads(write_bundle_map(Authority("td").bundles, 1))
    document["trust_domains"]["TD"] = document["trust_domains"].pop("td")
    with pytest.raises(IdentityError, match="not a trust domain"):
        bundle_map(json.dumps(document).encode())


def test_keys_for_other_uses_are_skipped() -> None:
    document = json.loads(write_bundle_map(Authority("td").bundles, 1))
    document["trust_domains"]["td"]["keys"].insert(0, {"use": "jwt-svid", "kty": "EC"})
    assert len(bundle_map(json.dumps(document).encode())["td"].authorities) == 1
