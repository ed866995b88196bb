"""A real Envoy as a client of the embedded control plane: LDS, RDS, CDS and EDS over ADS."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

import meshlib
from conformance.envoy_process import envoy_binary
from meshlib import proto
from meshlib.controlplane import ControlPlane, FileFeed, ResourceStore
from meshlib.httpx import MeshTransport
from meshlib.testing import Reply, Request, Reset, Upstream, messages, serve, service
from tests.ports import reserved

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

START = 30.0


def bootstrap(control_plane: ControlPlane) -> dict[str, Any]:
    """Also with what has Envoy report its load there, of every cluster."""
    host, _, port = control_plane.address.rpartition(":")
    address = {"socket_address": {"address": host, "port_value": int(port)}}
    ads = {"ads": {}, "resource_api_version": "V3"}
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "node": {"id": "envoy", "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}],
            },
            "lds_config": ads,
            "cds_config": ads,
        },
        "cluster_manager": {
            "load_stats_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "ads"}}],
            }
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "ads",
                    "connect_timeout": "1s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                    "load_assignment": {
                        "cluster_name": "ads",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                }
            ]
        },
    }


def with_socket_listener(document: dict[str, Any], port: int) -> dict[str, Any]:
    """The service and, beside its api_listener, a socket Listener of the same HttpConnectionManager: Envoy ignores an
    api_listener that comes over LDS."""
    (manager,) = (
        r["api_listener"]["api_listener"] for r in document["resources"] if r["@type"] == proto.LISTENER
    )
    chain = {"filters": [{"name": "http", "typed_config": manager}]}
    listener = {
        "@type": proto.LISTENER,
        "name": "socket",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [chain],
    }
    return {"resources": [*document["resources"], listener]}


def service_of_cluster(cluster: str, address: str, port: int) -> dict[str, Any]:
    """The listener and the route configuration "reviews", which leads to a cluster of another name."""
    document = with_socket_listener(service("reviews", address), port)
    for resource in document["resources"]:
        match resource["@type"]:
            case proto.ROUTE:
                resource["virtual_hosts"][0]["routes"][0]["route"]["cluster"] = cluster
            case proto.CLUSTER:
                resource["name"] = cluster
            case proto.ENDPOINT:
                resource["cluster_name"] = cluster
    return document


@pytest.fixture
def port() -> Iterator[int]:
    """Envoy's, for what it serves."""
    with reserved() as made:
        yield made


def eventually(check: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + START
    while not check():
        assert time.monotonic() < limit, what
        time.sleep(0.02)


@pytest.fixture
def run_envoy(tmp_path: Path) -> Iterator[Callable[[ControlPlane], Path]]:
    running: list[subprocess.Popen[bytes]] = []

    def run(control_plane: ControlPlane) -> Path:
        config = tmp_path / "envoy.json"
        config.write_text(json.dumps(bootstrap(control_plane)))
        log = tmp_path / "envoy.log"
        command = [
            str(envoy_binary()),
            "-c",
            str(config),
            "--concurrency",
            "1",
            "--use-dynamic-base-id",
        ]
        command += ["--log-level", "warning", "--log-path", str(log), "--drain-time-s", "1"]
        running.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return log

    yield run
    for process in running:
        process.kill()
        process.wait()


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=5, trust_env=False) as made:
        yield made


def get(client: httpx.Client, port: int) -> tuple[int, bytes]:
    try:
        answer = client.get(f"http://127.0.0.1:{port}/")
    except httpx.TransportError:
        return 0, b""
    return answer.status_code, answer.content


def test_envoy_routes_what_the_files_say_and_follows_edits(
    tmp_path: Path, run_envoy: Callable[[ControlPlane], Path], client: httpx.Client, port: int
) -> None:
    path = tmp_path / "mesh.json"
    reports: list[str] = []
    with Upstream(default=Reply(body=b"one")) as one, Upstream(default=Reply(body=b"two")) as two:
        document = with_socket_listener(service("reviews", one.address), port)
        path.write_text(json.dumps(document))
        feed = FileFeed([path], decode=None, report=reports.append)
        feed.load()
        with ControlPlane(feed.store) as control_plane, feed:
            log = run_envoy(control_plane)
            eventually(lambda: get(client, port) == (200, b"one"), "no answer from the first endpoint")

            path.write_text(json.dumps(with_socket_listener(service("reviews", two.address), port)))
            eventually(lambda: get(client, port) == (200, b"two"), "the edit did not take effect")

            path.write_text(path.read_text()[:-20])
            eventually(lambda: len(reports) == 3, "the bad edit was not reported")
            assert reports[1].startswith(f"{path}:1: not JSON")
            assert get(client, port) == (200, b"two")

            errors = [answer for answer in control_plane.answers if answer.error]
            assert not errors, log.read_text()
            acked = {answer.type_url for answer in control_plane.answers}
            assert acked == {proto.LISTENER, proto.ROUTE, proto.CLUSTER, proto.ENDPOINT}
        assert get(client, port) == (200, b"two"), "the control plane is gone, the configuration stays"


