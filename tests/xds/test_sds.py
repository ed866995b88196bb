"""Secrets from elsewhere: SDS servers and files, on a scripted stream and a clock of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from meshlib import proto
from meshlib.resources import decode_any
from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.endpoint import ClusterLoadAssignment, Endpoint, LocalityEndpoints
from meshlib.resources.secret import Secret
from meshlib.resources.tls import PathSource, SecretRef, ServerSource, UpstreamTls
from meshlib.runtime.clock import FakeClock
from meshlib.runtime.stream import ChannelCredentials, StreamTarget
from meshlib.snapshot import Kind, Snapshot
from meshlib.stats import Registry
from meshlib.xds.backoff import Backoff, reconnect_wait
from meshlib.xds.bootstrap import Node, XdsServer
from meshlib.xds.sds import SdsContext, SdsDriver
from meshlib.xds.target import SDS, TargetError, sds_target
from tests.resources.tls_samples import certificate, trusted
from tests.runtime.manual import ManualWorker
from tests.xds.fake_ads import AdsStream, Asked

SECRET = Kind.SECRET
SERVER = ServerSource(target="unix:/run/x.sock")
REF = SecretRef(name="cert", source=SERVER)
ROOTS = SecretRef(name="roots", source=SERVER)


def packed(name: str = "cert", **fields: Any) -> Any:
    value = {"name": name, **(fields or {"tls_certificate": certificate()})}
    return proto.pack(proto.from_dict(proto.full_name(proto.SECRET), value))


class Harness:
    def __init__(self, *refs: SecretRef, **clusters: XdsServer) -> None:
        self.clock = FakeClock(start=1000.0)
        self.worker = ManualWorker(self.clock)
        self.registry = Registry()
        self.streams: list[AdsStream] = []
        self.targets: list[StreamTarget] = []
        self.published: list[tuple[str, Secret | None]] = []
        self.snapshot = Snapshot()
        self.driver = SdsDriver(
            SdsContext(
                executor=self.worker,
                clock=self.clock,
                registry=self.registry,
                node=Node(id="me"),
                decode=decode_any,
                publish=lambda ref, secret: self.published.append((ref.name, secret)),
                open_stream=self._open,
                backoff=lambda: Backoff(reconnect_wait(Random(1).random)),
                snapshot=lambda: self.snapshot,
                clusters=clusters,
            )
        )
        self.sync(refs)

    def _open(
        self,
        target: StreamTarget,
        on_message: Callable[[Any, bytes], None],
        on_closed: Callable[[Any, str], None],
    ) -> AdsStream:
        self.targets.append(target)
        self.streams.append(AdsStream(on_message, on_closed))
        return self.streams[-1]

    def sync(self, refs: Iterable[SecretRef]) -> None:
        self.driver.sync(refs)
        self.worker.run()

    def respond(self, *resources: Any, stream: int = -1, version: str = "1") -> list[Asked]:
        self.streams[stream].respond(proto.SECRET, *resources, version=version)
        self.worker.run()
        return self.streams[stream].take()

    def take(self) -> list[tuple[str, Secret | None]]:
        self.worker.run()
        taken, self.published = self.published, []
        return taken

    def count(self, name: str) -> int:
        return self.registry.counter(name).value


def test_a_secret_of_a_server() -> None:
    harness = Harness(REF)
    assert harness.targets == [StreamTarget(target="unix:/run/x.sock", method=SDS)]
    first = harness.streams[0].requests[0]
    assert first.node.id == "me"
    assert harness.streams[0].take() == [Asked(SECRET, ("cert",))]
    assert harness.respond(packed()) == [Asked(SECRET, ("cert",), "1", "n1")]
    ((name, secret),) = harness.take()
    assert name == "cert"
    assert secret is not None
    assert secret.certificate is not None
    assert harness.streams[0].unprocessed == 0
    assert harness.count("sds.cert.update_success") == 1


def test_a_rotation() -> None:
    harness = Harness(ROOTS)
    harness.respond(packed("roots", validation_context=trusted()))
    harness.respond(packed("roots", validation_context=trusted(max_verify_depth=1)), version="2")
    first, second = (secret for _, secret in harness.take())
    assert first is not None
    assert second is not None
    assert second.validation is not None
    assert second.validation.max_verify_depth == 1
    harness.respond(packed("roots", validation_context=trusted(max_verify_depth=1)), version="3")
    assert harness.take() == []


def test_each_secret_has_a_stream_of_its_own() -> None:
    harness = Harness(REF, ROOTS)
    assert [stream.take() for stream in harness.streams] == [
        [Asked(SECRET, ("cert",))],
        [Asked(SECRET, ("roots",))],
    ]


@pytest.mark.parametrize(
    ("resources", "reason"),
    [
        ([packed(tls_certificate={"private_key": {"inline_string": "x"}})], "certificate_chain"),
        ([packed("other")], "expected the secret 'cert', got 'other'"),
        ([], "expected one secret, got 0"),
        ([packed(), packed("other")], "expected one secret, got 2"),
        ([proto.message("google.protobuf.Any")(type_url=proto.SECRET, value=b"\xff")], "not an encoding"),
        ([proto.message("google.protobuf.Any")(type_url=proto.CLUSTER)], "in a response of type"),
    ],
)
def test_a_bad_first_version_is_refused_and_missing(resources: list[Any], reason: str) -> None:
    harness = Harness(REF)
    harness.streams[0].take()
    (answer,) = harness.respond(*resources)
    assert answer.error is not None
    assert reason in answer.error
    assert (answer.version, answer.nonce) == ("", "n1")
    assert harness.take() == [("cert", None)]
    harness.respond(packed(), version="2")
    ((_, secret),) = harness.take()
    assert secret is not None


def test_the_last_good_version_stays() -> None:
    harness = Harness(REF)
    harness.respond(packed())
    harness.take()
    (answer,) = harness.respond(packed(tls_certificate={}), version="2")
    assert answer.error is not None
    assert answer.version == "1"
    assert harness.take() == []
    assert harness.count("sds.cert.update_rejected") == 1


def test_another_type_is_refused() -> None:
    harness = Harness(REF)
    harness.streams[0].take()
    harness.streams[0].respond(proto.CLUSTER)
    harness.worker.run()
    (answer,) = harness.streams[0].take()
    assert answer.kind is Kind.CLUSTER
    assert answer.error is not None
    harness.streams[0].push(b"\xff\xff")
    harness.worker.run()
    assert harness.streams[0].take() == []
    assert harness.streams[0].unprocessed == 0


def test_a_secret_that_does_not_come_is_missing_in_time() -> None:
    harness = Harness(REF, SecretRef(name="slow", source=SERVER, initial_fetch_timeout=0.0))
    harness.worker.advance(14.9)
    assert harness.take() == []
    harness.worker.advance(0.2)
    assert harness.take() == [("cert", None)]
    harness.worker.advance(1000.0)
    assert harness.take() == []
    harness.respond(packed(), stream=0)
    ((_, secret),) = harness.take()
    assert secret is not None


def test_a_broken_stream_is_opened_again_after_a_back_off() -> None:
    harness = Harness(REF)
    harness.respond(packed())
    harness.take()
    harness.streams[0].end()
    harness.worker.run()
    assert harness.streams[0].closed
    assert len(harness.streams) == 1
    harness.worker.advance(1.3)
    assert len(harness.streams) == 2
    assert harness.streams[1].take() == [Asked(SECRET, ("cert",), "1")]
    harness.streams[1].end()
    harness.worker.advance(1.25)
    assert len(harness.streams) == 2  # the second failure in a row waits longer
    harness.worker.advance(1.0)
    assert len(harness.streams) == 3
    harness.respond(packed(), version="1")
    assert harness.take() == []


def test_a_server_that_is_away_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness(REF)
    for number in range(3):
        harness.streams[number].end()
        harness.worker.advance(200.0)
    assert len([record for record in caplog.records if "no connection" in record.message]) == 1
    harness.respond(packed(), stream=3)
    harness.streams[3].end()
    harness.worker.run()
    assert len([record for record in caplog.records if "no connection" in record.message]) == 2
    assert vars(caplog.records[0])["meshlib"] == {"secret": "cert"}


def test_a_bad_version_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    harness = Harness(REF)
    for version in ("1", "2", "3"):
        harness.respond(packed(tls_certificate={}), version=version)
    assert len([record for record in caplog.records if "rejected" in record.message]) == 1
    assert harness.count("sds.cert.update_rejected") == 3


def test_what_nobody_wants_is_closed() -> None:
    harness = Harness(REF, ROOTS)
    harness.sync([ROOTS])
    assert [stream.closed for stream in harness.streams] == [True, False]
    harness.streams[0].end()
    harness.worker.advance(100.0)
    assert len(harness.streams) == 2
    harness.driver.close()
    assert harness.streams[1].closed
    harness.worker.advance(100.0)
    assert [name for name, _ in harness.take()] == ["roots"]


def test_around_a_fork() -> None:
    harness = Harness(REF)
    harness.respond(packed())
    harness.driver.before_fork()
    assert harness.streams[0].closed
    harness.driver.after_fork_in_parent()
    harness.worker.run()
    assert harness.streams[1].take() == [Asked(SECRET, ("cert",), "1")]
    harness.driver.before_fork()
    harness.driver.after_fork_in_child()


# --- where the server is -------------------------------------------------------------------------------------------------


def cluster(*endpoints: Endpoint, **fields: Any) -> Cluster:
    assignment = ClusterLoadAssignment(
        cluster_name="sds", localities=(LocalityEndpoints(endpoints=endpoints),)
    )
    return Cluster(name="sds", discovery=DiscoveryType.STATIC, load_assignment=assignment, **fields)


BY_CLUSTER = ServerSource(cluster="sds", metadata=(("k", "v"),))


@pytest.mark.parametrize(
    ("endpoints", "target"),
    [
        ([Endpoint("/run/x.sock", 0)], "unix:/run/x.sock"),
        ([Endpoint("@x", 0)], "unix-abstract:x"),
        ([Endpoint("10.0.0.1", 80), Endpoint("10.0.0.2", 81)], "ipv4:10.0.0.1:80,10.0.0.2:81"),
        ([Endpoint("::1", 80)], "ipv6:[::1]:80"),
    ],
)
def test_a_server_by_its_cluster(endpoints: list[Endpoint], target: str) -> None:
    snapshot = Snapshot(clusters={"sds": cluster(*endpoints)})
    expected = StreamTarget(target=target, method=SDS, metadata=(("k", "v"),))
    assert sds_target(BY_CLUSTER, snapshot, {}) == expected


@pytest.mark.parametrize(
    "snapshot",
    [
        Snapshot(),
        Snapshot(clusters={"sds": cluster()}),
        Snapshot(clusters={"sds": cluster(Endpoint("10.0.0.1", 80), tls=UpstreamTls())}),
    ],
)
def test_a_server_that_can_not_be_reached(snapshot: Snapshot) -> None:
    with pytest.raises(TargetError):
        sds_target(BY_CLUSTER, snapshot, {})
    harness = Harness(SecretRef(name="cert", source=BY_CLUSTER))
    assert harness.streams == []
    harness.snapshot = Snapshot(clusters={"sds": cluster(Endpoint("10.0.0.1", 80))})
    harness.worker.advance(2.0)
    assert harness.targets[0].target == "ipv4:10.0.0.1:80"


def test_a_server_that_the_bootstrap_names() -> None:
    credentials = ChannelCredentials(kind="tls", ca_certificate_file="/ca.pem")
    servers = {"sds": XdsServer(server_uri="unix:/agent.sock", credentials=credentials)}
    assert sds_target(BY_CLUSTER, Snapshot(), servers) == StreamTarget(
        target="unix:/agent.sock", method=SDS, credentials=credentials, metadata=(("k", "v"),)
    )


def test_credentials_of_a_server() -> None:
    source = ServerSource(
        target="a:1", tls=True, root_certificates=b"r", certificate_chain=b"c", private_key=b"k"
    )
    found = sds_target(source, Snapshot(), {}).credentials
    assert found == ChannelCredentials(kind="tls", ca_certificate=b"r", certificate=b"c", private_key=b"k")
    assert "b'k'" not in repr(found)


# --- files ---------------------------------------------------------------------------------------------------------------


def write(path: Path, name: str = "cert", **fields: Any) -> None:
    secret = {"@type": proto.SECRET, "name": name, **(fields or {"tls_certificate": certificate()})}
    new = path.with_name("new.json")
    new.write_text(json.dumps({"resources": [secret]}))
    new.rename(path)


def test_a_secret_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    write(path)
    harness = Harness(SecretRef(name="cert", source=PathSource(path=str(path))))
    ((_, secret),) = harness.take()
    assert secret is not None
    harness.worker.advance(5.0)
    assert harness.take() == []
    write(path, tls_certificate=certificate("p384"))
    harness.worker.advance(1.0)
    ((_, rotated),) = harness.take()
    assert rotated is not None
    assert rotated != secret


def test_a_bad_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    write(path)
    harness = Harness(SecretRef(name="cert", source=PathSource(path=str(path))))
    harness.take()
    for text in ("{", "", json.dumps({"resources": []})):
        path.write_text(text)
        harness.worker.advance(1.0)
    path.unlink()
    harness.worker.advance(1.0)
    assert harness.take() == []
    assert harness.count("sds.cert.update_rejected") >= 3
    write(path, tls_certificate=certificate("p384"))
    harness.worker.advance(1.0)
    assert len(harness.take()) == 1


def test_a_file_without_the_secret_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "secret.json"
    write(path, "other")
    harness = Harness(SecretRef(name="cert", source=PathSource(path=str(path))))
    assert harness.take() == [("cert", None)]
    write(path)
    harness.worker.advance(1.0)
    ((_, secret),) = harness.take()
    assert secret is not None
    harness.driver.close()
    write(path, tls_certificate=certificate("p384"))
    harness.worker.advance(10.0)
    assert harness.take() == []


def test_a_swapped_folder_is_seen(tmp_path: Path) -> None:
    """As Kubernetes replaces a mounted secret: the path goes through a symbolic link to a folder."""
    for number, kind in ((1, "p256"), (2, "p384")):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number) / "secret.json", tls_certificate=certificate(kind))
    (tmp_path / "data").symlink_to("1")
    path = str(tmp_path / "data" / "secret.json")
    harness = Harness(SecretRef(name="cert", source=PathSource(path=path, watched_directory=str(tmp_path))))
    harness.take()
    (tmp_path / "new").symlink_to("2")
    (tmp_path / "new").rename(tmp_path / "data")
    harness.worker.advance(1.0)
    assert len(harness.take()) == 1
