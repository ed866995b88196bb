"""`Mesh(config=...)`: files, folders and dictionaries, without a control plane."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

import meshlib
from meshlib.testing import Reply, Reset, Upstream, service
from tests.mesh.conftest import Call


def test_a_dictionary(caller: Call) -> None:
    with (
        Upstream(default=Reply(body=b"hello")) as upstream,
        meshlib.Mesh(service("reviews", upstream.address)) as mesh,
    ):
        response = caller(mesh).get("http://reviews/x?y=1")
    assert (response.status_code, response.text) == (200, "hello")
    assert response.request.url == "http://reviews/x?y=1"
    (request,) = upstream.requests
    assert (request.method, request.target, request.header("host")) == ("GET", "/x?y=1", "reviews")
    info = response.extensions["meshlib"]
    assert (info.flags, info.details, info.cluster, info.virtual_host) == (
        "-",
        "via_upstream",
        "reviews",
        "reviews",
    )
    (attempt,) = info.attempts
    assert (attempt.endpoint, attempt.status, attempt.failure) == (upstream.address, 200, None)


def test_nothing_is_added_to_the_request_by_default(caller: Call) -> None:
    with Upstream() as upstream, meshlib.Mesh(service("reviews", upstream.address)) as mesh:
        caller(mesh).get("http://reviews/")
    names = [name for name, _ in upstream.requests[0].headers]
    assert not [name for name in names if name.startswith("x-")]


def test_envoys_own_headers_on_request(caller: Call) -> None:
    with Upstream() as upstream, meshlib.Mesh(service("reviews", upstream.address), headers="envoy") as mesh:
        response = caller(mesh).get("http://reviews/")
    (request,) = upstream.requests
    assert request.header("x-forwarded-proto") == "http"
    assert request.header("x-request-id")
    assert request.header("x-envoy-expected-rq-timeout-ms") == "15000"
    assert response.headers["x-envoy-upstream-service-time"].isdigit()


def documents(upstream: Upstream) -> list[Any]:
    resources: list[Any] = service("reviews", upstream.address)["resources"]
    return resources


def test_files_and_folders(caller: Call, tmp_path: Path) -> None:
    with Upstream(default=Reply(body=b"hello")) as upstream:
        listener, routes, cluster, endpoints = documents(upstream)
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "a.yaml").write_text(yaml.safe_dump({"resources": [listener]}))
        (folder / "b.json").write_text(json.dumps({"resources": [routes]}))
        (folder / "notes.txt").write_text("not a configuration")
        several = tmp_path / "several.yaml"
        several.write_text(yaml.safe_dump_all([{"resources": [cluster]}, {"resources": [endpoints]}]))
        with meshlib.Mesh(config=[folder, str(several)]) as mesh:
            assert caller(mesh).get("http://reviews/").text == "hello"


def test_one_path_alone(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text(yaml.safe_dump(service("reviews", "127.0.0.1:1")))
    for single in (file, str(file)):
        with meshlib.Mesh(single) as mesh:
            assert set(mesh.snapshot.clusters) == {"reviews"}


def test_every_problem_of_the_files_is_named(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text(
        "resources:\n"
        '- "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster\n'
        "  name: a\n"
        "  lb_policy: BEST\n"
        '- "@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\n'
        "  name: b\n"
        "  virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {}, direct_response: {status: 200}}]}]\n"
    )
    with pytest.raises(meshlib.ConfigError) as caught:
        meshlib.Mesh(config=[file])
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{file}:4: lb_policy: ")
    assert lines[1].startswith(f"{file}:7: virtual_hosts[0].routes[0].match")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"config": ["/no/such/file.yaml"]}, "no such file"),
        ({"config": [{"resource": []}]}, "neither 'resources:' nor '@type'"),
        ({"config": [{}], "server_uri": "127.0.0.1:1"}, "not both"),
        ({"bootstrap": {}, "server_uri": "127.0.0.1:1"}, "not both"),
        ({"bootstrap": {"xds_servers": []}}, "xds_servers"),
        ({"bootstrap": "/no/such/bootstrap.json"}, "/no/such/bootstrap.json"),
        (
            {"server_uri": "127.0.0.1:1", "headers": "some"},
            "headers must be one of 'none', 'envoy', not 'some'",
        ),
        ({"server_uri": "127.0.0.1:1", "unknown_hosts": "ask"}, "unknown_hosts must be one of"),
    ],
)
def test_a_wrong_option_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(meshlib.ConfigError, match=text):
        meshlib.Mesh(**options)


def test_no_option_and_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP", raising=False)
    monkeypatch.delenv("GRPC_XDS_BOOTSTRAP_CONFIG", raising=False)
    with pytest.raises(meshlib.ConfigError, match="GRPC_XDS_BOOTSTRAP"):
        meshlib.Mesh()


def test_making_a_mesh_starts_nothing() -> None:
    before = threading.enumerate()
    mesh = meshlib.Mesh(server_uri="127.0.0.1:1", node_id="test")
    assert threading.enumerate() == before
    mesh.close()


def test_the_only_listener_takes_every_host(caller: Call) -> None:
    with Upstream() as upstream, meshlib.Mesh(service("reviews", upstream.address)) as mesh:
        assert caller(mesh).get("http://any.host:1234/").status_code == 200


def two_services(upstream: Upstream) -> list[dict[str, Any]]:
    return [service("reviews", upstream.address), service("ratings", upstream.address)]


def test_one_of_several_listeners_is_found_by_name(caller: Call) -> None:
    with Upstream() as upstream, meshlib.Mesh(two_services(upstream)) as mesh:
        client = caller(mesh)
        assert client.get("http://ratings/").extensions["meshlib"].cluster == "ratings"
        with pytest.raises(httpx.ConnectError) as caught:
            client.get("http://other/")
        assert len(upstream.requests) == 1
    assert isinstance(caught.value, meshlib.UnknownHost)
    assert (caught.value.flags, caught.value.details) == ("NR", "route_not_found")
    assert "'other:80'" in str(caught.value)


def test_unknown_hosts_can_pass_through(caller: Call) -> None:
    with Upstream(default=Reply(body=b"unmeshed")) as other, Upstream() as upstream:
        with meshlib.Mesh(two_services(upstream), unknown_hosts="passthrough") as mesh:
            response = caller(mesh).get(f"http://{other.address}/")
            assert response.text == "unmeshed"
            assert "meshlib" not in response.extensions
        assert upstream.requests == ()


def test_local_replies_as_responses(caller: Call) -> None:
    with meshlib.Mesh(service("reviews")) as mesh:
        response = caller(mesh, local_reply="response").get("http://reviews/")
        assert (response.status_code, response.text) == (503, "no healthy upstream")
        assert response.extensions["meshlib"].flags == "UH"
        with pytest.raises(httpx.ConnectError) as caught:
            caller(mesh).get("http://reviews/")
    error = caught.value
    assert isinstance(error, meshlib.NoHealthyEndpoint)
    assert error.local_reply is not None
    assert (error.local_reply.status, error.local_reply.body) == (503, b"no healthy upstream")


def test_a_retry_goes_elsewhere_and_is_told(caller: Call) -> None:
    with Upstream(default=Reset()) as bad, Upstream() as good:
        config = service("reviews", bad.address, good.address)
        config["resources"][1]["virtual_hosts"][0]["retry_policy"] = {"retry_on": "reset", "num_retries": 3}
        with meshlib.Mesh(config) as mesh:
            client = caller(mesh)
            responses = [client.get("http://reviews/") for _ in range(6)]
    assert {response.status_code for response in responses} == {200}
    tried = [response.extensions["meshlib"].attempts for response in responses]
    assert {attempts[-1].endpoint for attempts in tried} == {good.address}
    failed = [attempt for attempts in tried for attempt in attempts if attempt.status is None]
    assert failed
    assert {attempt.endpoint for attempt in failed} == {bad.address}
    assert {attempt.failure for attempt in failed} == {"connection termination"}


def test_names_are_resolved(caller: Call) -> None:
    with Upstream() as upstream:
        config = service("reviews", upstream.address)
        cluster, endpoints = config["resources"][2], config["resources"].pop(3)
        del cluster["eds_cluster_config"]
        address = endpoints["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
        address["socket_address"]["address"] = "localhost"
        cluster |= {
            "type": "STRICT_DNS",
            "dns_lookup_family": "V4_ONLY",
            "load_assignment": {"cluster_name": "reviews", "endpoints": endpoints["endpoints"]},
        }
        with meshlib.Mesh(config) as mesh:
            response = caller(mesh).get("http://reviews/")
    assert response.extensions["meshlib"].attempts[0].endpoint == upstream.address
