"""Names, types and labels of what is counted are those of a real Envoy with the same configuration and the same traffic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

import meshlib
from conformance.envoy_process import EnvoyProcess
from meshlib.httpx import MeshTransport
from meshlib.observe.document import document
from meshlib.observe.exposition import exposition
from meshlib.testing.upstream import Behaviour, Reply, Reset, Upstream

pytestmark = pytest.mark.envoy

TYPE = "type.googleapis.com/"
MANAGER = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
FAULT = TYPE + "envoy.extensions.filters.http.fault.v3.HTTPFault"
ROUTER = TYPE + "envoy.extensions.filters.http.router.v3.Router"
CALLER = ("x-envoy-downstream-service-cluster", "web")

OWN = (
    "envoy_xds_",  # how often each kind of resource came, which Envoy counts below each subscription
    "envoy_control_plane_",  # without a control plane Envoy does not have it
)
"""Families that have no counterpart in this Envoy."""

Families = dict[str, tuple[str, set[tuple[str, ...]]]]
"""By name: the type, and the names of the labels of each sample."""


def configuration(port: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """HttpConnectionManager and cluster."""
    endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}}
    cluster = {
        "name": "backend",
        "type": "STATIC",
        "connect_timeout": "1s",
        "circuit_breakers": {"thresholds": [{"track_remaining": True}]},
        "outlier_detection": {"consecutive_5xx": 3},
        "load_assignment": {"cluster_name": "backend", "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    fault = {
        "@type": FAULT,
        "abort": {"http_status": 418, "percentage": {"numerator": 100}},
        "headers": [{"name": "x-fault", "present_match": True}],
    }
    route = {"cluster": "backend", "retry_policy": {"retry_on": "5xx", "num_retries": 1}}
    manager = {
        "@type": MANAGER,
        "stat_prefix": "ingress",
        "route_config": {
            "name": "r",
            "virtual_hosts": [
                {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}
            ],
        },
        "http_filters": [
            {"name": "fault", "typed_config": fault},
            {"name": "router", "typed_config": {"@type": ROUTER}},
        ],
    }
    return manager, cluster


def families(text: str) -> Families:
    found: Families = {}
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    for line in re.findall(r"^[^#\n].*$", text, re.MULTILINE):
        name, labels = re.match(r"([^{ ]+)(?:\{(.*)\})? ", line).groups()  # type: ignore[union-attr]
        family = next(
            (each for each in (name, re.sub(r"_(bucket|sum|count)$", "", name)) if each in kinds), name
        )
        named = tuple(sorted(re.findall(r'(\w+)="', labels or "")))
        found.setdefault(family, (kinds[family], set()))[1].add(named)
    return found


def calls(client: httpx.Client, base: str, headers: Mapping[str, str]) -> None:
    for path, more in (("/ok", {}), ("/503", {}), ("/reset", {}), ("/fault", {"x-fault": "1"})):
        try:
            client.get(f"{base}{path}", headers={**headers, **more})
        except httpx.TransportError:
            assert path != "/ok"


BEHAVIOUR: list[Behaviour] = [Reply(), Reply(status=503), Reply(status=503), Reset(), Reset()]


def of_envoy() -> Families:
    with Upstream(list(BEHAVIOUR)) as upstream, EnvoyProcess() as envoy:
        manager, cluster = configuration(upstream.port)
        listener = {
            "name": "l",
            "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
            "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
        }
        envoy.launch({"static_resources": {"listeners": [listener], "clusters": [cluster]}})
        while not envoy.live:
            assert envoy.pause(), envoy.last_words()
        with httpx.Client(trust_env=False) as client:
            calls(client, f"http://127.0.0.1:{envoy.ports()['l']}", dict([CALLER]))
        return families(envoy.admin("/stats/prometheus").decode())


def of_meshlib() -> Families:
    with Upstream(list(BEHAVIOUR)) as upstream:
        manager, cluster = configuration(upstream.port)
        resources = [
            {
                "@type": TYPE + "envoy.config.listener.v3.Listener",
                "name": "backend:80",
                "api_listener": {"api_listener": manager},
            },
            {"@type": TYPE + "envoy.config.cluster.v3.Cluster", **cluster},
        ]
        with meshlib.Mesh(config={"resources": resources}) as mesh:
            with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
                calls(client, "http://backend", dict([CALLER]))
            return families(exposition(document(mesh.stats))[1])


def test_names_types_and_labels_are_envoys() -> None:
    theirs, ours = of_envoy(), of_meshlib()
    shared = {name for name in ours if name.startswith("envoy_") and not name.startswith(OWN)}
    assert len(shared) > 40
    assert {name for name in shared if name not in theirs} == set()
    different = {
        name: (ours[name], theirs[name])
        for name in shared
        if ours[name][0] != theirs[name][0] or not ours[name][1] <= theirs[name][1]
    }
    assert different == {}
    for name in (
        "envoy_cluster_upstream_rq_total",
        "envoy_cluster_upstream_rq",
        "envoy_cluster_upstream_rq_xx",
        "envoy_cluster_upstream_rq_time",
        "envoy_cluster_upstream_rq_retry",
        "envoy_cluster_circuit_breakers_default_remaining_rq",
        "envoy_cluster_outlier_detection_ejections_active",
        "envoy_http_fault_aborts_injected",
    ):
        assert name in shared, name
