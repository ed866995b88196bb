"""The ADS server over a real gRPC connection."""

from __future__ import annotations

import queue
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from meshlib import proto
from meshlib.controlplane import ControlPlane, ResourceStore
from meshlib.errors import ConfigError

METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/"


def cluster(name: str, seconds: int = 1) -> proto.Message:
    return proto.from_dict(
        "envoy.config.cluster.v3.Cluster", {"name": name, "connect_timeout": f"{seconds}s"}
    )


class AdsClient:
    """One stream of a plain gRPC client."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.insecure_channel(address, [("grpc.max_receive_message_length", -1)])
        self.requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        method = self.channel.stream_stream(METHOD + "StreamAggregatedResources")
        self.call = method(iter(self.requests.get, None), timeout=30)

    def send(self, type_url: str, *names: str, nonce: str = "", error: str = "") -> None:
        request = proto.message("envoy.service.discovery.v3.DiscoveryRequest")(
            type_url=type_url, resource_names=names, response_nonce=nonce
        )
        request.node.id = "me"
        if error:
            request.error_detail.message = error
        self.requests.put(request.SerializeToString())

    def next(self) -> Any:
        return proto.parse("envoy.service.discovery.v3.DiscoveryResponse", next(self.call))

    def close(self) -> None:
        self.requests.put(None)
        self.call.cancel()
        self.channel.close()


@pytest.fixture
def control_plane() -> Iterator[ControlPlane]:
    with ControlPlane(ResourceStore([cluster("a")])) as running:
        yield running


@pytest.fixture
def client(control_plane: ControlPlane) -> Iterator[AdsClient]:
    ads = AdsClient(control_plane.address)
    yield ads
    ads.close()


def test_a_subscription_and_a_push(control_plane: ControlPlane, client: AdsClient) -> None:
    client.send(proto.CLUSTER)
    first = client.next()
    assert [proto.unpack(packed).name for packed in first.resources] == ["a"]
    client.send(proto.CLUSTER, nonce=first.nonce)
    control_plane.wait_for_answer(proto.CLUSTER)
    control_plane.store.update(cluster("b"))
    second = client.next()
    assert [proto.unpack(packed).name for packed in second.resources] == ["a", "b"]
    assert (first.version_info, second.version_info) == ("1", "2")


def test_a_nack_is_recorded(control_plane: ControlPlane, client: AdsClient) -> None:
    client.send(proto.CLUSTER)
    client.send(proto.CLUSTER, nonce=client.next().nonce, error="no such policy")
    answer = control_plane.wait_for_answer(proto.CLUSTER)
    assert (answer.node_id, answer.version, answer.error) == ("me", "1", "no such policy")
    assert control_plane.answers == (answer,)


def test_streams_can_be_dropped(control_plane: ControlPlane, client: AdsClient) -> None:
    client.send(proto.CLUSTER)
    client.next()
    control_plane.drop_streams()
    with pytest.raises(grpc.RpcError) as caught:
        client.next()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    control_plane.wait_for(lambda c: c.streams == 0)


def test_a_request_of_broken_bytes_ends_its_stream_only(
    control_plane: ControlPlane, client: AdsClient
) -> None:
    client.requests.put(b"\xff\xff")
    with pytest.raises(grpc.RpcError) as caught:
        client.next()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    other = AdsClient(control_plane.address)
    other.send(proto.CLUSTER)
    assert other.next().version_info == "1"
    other.close()


def test_a_client_that_goes_away_is_forgotten(control_plane: ControlPlane) -> None:
    ads = AdsClient(control_plane.address)
    ads.send(proto.CLUSTER)
    ads.next()
    assert control_plane.streams == 1
    ads.close()
    control_plane.wait_for(lambda c: c.streams == 0)


def test_delta_streams_are_unimplemented(control_plane: ControlPlane) -> None:
    with grpc.insecure_channel(control_plane.address) as channel:
        call = channel.stream_stream(METHOD + "DeltaAggregatedResources")(iter([b""]), timeout=20)
        with pytest.raises(grpc.RpcError) as caught:
            next(call)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_large_response_arrives_whole(control_plane: ControlPlane, client: AdsClient) -> None:
    control_plane.store.replace(cluster(f"{'x' * 2000}-{number}") for number in range(4000))
    client.send(proto.CLUSTER)
    response = client.next()
    assert len(response.resources) == 4000
    assert response.ByteSize() > 8_000_000


def test_two_clients_get_the_same_push(control_plane: ControlPlane, client: AdsClient) -> None:
    other = AdsClient(control_plane.address)
    for ads in (client, other):
        ads.send(proto.CLUSTER)
        ads.send(proto.CLUSTER, nonce=ads.next().nonce)
    control_plane.wait_for(lambda c: len(c.answers) == 2)
    control_plane.store.update(cluster("a", 9))
    assert [ads.next().version_info for ads in (client, other)] == ["2", "2"]
    other.close()


def test_a_timeout_of_waiting_says_what_came(control_plane: ControlPlane) -> None:
    with pytest.raises(TimeoutError, match="0 streams"):
        control_plane.wait_for_answer(proto.CLUSTER, timeout=0.01)


def test_the_bootstrap_names_the_address(control_plane: ControlPlane) -> None:
    bootstrap = control_plane.bootstrap("x")
    assert bootstrap["node"] == {"id": "x"}
    (server,) = bootstrap["xds_servers"]
    assert server["server_uri"] == control_plane.address
    assert server["channel_creds"] == [{"type": "insecure"}]
    assert control_plane.address.startswith("127.0.0.1:")
    assert not control_plane.address.endswith(":0")


def test_an_address_that_is_taken_is_refused(control_plane: ControlPlane) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {control_plane.address}"):
        ControlPlane(ResourceStore(), listen=control_plane.address).start()


def test_a_unix_socket(tmp_path: Path) -> None:
    with ControlPlane(ResourceStore([cluster("a")]), listen=f"unix:{tmp_path}/ads") as running:
        assert running.address == f"unix:{tmp_path}/ads"
        ads = AdsClient(running.address)
        ads.send(proto.CLUSTER)
        assert ads.next().version_info == "1"
        ads.close()


def test_start_and_stop_may_be_repeated() -> None:
    control_plane = ControlPlane(ResourceStore())
    control_plane.stop()
    control_plane.start().start()
    control_plane.stop()
    control_plane.stop()
    with control_plane:
        assert control_plane.streams == 0


def test_stop_in_a_forked_child_does_not_hang() -> None:
    code = """
import os, sys, warnings
warnings.simplefilter("ignore")
from meshlib.controlplane import ControlPlane, ResourceStore
control_plane = ControlPlane(ResourceStore()).start()
child = os.fork()
if child == 0:
    control_plane.stop()
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
control_plane.stop()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
