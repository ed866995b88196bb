"""Which change of trust takes it from nobody, and from whom it does."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from meshlib.identity.material import BundleSet, TrustBundle
from meshlib.identity.trust import Trust
from meshlib.identity.verify import Verifier
from meshlib.resources.matching import StringKind, StringMatch
from meshlib.resources.tls import SanMatch, SanType
from tests.identity.ca import TestCA

OWN, NEW, THEIRS = TestCA(), TestCA(), TestCA("other.example")
A, B = OWN.der, NEW.der
SAN = SanMatch(san_type=SanType.URI, match=StringMatch(kind=StringKind.EXACT, value="spiffe://example.org/a"))


def bundles(*cas: TestCA) -> Trust:
    domains = dict.fromkeys(ca.trust_domain for ca in cas)
    return Trust(
        bundles=BundleSet(
            TrustBundle(domain, [ca.der for ca in cas if ca.trust_domain == domain]) for domain in domains
        )
    )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Trust(roots=(A,)), Trust(roots=(A,))),
        (Trust(roots=(A,)), Trust(roots=(B, A))),
        (Trust(roots=(A, B)), Trust(roots=(B, A))),
        (Trust(), Trust()),
        (bundles(OWN), bundles(OWN)),
        (bundles(OWN), bundles(NEW, OWN)),
        (bundles(OWN), bundles(OWN, THEIRS)),
        (bundles(OWN, THEIRS), bundles(THEIRS, NEW, OWN)),
        (Trust(bundles=BundleSet()), bundles(OWN)),
    ],
)
def test_more_authorities_take_trust_from_nobody(before: Trust, after: Trust) -> None:
    assert after.covers(before)
    assert after.alike(before)
    assert before.covers(after) is (set(before.anchors) == set(after.anchors))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Trust(roots=(A,)), Trust(roots=(B,))),
        (Trust(roots=(A, B)), Trust(roots=(B,))),
        (Trust(), Trust(roots=(A,))),
        (Trust(roots=(A,)), Trust()),
        (Trust(roots=(A,)), bundles(OWN)),
        (bundles(OWN), Trust(roots=(A,))),
        (bundles(OWN), bundles(NEW)),
        (bundles(OWN, THEIRS), bundles(OWN, NEW)),
        (bundles(OWN), Trust(bundles=BundleSet([TrustBundle("other.example", [A])]))),
    ],
)
def test_another_authority_instead(before: Trust, after: Trust) -> None:
    assert not after.covers(before)
    verified_alike = (before.bundles is None, before.roots is None) == (
        after.bundles is None,
        after.roots is None,
    )
    assert after.alike(before) is verified_alike


@pytest.mark.parametrize(
    ("trusted", "then", "still"),
    [
        (Trust(roots=(A,)), Trust(roots=(A, B)), True),
        (Trust(roots=(A, B)), Trust(roots=(A,)), True),
        (Trust(roots=(A, B)), Trust(roots=(B,)), False),
        (bundles(OWN, THEIRS), bundles(OWN), True),
        (bundles(OWN, NEW), bundles(NEW), False),
        (bundles(OWN, THEIRS), bundles(THEIRS), False),
        (bundles(OWN), Trust(bundles=BundleSet([TrustBundle("other.example", [A])])), False),
        (Trust(), Trust(), True),
    ],
)
@pytest.mark.parametrize("by_openssl", [True, False])
def test_whose_authority_is_withdrawn(trusted: Trust, then: Trust, still: bool, by_openssl: bool) -> None:
    """A peer of the first authority. by_openssl: the path is not found here."""
    chain = (OWN.issue("spiffe://td.example/a").der,)
    peer = Verifier(trusted, server=False).check(chain, (*chain, A) if by_openssl else (), time.time())
    assert trusted.still_trusts(peer)
    assert then.still_trusts(peer) is still


def test_the_machines_own_authorities_are_not_withdrawn() -> None:
    chain = (OWN.issue("spiffe://td.example/a").der,)
    trust = Trust(roots=(B,), system_roots=True)
    peer = Verifier(trust, server=False).check(chain, (*chain, A), time.time())
    assert peer.authority_der == b""
    assert Trust(roots=(), system_roots=True).still_trusts(peer)
    named = Verifier(Trust(roots=(A,), system_roots=True), server=False).check(
        chain, (*chain, A), time.time()
    )
    assert not trust.still_trusts(named)


@pytest.mark.parametrize(
    "change",
    [
        {"system_roots": True},
        {"partial_chain": False},
        {"match_sans": (SAN,)},
        {"certificate_hashes": frozenset({b"1" * 32})},
        {"certificate_spkis": frozenset({b"1" * 32})},
        {"leaf_crl_only": True},
        {"allow_expired": True},
        {"accept_untrusted": True},
        {"max_verify_depth": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_anything_else_is_another_trust(change: dict[str, object]) -> None:
    """Also where it may be less strict: who was refused for it should not depend on when it was asked."""
    before = Trust(roots=(A,))
    after = replace(before, roots=(A, B), **change)  # type: ignore[arg-type]
    assert not after.covers(before)
    assert not after.alike(before)
    assert not before.covers(replace(before, **change))  # type: ignore[arg-type]
