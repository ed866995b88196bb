"""The `spiffe` package, a SPIFFE client of other people's, against the CA."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import spiffe

from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities
from tests.controlplane.ca.conftest import API, WEB


def wait_for(check: Callable[[], bool]) -> None:
    event = threading.Event()
    for _ in range(4500):
        if check():
            return
        event.wait(0.01)
    pytest.fail("not within 45 s")


def authorities(bundles: spiffe.X509BundleSet, domain: str) -> object:
    found = bundles.get_bundle_for_trust_domain(spiffe.TrustDomain(domain))
    assert found is not None
    return found.x509_authorities


def test_everything_it_can_fetch(server: CaServer, authority: Authority) -> None:
    authority.federate("other.org", Authority("other.org").bundle)
    address = server.addresses[0].replace("unix:", "unix://")
    with spiffe.WorkloadApiClient(address) as client:
        svids = client.fetch_x509_svids()
        assert [str(svid.spiffe_id) for svid in svids] == [WEB, API]
        context = client.fetch_x509_context()
        assert str(context.default_svid.spiffe_id) == WEB
        assert authorities(context.x509_bundle_set, "other.org") == set(authority.bundles["other.org"])
        assert len(client.fetch_x509_bundles().bundles) == 2
        token = client.fetch_jwt_svid({"a"}, subject=spiffe.SpiffeId(API))
        assert str(client.validate_jwt_svid(token.token, "a").spiffe_id) == API
        keys = client.fetch_jwt_bundles().get_bundle_for_trust_domain(spiffe.TrustDomain("example.org"))
        assert keys is not None
        checked = spiffe.JwtSvid.parse_and_validate(token.token, keys, {"a"})
        assert str(checked.spiffe_id) == API


def test_its_source_follows_renewal_and_rotation(tmp_path: Path) -> None:
    authority = Authority("example.org", ttl=2)
    with CaServer(Identities(authority, [Entry(spiffe_id=WEB)]), [f"unix:{tmp_path}/agent.sock"]):
        with spiffe.X509Source(socket_path=f"unix://{tmp_path}/agent.sock", timeout_in_seconds=20) as source:

            def leaf() -> object:
                return source.get_x509_context().default_svid.leaf

            def roots() -> object:
                return authorities(source.get_x509_context().x509_bundle_set, "example.org")

            first = leaf()
            wait_for(lambda: leaf() != first)
            old = set(authority.bundle)
            assert roots() == old
            for _ in range(3):
                authority.rotate()
                wait_for(lambda: roots() == set(authority.bundle))
            assert not old & set(authority.bundle)
