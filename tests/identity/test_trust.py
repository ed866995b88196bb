"""Which change of trust takes it from nobody."""

from __future__ import annotations

from dataclasses import replace

import pytest

from meshlib.identity.material import BundleSet, TrustBundle
from meshlib.identity.trust import Trust
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
    assert not before.covers(replace(before, **change))  # type: ignore[arg-type]
