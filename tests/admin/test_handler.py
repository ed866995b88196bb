"""What each path answers."""

from __future__ import annotations

import logging
import re
import time

import httpx
import pytest

import meshlib
from meshlib.admin.handler import PATHS
from meshlib.admin.http import Request
from meshlib.httpx import MeshTransport
from meshlib.proto import CLUSTER, LISTENER
from meshlib.testing import Upstream, serve, service
from tests.admin.conftest import Get, configuration, parsed, text
from tests.ports import reserved


def test_the_list_names_every_path(get: Get) -> None:
    listed = text(get("/help"))
    assert all(f"  {path}: " in listed for path in PATHS)


def test_unknown_paths_and_methods(get: Get) -> None:
    assert get("/nothing").status == 404
    assert get("/static/../model.py").status == 404
    assert get("/static/nothing.js").status == 404
    assert get("/static/.hidden.js").status == 404
    wrong = get("/ready", "POST", {"authorization": "Bearer t0ken"})
    assert (wrong.status, dict(wrong.headers)["allow"]) == (405, "GET")
    assert get("/logging").status == 405


def test_ready(get: Get, mesh: meshlib.Mesh) -> None:
    assert (get("/ready").status, text(get("/ready"))) == (200, "LIVE\n")
    mesh.close()
    assert get("/ready").status == 503
    assert "closed" in text(get("/ready"))


def test_ready_says_what_is_missing(run_directory: object, upstream: Upstream) -> None:
    config = configuration(upstream.address)
    del config["resources"][1]
    with serve(config) as plane, meshlib.Mesh(bootstrap=plane.bootstrap()) as mesh:
        handler = mesh.admin().handler
        with pytest.raises(meshlib.ConfigTimeout):
            mesh.wait_ready("reviews:80", timeout=0.5)
        answer = handler.handle(Request(method="GET", path="/ready"))
        assert (answer.status, "RouteConfiguration 'reviews'" in text(answer)) == (503, True)


def test_ready_without_a_control_plane(run_directory: object) -> None:
    """Who has asked for nothing waits for nothing."""
    with reserved() as port, meshlib.Mesh(server_uri=f"127.0.0.1:{port}") as mesh:
        handler = mesh.admin().handler
        assert handler.handle(Request(method="GET", path="/ready")).status == 200
        with pytest.raises(meshlib.ConfigTimeout):
            mesh.wait_ready("reviews:80", timeout=0.5)
        while not mesh.status():  # the question is another thread's, which may come late
            time.sleep(0.01)
        answer = handler.handle(Request(method="GET", path="/ready"))
        assert (answer.status, "has not answered yet" in text(answer)) == (503, True)


def test_config_dump(get: Get) -> None:
    configs = parsed(get("/config_dump"))["configs"]
    kinds = [config["@type"].rpartition(".")[2] for config in configs]
    assert kinds == ["ClustersConfigDump", "ListenersConfigDump", "RoutesConfigDump", "SecretsConfigDump"]
    (cluster,) = configs[0]["static_clusters"]
    assert cluster["cluster"]["name"] == "reviews"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", cluster["last_updated"])
    assert "s3cret" not in text(get("/config_dump"))
    assert "[redacted]" in text(get("/config_dump"))


def test_config_dump_with_endpoints_and_masks(get: Get) -> None:
    configs = parsed(get("/config_dump?include_eds"))["configs"]
    assert configs[1]["static_endpoint_configs"][0]["endpoint_config"]["cluster_name"] == "reviews"
    only = parsed(get("/config_dump?resource=static_clusters&mask=cluster.name"))["configs"]
    kind = "type.googleapis.com/envoy.admin.v3.ClustersConfigDump.StaticCluster"
    assert only == [{"@type": kind, "cluster": {"@type": CLUSTER, "name": "reviews"}}]
    assert parsed(get("/config_dump?resource=static_clusters&name_regex=^x"))["configs"] == []
    masked = parsed(get("/config_dump?mask=static_listeners.listener.name"))["configs"]
    assert masked[1]["static_listeners"] == [{"listener": {"@type": LISTENER, "name": "reviews:80"}}]
    unknown = get("/config_dump?resource=nonsense")
    assert (unknown.status, text(unknown)[:33]) == (404, "nonsense not found in config dump")