def test_envoy_takes_a_changed_cluster_without_waiting_for_its_warming_timeout(
    run_envoy: Callable[[ControlPlane], Path], client: httpx.Client, port: int
) -> None:
    with Upstream(default=Reply(delay=0.0)) as upstream:
        document = with_socket_listener(service("reviews", upstream.address), port)
        with serve(document) as control_plane:
            run_envoy(control_plane)
            eventually(lambda: get(client, port)[0] == 200, "no answer")
            cluster = next(r for r in document["resources"] if r["@type"] == proto.CLUSTER)
            # A limit of no requests shows that the new cluster is in use: 503, overflow.
            cluster["circuit_breakers"] = {"thresholds": [{"max_requests": 0}]}
            before = time.monotonic()
            control_plane.store.replace(messages(document))
            eventually(lambda: get(client, port)[0] == 503, "the changed cluster was not taken")
            assert time.monotonic() - before < 10, "Envoy's initial_fetch_timeout is 15 s"


def test_envoy_changes_cluster_and_route_without_a_failed_request(
    run_envoy: Callable[[ControlPlane], Path], client: httpx.Client, port: int
) -> None:
    with Upstream(default=Reply(body=b"one")) as one, Upstream(default=Reply(body=b"two")) as two:
        old = service_of_cluster("old", one.address, port)
        new = service_of_cluster("new", two.address, port)
        with serve(old) as control_plane:
            run_envoy(control_plane)
            eventually(lambda: get(client, port)[0] == 200, "no answer")
            control_plane.store.replace(messages(new))
            seen = []
            while b"two" not in seen:
                status, body = get(client, port)
                assert status == 200
                seen.append(body)
                assert len(seen) < 20_000
            control_plane.wait_for_answer(proto.CLUSTER)
            eventually(
                lambda: control_plane.answers[-1].type_url == proto.CLUSTER,
                "the old cluster was not removed last",
            )
            assert get(client, port) == (200, b"two")


def test_envoy_and_meshlib_report_the_same_load(
    run_envoy: Callable[[ControlPlane], Path], client: httpx.Client, port: int
) -> None:

    def answer(request: Request) -> Any:
        path = request.target.strip("/")
        return Reset() if path == "reset" else Reply(status=int(path or "200"))

    def reported(control_plane: ControlPlane, node: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for report in control_plane.load_reports:
            for cluster in report.clusters if report.node == node else ():
                for place in cluster.upstream_locality_stats if cluster.cluster_name == "reviews" else ():
                    found["issued"] += place.total_issued_requests
                    found["succeeded"] += place.total_successful_requests
                    found["failed"] += place.total_error_requests
        return found

    def at_least(node: str, expected: Counter[str], control_plane: ControlPlane) -> bool:
        return expected <= reported(control_plane, node)

    with Upstream(answer) as upstream:
        document = with_socket_listener(service("reviews", upstream.address), port)
        for resource in document["resources"]:
            if resource["@type"] == proto.CLUSTER:
                resource["lrs_server"] = {"self": {}}
        store = ResourceStore(messages(document))
        with (
            ControlPlane(store, load_reporting_interval=1.0) as control_plane,
            meshlib.Mesh(bootstrap=control_plane.bootstrap("meshlib")) as mesh,
            httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as meshed,
        ):
            run_envoy(control_plane)
            eventually(lambda: get(client, port)[0] == 200, "no answer")
            meshed.get("http://reviews/200")
            reporting = {"envoy", "meshlib"}

            def told() -> set[str]:
                return {
                    report.node
                    for report in control_plane.load_reports
                    if any(cluster.cluster_name == "reviews" for cluster in report.clusters)
                }

            control_plane.wait_for(lambda _: told() == reporting, START)
            for path in ("200", "404", "503", "500", "reset", "301"):
                client.get(f"http://127.0.0.1:{port}/{path}")
                meshed.get(f"http://reviews/{path}")
            expected = Counter(issued=6, succeeded=3, failed=3)
            for node in reporting:
                control_plane.wait_for(partial(at_least, node, expected), START)
            assert reported(control_plane, "meshlib") == expected
