"""How connections to an endpoint are made: which changes give it another way, and which do not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.resources.cluster import Cluster, DiscoveryType, HttpProtocol
from meshlib.resources.metadata import Scalar
from meshlib.resources.tls import TransportSocketMatch, UpstreamTls, select_tls
from meshlib.state import ClusterState, Handshake, Security
from meshlib.state.way import HTTP1, HTTP2, Ways
from meshlib.stats import Registry


class FakeSecurity:
    """Only an epoch."""

    def __init__(self, epoch: int = 1) -> None:
        self.trust_epoch = epoch

    @property
    def epoch(self) -> int:
        return self.trust_epoch

    def handshake(self, *, authority: str, hostname: str, alpn: tuple[str, ...]) -> Handshake:
        raise NotImplementedError


class Store:
    """The same security for an equal configuration."""

    def __init__(self) -> None:
        self.made: dict[UpstreamTls, FakeSecurity] = {}

    def secure(self, tls: UpstreamTls) -> Security:
        return self.made.setdefault(tls, FakeSecurity())

    def rotate(self) -> None:
        for security in self.made.values():
            security.trust_epoch += 1


A, B = UpstreamTls(sni="a"), UpstreamTls(sni="b")
STRICT = TransportSocketMatch(name="strict", match={"tls": "yes"}, tls=A)
OPEN = TransportSocketMatch(name="open", match={"tls": "no"}, tls=None)


def cluster(tls: UpstreamTls | None = None, *matches: TransportSocketMatch, **fields: Any) -> Cluster:
    return Cluster(
        name="c", discovery=DiscoveryType.STATIC, tls=tls, transport_socket_matches=matches, **fields
    )


class World:
    def __init__(self, *endpoints: Mapping[str, Scalar]) -> None:
        self.store = Store()
        self.state = ClusterState("c", Registry())
        self.endpoints = [
            self.state.endpoint(f"e{index}", "127.0.0.1", index, "", metadata)
            for index, metadata in enumerate(endpoints or ({},))
        ]

    def configure(self, version: Cluster) -> None:
        self.state.configure(version, self.store.secure)

    @property
    def ways(self) -> list[Any]:
        return [endpoint.way for endpoint in self.endpoints]


def test_plaintext_has_two_ways_in_all() -> None:
    world = World()
    assert world.ways == [HTTP1]
    world.configure(cluster())
    assert world.ways == [HTTP1]
    world.configure(cluster(protocol=HttpProtocol.HTTP2))
    assert world.ways == [HTTP2]


def test_a_version_that_changes_something_else_keeps_the_way() -> None:
    world = World()
    world.configure(cluster(A))
    (first,) = world.ways
    assert first.security is world.store.made[A]
    world.configure(cluster(A, connect_timeout=1.0))
    assert world.ways == [first]
    assert world.ways[0] is first


@pytest.mark.parametrize(
    "other",
    [
        cluster(),
        cluster(B),
        cluster(A, protocol=HttpProtocol.HTTP2),
        cluster(UpstreamTls(sni="a", auto_sni=True)),
    ],
)
def test_another_transport_socket_or_protocol_is_another_way(other: Cluster) -> None:
    world = World()
    world.configure(cluster(A))
    (first,) = world.ways
    world.configure(other)
    assert world.ways[0] is not first
    assert world.ways[0].multiplexed is (other.protocol is HttpProtocol.HTTP2)
    assert world.ways[0].named is bool(other.tls and other.tls.auto_sni)


def test_a_rotation_is_another_way_once() -> None:
    world = World()
    world.configure(cluster(A))
    (first,) = world.ways
    assert not world.state.rotated()
    world.store.rotate()
    assert world.state.rotated()
    (second,) = world.ways
    assert second is not first
    assert (second.epoch, second.security) == (2, first.security)
    assert not world.state.rotated()
    assert world.ways == [second]


def test_a_rotation_while_a_version_comes_into_force_is_not_lost() -> None:
    world = World()

    class Once(FakeSecurity):
        """Its epoch grows right after the first look at it."""

        looks = 0

        def __init__(self) -> None:
            """Nothing is set."""

        @property
        def trust_epoch(self) -> int:  # type: ignore[override]
            Once.looks += 1
            return 1 if Once.looks == 1 else 2

    once = Once()
    world.state.configure(cluster(A), lambda _: once)
    assert world.ways[0].epoch == 2


def test_endpoints_that_are_met_later() -> None:
    world = World()
    world.configure(cluster(None, STRICT))
    late = world.state.endpoint("late", "127.0.0.1", 9, "", {"tls": "yes"})
    assert late.way.security is world.store.made[A]
    again = world.state.endpoint("late", "127.0.0.1", 9, "", {})
    assert again is late
    assert late.way is HTTP1
    world.state.describe(late, {"tls": "yes"})
    assert late.way.security is world.store.made[A]


def test_tls_without_an_identity_store_is_an_error_and_changes_nothing() -> None:
    world = World()
    with pytest.raises(ValueError, match="asks for TLS"):
        world.state.configure(cluster(A))
    assert world.ways == [HTTP1]


def test_unsecured_until_there_is_material() -> None:
    world = World()
    world.store.made[A] = FakeSecurity(0)
    world.configure(cluster(A))
    assert world.state.unsecured
    world.store.rotate()
    assert world.state.unsecured, "what is in force is what was found"
    assert world.state.rotated()
    assert not world.state.unsecured


VERSIONS = st.builds(
    cluster,
    st.sampled_from((None, A, B)),
    st.sampled_from((STRICT, OPEN)),
    protocol=st.sampled_from(HttpProtocol),
)
METADATA = st.sampled_from(({}, {"tls": "yes"}, {"tls": "no"}, {"other": "x"}))


@given(
    st.lists(METADATA, min_size=1, max_size=4), st.lists(st.one_of(VERSIONS, st.just("rotate")), min_size=1)
)
def test_every_endpoint_is_always_led_to_as_the_configuration_says(
    endpoints: list[Mapping[str, Scalar]], steps: list[Cluster | str]
) -> None:
    world = World(*endpoints)
    version = cluster()
    for step in steps:
        before = world.ways
        if isinstance(step, Cluster):
            version = step
            world.configure(version)
        else:
            world.store.rotate()
            world.state.rotated()
        for endpoint, old in zip(world.endpoints, before, strict=True):
            tls = select_tls(version, endpoint.metadata)
            way = endpoint.way
            assert way.protocol is version.protocol
            assert way.security is (None if tls is None else world.store.made[tls])
            assert way.epoch == (0 if tls is None else world.store.made[tls].trust_epoch)
            same = (old.protocol, old.security, old.epoch) == (way.protocol, way.security, way.epoch)
            assert (old is way) is same


def test_ways_say_what_they_are() -> None:
    ways = Ways.of(cluster(A), Store().secure)
    assert repr(ways.to({})) == "<Way HTTP1 TLS, epoch 1>"
    assert repr(HTTP2) == "<Way HTTP2 plaintext>"