@pytest.mark.parametrize(
    "query",
    ["name_regex=(", "name_regex=" + "(a" * 600, "resource=a&" + "&".join("b" * 70)],
)
def test_a_wrong_question_is_answered_so(get: Get, query: str) -> None:
    try:
        answer = get(f"/config_dump?{query}")
    except ValueError:
        return  # too many parameters: the faces say so
    assert answer.status == 400


def test_config_dump_of_a_control_plane(upstream: Upstream) -> None:
    config = configuration(upstream.address)
    with serve(config) as plane, meshlib.Mesh(bootstrap=plane.bootstrap()) as mesh:
        mesh.wait_ready("reviews:80")
        handler = mesh.admin().handler
        configs = parsed(handler.handle(Request(method="GET", path="/config_dump")))["configs"]
        assert configs[0]["version_info"] == "1"
        missing, cluster = configs[0]["dynamic_active_clusters"]
        assert (missing["cluster"]["name"], missing["client_status"]) == ("later", "DOES_NOT_EXIST")
        assert (cluster["version_info"], cluster["client_status"]) == ("1", "ACKED")
        (listener,) = configs[1]["dynamic_listeners"]
        assert (listener["name"], listener["active_state"]["version_info"]) == ("reviews:80", "1")


def test_clusters_as_text(get: Get, client: httpx.Client, upstream: Upstream) -> None:
    client.get("http://reviews/")
    lines = text(get("/clusters")).splitlines()
    assert "reviews::default_priority::max_connections::4" in lines
    assert "reviews::high_priority::max_connections::1024" in lines
    assert "reviews::added_via_api::false" in lines
    assert f"reviews::{upstream.address}::cx_active::1" in lines
    assert f"reviews::{upstream.address}::health_flags::healthy" in lines
    assert "reviews::10.1.1.1:80::health_flags::/failed_eds_health" in lines
    assert text(get("/clusters?filter=^x")) == ""


def test_clusters_as_json(get: Get, upstream: Upstream) -> None:
    (cluster,) = parsed(get("/clusters?format=json"))["cluster_statuses"]
    first, second = cluster["host_statuses"]
    host, _, port = upstream.address.rpartition(":")
    assert first["address"] == {"socket_address": {"address": host, "port_value": int(port)}}
    assert (first["health_status"], first["locality"]) == (
        {"eds_health_status": "HEALTHY"},
        {"zone": "local"},
    )
    assert second["health_status"] == {"eds_health_status": "UNHEALTHY"}
    assert cluster["circuit_breakers"]["thresholds"][1]["priority"] == "HIGH"


def test_stats(get: Get, client: httpx.Client) -> None:
    client.get("http://reviews/")
    lines = text(get("/stats?usedonly&filter=^cluster\\.")).splitlines()
    assert "cluster.reviews.upstream_rq_total: 1" in lines
    assert any(line.startswith("cluster.reviews.upstream_rq_time: P50(") for line in lines)
    assert not any("upstream_rq_timeout" in line for line in lines)
    assert "cluster.reviews.upstream_rq_timeout: 0" in text(get("/stats")).splitlines()
    found = parsed(get("/stats?format=json&filter=upstream_rq_t"))["stats"]
    assert {"name": "cluster.reviews.upstream_rq_total", "value": 1} in found
    computed = found[-1]["histograms"]["computed_quantiles"]
    assert any(each["name"] == "cluster.reviews.upstream_rq_time" for each in computed)
    assert get("/stats?format=xml").status == 400


def test_prometheus(get: Get, client: httpx.Client) -> None:
    client.get("http://reviews/")
    for target in ("/stats/prometheus", "/stats?format=prometheus"):
        answer = get(target)
        assert answer.content_type.startswith("text/plain; version=0.0.4")
        assert 'envoy_cluster_upstream_rq_total{envoy_cluster_name="reviews"} 1\n' in text(answer)


