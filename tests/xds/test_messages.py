from __future__ import annotations

import hypothesis
import pytest
from hypothesis import strategies as st

from meshlib import proto
from meshlib.errors import ControlPlaneError
from meshlib.snapshot import Kind
from meshlib.xds.messages import parse, peek_name
from tests.snapshot.builders import cluster
from tests.xds.fake_ads import Harness


@hypothesis.given(st.text(max_size=300), st.sampled_from(list(Kind)))
def test_the_name_of_an_encoded_resource_can_be_told(name: str, kind: Kind) -> None:
    message = proto.message(proto.full_name(kind.value))()
    if kind is Kind.ENDPOINT:
        message.cluster_name = name
    else:
        message.name = name
    assert peek_name(message.SerializeToString()) == (name or None)


@hypothesis.given(st.binary(max_size=40))
def test_no_bytes_are_too_strange_for_a_look_at_the_name(data: bytes) -> None:
    name = peek_name(data)
    assert name is None or name.encode() in data


@hypothesis.given(st.binary(max_size=200))
def test_any_bytes_are_a_response_or_a_control_plane_error(data: bytes) -> None:
    try:
        response = parse(data)
    except ControlPlaneError:
        return
    assert isinstance(response.nonce, str)


def test_cut_bytes_are_refused() -> None:
    with pytest.raises(ControlPlaneError, match="not a DiscoveryResponse"):
        parse(b"\x0a\x05ab")


@hypothesis.given(st.lists(st.binary(max_size=60), max_size=5))
def test_a_client_that_is_fed_garbage_keeps_what_it_has(messages: list[bytes]) -> None:
    harness = Harness()
    harness.client.want_cluster("one")
    harness.take()
    harness.send(cluster("one"))
    before = harness.snapshot.clusters["one"]
    for data in messages:
        harness.stream.push(data)
        garbage = proto.message("google.protobuf.Any")(type_url=Kind.CLUSTER.value, value=data)
        asked = harness.respond(Kind.CLUSTER, garbage)
        assert [item.error is not None for item in asked if item.kind is Kind.CLUSTER] == [True]
    assert harness.snapshot.clusters["one"] is before
    assert harness.send(cluster("one", "other"))[0].error is None
