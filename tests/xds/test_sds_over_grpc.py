"""Secrets of a real SDS server, over a Unix socket, beside a control plane and beside files."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from meshlib import proto
from meshlib.controlplane import ControlPlane, ResourceStore
from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities
from meshlib.resources import decode, decode_any
from meshlib.resources.tls import SecretRef, ServerSource
from meshlib.snapshot import Snapshot
from meshlib.xds.bootstrap import load
from meshlib.xds.client import AdsClient
from meshlib.xds.files import FileSource
from tests.resources.building import assignment, locality
from tests.resources.tls_samples import common, from_sds, from_server, upstream

LIMIT = 10.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CaServer]:
    identities = Identities(Authority("example.org"), [Entry(spiffe_id="spiffe://example.org/web")])
    with CaServer(identities, [f"unix:{tmp_path}/agent.sock"]) as running:
        yield running


class Published:
    """Snapshots that can be waited for."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._latest = Snapshot()

    def __call__(self, snapshot: Snapshot) -> None:
        with self._changed:
            self._latest = snapshot
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[Snapshot], object]) -> Snapshot:
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self._latest), LIMIT)
            return self._latest


def ref(name: str, source: ServerSource) -> SecretRef:
    return SecretRef(name=name, source=source)


def test_beside_files(server: CaServer, tmp_path: Path) -> None:
    """By the cluster of the server, as Envoy's configuration has it."""
    by_cluster = from_server(envoy_grpc={"cluster_name": "agent"})
    context = common(
        tls_certificate_sds_secret_configs=[from_sds("default", **by_cluster)],
        validation_context_sds_secret_config=from_sds("ROOTCA", **by_cluster),
    )
    pipe = {"endpoint": {"address": {"pipe": {"path": f"{tmp_path}/agent.sock"}}}}
    agent = {"name": "agent", "type": "STATIC", "load_assignment": assignment(locality(pipe))}
    secure = {"name": "web", "type": "STATIC", "transport_socket": upstream(context)}
    resources = [
        decode(proto.CLUSTER, proto.from_dict(proto.full_name(proto.CLUSTER), value))
        for value in (agent, secure)
    ]
    published = Published()
    source = FileSource(resources, on_snapshot=published)
    try:
        cluster = source.snapshot.clusters["web"]
        assert source.snapshot.pending_secrets(cluster)
        source.start()
        snapshot = published.wait_for(lambda found: not found.pending_secrets(cluster))
        certificate = snapshot.secret(ref("default", ServerSource(cluster="agent")))
        assert certificate is not None
        assert certificate.certificate is not None
        roots = snapshot.secret(ref("ROOTCA", ServerSource(cluster="agent")))
        assert roots is not None
        assert roots.validation is not None
        assert roots.validation.spiffe is not None
        assert [domain.name for domain in roots.validation.spiffe] == ["example.org"]
    finally:
        source.close()


def test_beside_a_control_plane(server: CaServer, tmp_path: Path) -> None:
    target = f"unix:{tmp_path}/agent.sock"
    context = common(tls_certificate_sds_secret_configs=[from_sds("default", **from_server(target))])
    value = {"name": "web", "type": "STATIC", "transport_socket": upstream(context)}
    message = proto.from_dict(proto.full_name(proto.CLUSTER), value)
    published = Published()
    wanted = ref("default", ServerSource(target=target))
    with ControlPlane(ResourceStore([message])) as control_plane:
        client = AdsClient(load(control_plane.bootstrap("me")), decode=decode_any, on_snapshot=published)
        try:
            client.want_cluster("web")
            snapshot = published.wait_for(lambda found: found.secret(wanted))
            secret = snapshot.secret(wanted)
            assert secret is not None
            assert secret.certificate is not None
        finally:
            client.close()


def test_over_the_control_plane_itself(server: CaServer) -> None:
    context = common(tls_certificate_sds_secret_configs=[from_sds("cert")])
    value = {"name": "web", "type": "STATIC", "transport_socket": upstream(context)}
    secret = {"name": "cert", "validation_context": {"max_verify_depth": 1}}
    messages = [
        proto.from_dict(proto.full_name(proto.CLUSTER), value),
        proto.from_dict(proto.full_name(proto.SECRET), secret),
    ]
    published = Published()
    with ControlPlane(ResourceStore(messages)) as control_plane:
        client = AdsClient(load(control_plane.bootstrap("me")), decode=decode_any, on_snapshot=published)
        try:
            client.want_cluster("web")
            snapshot = published.wait_for(lambda found: found.secrets)
            assert snapshot.secrets["cert"].validation is not None
        finally:
            client.close()
