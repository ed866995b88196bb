"""The CA without a network: what it issues, how roots are replaced, revocation."""

from __future__ import annotations

from dataclasses import replace

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from meshlib.controlplane.ca import Authority, IssuedSvid, Phase
from meshlib.controlplane.ca.keys import KEY_TYPES
from meshlib.controlplane.ca.root import BACKDATE
from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.material import Svid
from meshlib.runtime.clock import FakeClock
from tests.controlplane.ca.chains import dns_names, trusted, uris

WEB = "spiffe://example.org/web"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def authority(clock: FakeClock) -> Authority:
    return Authority("example.org", ttl=60, clock=clock)


def test_an_svid_says_what_the_specification_wants(authority: Authority, clock: FakeClock) -> None:
    svid = authority.issue(WEB, dns_names=("web.local",))
    leaf = svid.leaf
    assert uris(leaf) == [WEB]
    assert dns_names(leaf) == ["web.local"]
    basic = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (basic.critical, basic.value.ca) == (True, False)
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert usage.value.digital_signature
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign
    assert leaf.not_valid_before_utc.timestamp() == clock.time() - BACKDATE
    assert leaf.not_valid_after_utc.timestamp() == svid.not_after == clock.time() + 60
    assert svid.renew_at == clock.time() + 30


def test_a_root_says_what_the_specification_wants(authority: Authority) -> None:
    (root,) = authority.bundle
    assert uris(root) == ["spiffe://example.org"]
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = root.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign
    assert not usage.digital_signature


@pytest.mark.parametrize("intermediate", [False, True])
def test_chains_lead_to_the_root_while_they_live(clock: FakeClock, intermediate: bool) -> None:
    authority = Authority("example.org", ttl=60, clock=clock, intermediate=intermediate)
    svid = authority.issue(WEB)
    assert len(svid.chain) == (2 if intermediate else 1)
    now = clock.time()
    assert trusted(svid, authority.bundle, now)
    assert not trusted(svid, authority.bundle, now - BACKDATE - 1)
    assert not trusted(svid, authority.bundle, now + 61)
    assert not trusted(svid, Authority("example.org", clock=clock).bundle, now)


@pytest.mark.parametrize("key_type", KEY_TYPES)
def test_every_key_type_is_taken_by_who_uses_it(authority: Authority, key_type: str) -> None:
    svid = authority.issue(WEB, key_type=key_type)
    read = Svid.from_pem(svid.chain_pem(), svid.key_pem())
    assert str(read.spiffe_id) == WEB
    assert read.not_after == svid.not_after


def test_an_unknown_key_type_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown key type 'dsa': one of ecdsa-p256"):
        Authority("example.org", key_type="dsa").issue(WEB)


@pytest.mark.parametrize(
    "spiffe_id",
    ["spiffe://other.org/web", "spiffe://example.org", "spiffe://Example.org/web", "https://example.org/web"],
)
def test_only_workloads_of_its_own_trust_domain_get_an_svid(authority: Authority, spiffe_id: str) -> None:
    with pytest.raises(IdentityError):
        authority.issue(spiffe_id)


def test_an_svid_does_not_outlive_its_root(clock: FakeClock) -> None:
    authority = Authority("example.org", ttl=3600, root_ttl=100, clock=clock)
    assert authority.issue(WEB).not_after == clock.time() + 100


def test_a_template_may_be_wrong(authority: Authority) -> None:
    good = authority.template(WEB)
    two = authority.issue_from(replace(good, uris=(WEB, "spiffe://example.org/other")))
    assert uris(two.leaf) == [WEB, "spiffe://example.org/other"]
    assert two.spiffe_id == ""
    none = authority.issue_from(replace(good, uris=()))
    with pytest.raises(x509.ExtensionNotFound):
        uris(none.leaf)