def test_listeners_runtime_and_server_info(get: Get) -> None:
    assert text(get("/listeners")) == "reviews:80::api_listener\n"
    assert parsed(get("/listeners?format=json")) == {"listener_statuses": [{"name": "reviews:80"}]}
    assert parsed(get("/runtime")) == {"layers": [], "entries": {}}
    info = parsed(get("/server_info"))
    assert (info["state"], info["version"]) == ("LIVE", f"meshlib/{meshlib.__version__}")
    assert parsed(get("/certs")) == {"certificates": []}


def test_explain(get: Get, upstream: Upstream) -> None:
    found = parsed(get("/mesh/explain.json?url=http://reviews/x&method=POST&headers=x-a:%20b%0Ax-c:%20d"))
    assert (found["cluster"], found["endpoint"], found["route"]) == ("reviews", upstream.address, "main")
    assert ["x-c", "d"] in found["request_headers"]
    for wrong in (
        "/mesh/explain.json",
        "/mesh/explain.json?url=/x",
        "/mesh/explain.json?url=http://a/&headers=x",
    ):
        assert get(wrong).status == 400


def test_one_call(get: Get, client: httpx.Client) -> None:
    client.get("http://reviews/x?token=s3cret&b=1")
    found = parsed(get("/mesh/call.json?number=1"))
    assert (found["path"], found["path_sent"]) == ("/x?token=[redacted]&b=1",) * 2
    assert (found["attempts"][0]["status"], found["cluster"]) == (200, "reviews")
    assert get("/mesh/call.json?number=2").status == 404
    assert get("/mesh/call.json?number=x").status == 400


def test_changes_need_the_token(get: Get) -> None:
    token = {"authorization": "Bearer t0ken"}
    assert get("/healthcheck/fail", "POST").status == 401
    assert get("/healthcheck/fail", "POST", {"authorization": "Bearer t0keN"}).status == 401
    assert get("/ready").status == 200
    assert get("/healthcheck/fail", "POST", token).status == 200
    assert (get("/ready").status, text(get("/ready"))[:8]) == (503, "DRAINING")
    assert get("/healthcheck/ok", "POST", token).status == 200
    assert get("/ready").status == 200


def test_the_level_of_the_log(get: Get) -> None:
    logger = logging.getLogger("meshlib")
    before = logger.level
    try:
        token = {"authorization": "Bearer t0ken"}
        assert get("/logging?level=debug", "POST", token).status == 200
        assert logger.level == logging.DEBUG
        assert get("/logging?level=loud", "POST", token).status == 400
    finally:
        logger.setLevel(before)


def test_without_a_token_nothing_changes(mesh: meshlib.Mesh) -> None:
    answer = mesh.admin().handle(
        Request(
            method="POST",
            path="/healthcheck/fail",
            headers={"host": "localhost", "authorization": "Bearer "},
        )
    )
    assert answer.status == 403


@pytest.mark.parametrize("path", ["/", "/mesh.json", "/ready", "/nothing", "/config_dump", "/tap?cluster=x"])
def test_every_answer_has_the_security_headers(get: Get, path: str) -> None:
    reply = get(path)
    headers = dict(reply.all_headers())
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert "cache-control" in headers
    assert not any(name.startswith("access-control") for name in headers)
    if not isinstance(reply.body, bytes):
        reply.body.close()


def test_to_be_asked_changes_nothing_for_calls(upstream: Upstream) -> None:
    with Upstream() as other:
        config = service("reviews", upstream.address, other.address)
        with meshlib.Mesh(config=[config]) as mesh, httpx.Client(transport=MeshTransport(mesh)) as client:
            handler = mesh.admin().handler
            seen = []
            for _ in range(8):
                handler.handle(
                    Request(method="GET", path="/mesh/explain.json", query={"url": "http://reviews/"})
                )
                seen.append(client.get("http://reviews/").extensions["meshlib"].attempts[0].endpoint)
    assert seen == [seen[0], seen[1]] * 4
    assert seen[0] != seen[1]
