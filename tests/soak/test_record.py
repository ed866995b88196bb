"""How a soak is summed up, and that it can fail."""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks.soak.record import Record, summary
from benchmarks.soak.rotations import TRUST_DOMAIN, Rotations, fingerprint
from benchmarks.soak.run import Plan, certificates_in, faults
from benchmarks.soak.verdict import PIECE, PIECES, Question, Verdict
from meshlib.identity.material import BundleSet, Svid, TrustBundle
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.store import IdentityStore
from tests.identity.ca import TestCA


class World:
    """A workload whose identity rotates on request."""

    def __init__(self, heard: float = 0.0) -> None:
        self.ca = TestCA(TRUST_DOMAIN)
        self.store = IdentityStore(self)
        self.tell: Any = None
        self.security = self.store.server(None)
        self.store.start()
        self.shown: list[str] = []
        self.turn()
        self.rotations = Rotations(self.store, lambda: self.security.epoch, settle=1000.0, heard=heard)

    def start(self, on_update: Any) -> None:
        self.tell = on_update

    def close(self) -> None: ...

    def turn(self) -> None:
        issued = self.ca.issue(f"spiffe://{TRUST_DOMAIN}/web")
        svid = Svid.from_pem(issued.chain, issued.key)
        self.shown.append(fingerprint(svid.leaf))
        bundles = BundleSet([TrustBundle(TRUST_DOMAIN, [self.ca.der])])
        self.tell(IdentityUpdate(svids=(svid,), bundles=bundles))


def test_rotations_are_counted_and_settle() -> None:
    world = World()
    assert world.rotations.status() == {"certificates": 1, "roots": 1, "epoch": 1, "settled": True}
    world.turn()
    assert world.rotations.status() == {"certificates": 2, "roots": 1, "epoch": 2, "settled": False}
    (at,) = world.rotations.times
    assert world.rotations.settled(at + 999) == 1
    assert world.rotations.settled(at + 1001) == 2


def test_a_call_on_an_old_connection_is_seen() -> None:
    world = World()
    world.turn()
    record = Record(rotations=world.rotations)
    call = record.begin(0.0)
    world.turn()
    record.end(call, Verdict(certificate=world.shown[2], age=1).encode())
    assert record.oldest_own <= 0, "a connection that is newer than the call"
    record.end(call, Verdict(certificate=world.shown[0], age=2).encode())
    assert (record.oldest_own, record.oldest_peer) == (1, 2)


def test_an_answer_that_was_cut_is_none() -> None:
    record = Record(rotations=World().rotations)
    call = record.begin(1.0)
    whole = PIECE * PIECES + Verdict(certificate="a", age=0).encode()
    record.end(call, whole)
    for length in (0, len(PIECE), len(PIECE) * PIECES):
        with pytest.raises(ValueError):
            record.end(call, whole[:length])
    assert record.long == 1


def test_calls_around_a_rotation_are_told_from_those_between() -> None:
    world = World()
    world.rotations.times[:] = [10.0, 20.0]
    record = Record(rotations=world.rotations)
    for begun, took in ((5.0, 1.0), (9.0, 0.95), (9.9, 2.0), (10.9, 3.0), (11.1, 4.0), (25.0, 5.0)):
        record.begun.append(begun)
        record.took.append(took)
    found = summary([record], begun=6.0)
    assert found["around"] == {"p50": 2000.0, "p99": 3000.0}, "also while contexts were built for it"
    assert found["between"] == {"p50": 5000.0, "p99": 5000.0}
    assert found["all"]["p99"] == 5000.0
    assert found["calls"] == 6


def test_a_question_and_its_verdict_survive_the_way() -> None:
    question = Question(begun=12.25, seconds=0.5)
    assert Question.decode(question.encode()) == question


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, []),
        ({"failed": 1, "failures": ["why"]}, ["x: 1 calls failed", "why"]),
        ({"calls": 0}, ["x: no calls"]),
        ({"oldest_own": 2}, ["x: a connection in use was more than one rotation old"]),
        ({"oldest_peer": 2}, ["x: a connection in use was more than one rotation old"]),
        ({"unknown_certificates": 1}, ["x: a server has seen a certificate that was never ours"]),
        ({"certificates": 2}, ["x: the servers have seen 2 of its certificates only"]),
    ],
)
def test_what_must_not_be(change: dict[str, Any], told: list[str]) -> None:
    client = {"calls": 9, "long_calls": 1, "failed": 0, "failures": [], "oldest_own": 1, "oldest_peer": 1}
    client |= {"certificates": 3, "unknown_certificates": 0} | change
    plan = {"certificates": 4, "root_rotations": 0}
    assert faults({"plan": plan, "clients": {"x": client}}) == told
    plan = {"certificates": 6, "root_rotations": 2}
    assert faults({"plan": plan, "clients": {"x": client}}) == told, "each may overtake a certificate"


def test_a_process_hears_of_its_own_rotation_a_little_later() -> None:
    world = World(heard=60.0)
    world.turn()
    record = Record(rotations=world.rotations)
    assert record.begin(0.0).newest == 0
    assert world.rotations.newest(time.monotonic() + 61.0) == 1


def test_how_long_a_run_is() -> None:
    assert certificates_in(10, 60, 2) == 23
    assert Plan(lifetime=60, certificates=23).settle == 3.0
    assert Plan(lifetime=60, certificates=23).load.callers == 4