def test_a_rotation_never_leaves_an_svid_in_use_without_trust(authority: Authority, clock: FakeClock) -> None:
    old = authority.issue(WEB)
    seen: list[int] = []
    authority.watch(lambda: seen.append(authority.state.sequence))

    assert authority.rotate() is Phase.PREPARED
    assert authority.state.sequence == 2
    during = authority.issue(WEB)
    assert trusted(during, authority.bundle[:1], clock.time()), (
        "the old root signs until everybody knows the new one"
    )

    assert authority.rotate() is Phase.ACTIVATED
    new = authority.issue(WEB)
    new_roots = authority.bundle[1:]
    assert trusted(new, new_roots, clock.time())
    assert not trusted(new, authority.bundle[:1], clock.time())
    assert all(trusted(svid, authority.bundle, clock.time()) for svid in (old, during, new))

    assert authority.rotate() is Phase.STEADY
    assert authority.bundle == new_roots
    assert trusted(new, authority.bundle, clock.time())
    assert not trusted(old, authority.bundle, clock.time())
    assert seen == [2, 2, 3], "the sequence number of the bundle changes with the bundle only"


@given(st.lists(st.sampled_from(["rotate", "issue"]), max_size=12))
def test_what_the_last_two_steps_issued_is_trusted(steps: list[str]) -> None:
    """However steps and issues are mixed: an SVID is trusted at least until the second step after it, half a rotation or more."""
    authority = Authority("example.org", clock=FakeClock())
    issued: list[tuple[int, IssuedSvid]] = []
    done = 0
    for step in steps:
        if step == "rotate":
            authority.rotate()
            done += 1
        else:
            issued.append((done, authority.issue(WEB)))
        now = authority.clock.time()
        assert all(trusted(svid, authority.bundle, now) for at, svid in issued if done - at < 2)


def test_federation(authority: Authority) -> None:
    other = Authority("other.org")
    authority.federate("other.org", other.bundle)
    assert authority.bundles == {"example.org": authority.bundle, "other.org": other.bundle}
    authority.federate("other.org", ())
    assert list(authority.bundles) == ["example.org"]
    with pytest.raises(ConfigError, match="own trust domain"):
        authority.federate("example.org", other.bundle)
    with pytest.raises(IdentityError):
        authority.federate("Other.org", other.bundle)


@pytest.mark.parametrize("intermediate", [False, True])
def test_revocation(clock: FakeClock, intermediate: bool) -> None:
    authority = Authority("example.org", clock=clock, intermediate=intermediate)
    assert authority.revocation_lists() == ()
    svid, kept = authority.issue(WEB), authority.issue(WEB)
    authority.revoke(svid)
    lists = authority.revocation_lists()
    assert len(lists) == (2 if intermediate else 1), "one of each CA of the chain"
    assert lists[0].issuer == svid.leaf.issuer
    assert lists[0].get_revoked_certificate_by_serial_number(svid.serial) is not None
    assert lists[0].get_revoked_certificate_by_serial_number(kept.serial) is None
    assert authority.revocation_lists() is lists, "the same until something changes"
    clock.advance(13 * 3600)
    assert authority.revocation_lists()[0].last_update_utc > lists[0].last_update_utc


def test_a_list_ends_with_its_root(authority: Authority) -> None:
    svid = authority.issue(WEB)
    authority.revoke(svid)
    for _ in range(3):
        authority.rotate()
    (crl,) = authority.revocation_lists()
    assert crl.issuer == authority.bundle[0].subject
    assert len(crl) == 0


def test_keys_are_in_no_repr(authority: Authority) -> None:
    svid = authority.issue(WEB)
    assert "key" not in repr(svid).replace("IssuedSvid", "")
    assert "key" not in repr(authority.state)


def test_a_watcher_ends(authority: Authority) -> None:
    calls: list[int] = []
    end = authority.watch(lambda: calls.append(1))
    authority.rotate()
    end()
    end()
    authority.rotate()
    assert calls == [1]
