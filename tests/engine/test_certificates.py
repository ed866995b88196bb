"""Calls to a cluster with TLS before its first certificates have come, and while they are exchanged."""

from __future__ import annotations

import pytest

from meshlib.engine.options import CallOptions
from meshlib.errors import ConfigTimeout
from meshlib.resources.cluster import Cluster
from meshlib.resources.tls import UpstreamTls
from meshlib.state import Handshake, Security
from tests.engine.builders import cluster
from tests.engine.wire import FakeCall, FakeMesh


class FakeSecurity:
    """There is no material until somebody sets an epoch."""

    trust_epoch = 0

    @property
    def epoch(self) -> int:
        return self.trust_epoch

    def handshake(self, *, authority: str, hostname: str, alpn: tuple[str, ...]) -> Handshake:
        raise NotImplementedError


class Sweeper:
    """A pool that counts how often it hears of changes."""

    swept = 0

    def sweep(self) -> None:
        self.swept += 1


SECURED: Cluster = cluster(tls=UpstreamTls(sni="a"))


def mesh_with(security: Security, *clusters: Cluster) -> FakeMesh:
    return FakeMesh(*(clusters or (SECURED,)), secure=lambda _: security)


def parked(call: FakeCall) -> bool:
    return not call.over and call.log[-1] == "Park"


def test_a_call_waits_for_the_first_certificates() -> None:
    security = FakeSecurity()
    mesh = mesh_with(security)
    call = mesh.call()
    assert parked(call)
    security.trust_epoch = 1
    mesh.engine.rotated()
    call.attend()
    call.answer(200)
    assert call.status == 200
    assert mesh.engine.program.clusters["a"].secure_by is None


def test_without_them_it_goes_on_after_fifteen_seconds_and_so_do_all_later_ones() -> None:
    """What happens then is the connection's business: it has nothing to show, and fails as Envoy's does."""
    mesh = mesh_with(FakeSecurity())
    mesh.clock.advance(5)
    call = mesh.call()
    assert call.tick() == pytest.approx(10.0)
    assert not parked(call)
    call.answer(200)
    assert not parked(mesh.call())


def test_the_callers_own_deadline_may_be_nearer() -> None:
    call = mesh_with(FakeSecurity()).call(options=CallOptions(timeout=0.5))
    assert call.tick() == pytest.approx(0.5)
    assert isinstance(call.error, ConfigTimeout)
    assert "what TLS to cluster 'a' needs" in str(call.error)


def test_a_push_that_changes_nothing_there_does_not_start_the_wait_again() -> None:
    mesh = mesh_with(FakeSecurity())
    mesh.clock.advance(14)
    mesh.publish()
    call = mesh.call()
    assert call.tick() == pytest.approx(1.0)
    assert not parked(call)


def test_other_clusters_do_not_wait() -> None:
    mesh = FakeMesh(cluster(), cluster("b", tls=UpstreamTls()), secure=lambda _: FakeSecurity())
    call = mesh.call()
    call.answer(200)
    assert call.status == 200


def test_pools_hear_of_a_rotation() -> None:
    security = FakeSecurity()
    security.trust_epoch = 1
    mesh = mesh_with(security)
    sweeper = Sweeper()
    mesh.engine.adopt(sweeper)
    before = mesh.engine.program
    mesh.engine.rotated()
    assert sweeper.swept == 1, "certificates may have been renewed"
    security.trust_epoch = 2
    mesh.engine.rotated()
    assert sweeper.swept == 2
    assert mesh.engine.program is before, "nothing was compiled anew"
