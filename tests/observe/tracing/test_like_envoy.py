"""The same requests through a real Envoy: it writes the same reason into x-request-id, and samples the same ones."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from meshlib import proto
from meshlib.observe.tracing.sampling import Reason, decided, packed
from meshlib.resources.listener import Listener
from meshlib.testing import Upstream
from tests.engine.wire import request
from tests.resources.building import decoded
from tests.server.envoy_server import running

pytestmark = [pytest.mark.envoy, pytest.mark.timeout(60)]

TYPES = "type.googleapis.com/"
EXTENSIONS = TYPES + "envoy.extensions."

MANAGERS: dict[str, dict[str, Any]] = {
    "all": {},
    "half": {"random_sampling": {"value": 50}},
    "hundredth": {"random_sampling": {"value": 0.01}},
    "odd": {"random_sampling": {"value": 33.335}, "overall_sampling": {"value": 60.9}},
    "never": {"random_sampling": {"value": 0}},
    "no-client": {"random_sampling": {"value": 0}, "client_sampling": {"value": 0}},
    "shut": {"overall_sampling": {"value": 0}},
}
ROUTES: dict[str, dict[str, Any]] = {
    "route-says-none": {"random_sampling": {"numerator": 0}},
    "route-says-some": {"random_sampling": {"numerator": 40, "denominator": "TEN_THOUSAND"}},
    "route-shuts": {"overall_sampling": {"numerator": 10}},
}


def listener(name: str, tracing: dict[str, Any], route: dict[str, Any] | None) -> dict[str, Any]:
    service = {"envoy_grpc": {"cluster_name": "nowhere"}}
    only = {"match": {"prefix": "/"}, "route": {"cluster": "up"}}
    manager = {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "use_remote_address": True,
        "preserve_external_request_id": True,
        "internal_address_config": {"cidr_ranges": [{"address_prefix": "127.0.0.1", "prefix_len": 32}]},
        "route_config": {
            "name": "r",
            "virtual_hosts": [
                {
                    "name": "v",
                    "domains": ["*"],
                    "routes": [only if route is None else {**only, "tracing": route}],
                }
            ],
        },
        "http_filters": [
            {"name": "router", "typed_config": {"@type": EXTENSIONS + "filters.http.router.v3.Router"}}
        ],
        "tracing": {
            **tracing,
            "provider": {
                "name": "envoy.tracers.opentelemetry",
                "typed_config": {
                    "@type": TYPES + "envoy.config.trace.v3.OpenTelemetryConfig",
                    "grpc_service": service,
                },
            },
        },
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def cluster(name: str, address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    socket = {"socket_address": {"address": host, "port_value": int(port)}}
    return {
        "name": name,
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket}}]}],
        },
    }


def cases() -> list[dict[str, str]]:
    """Requests by their headers."""
    random = Random(8)
    numbers = [
        0,
        1,
        39,
        40,
        99,
        100,
        4_999,
        5_000,
        9_999,
        10_000,
        2**32 - 1,
        *(random.getrandbits(32) for _ in range(20)),
    ]
    ids = [f"{number:08x}-1111-{digit}222-8333-444444444444" for number in numbers for digit in "49abc"]
    plain = [
        {"x-request-id": identity}
        for identity in [*ids, "abc", "zzzzzzzz-1111-4222-8333-444444444444", "12345678"]
    ]
    forced = [
        {"x-request-id": ids[0], "x-envoy-force-trace": "true"},
        {"x-request-id": ids[20], "x-envoy-force-trace": "false"},
    ]
    client = [{"x-request-id": identity, "x-client-trace-id": "7"} for identity in ids[:10]]
    return [*plain, *forced, *client]


def test_the_same_decisions(tmp_path: Path) -> None:
    listeners = [listener(name, tracing, None) for name, tracing in MANAGERS.items()]
    listeners += [listener(name, {}, route) for name, route in ROUTES.items()]
    listeners += [listener(f"never-{name}", MANAGERS["never"], route) for name, route in ROUTES.items()]
    with Upstream() as upstream:
        clusters = [cluster("up", upstream.address), cluster("nowhere", "127.0.0.1:1")]
        with running(tmp_path, listeners, clusters) as envoy, httpx.Client() as client:
            expected = {}
            for made in listeners:
                url = f"http://127.0.0.1:{envoy.ports[made['name']]}/"
                for case in cases():
                    assert client.get(url, headers=case).status_code == 200
                    seen = upstream.requests[-1]
                    parent = seen.header("traceparent") or ""
                    expected[made["name"], tuple(case.items())] = (seen.header("x-request-id"), parent[-2:])
    reasons = set()
    for made in listeners:
        ours = decoded(proto.LISTENER, made).resource
        assert isinstance(ours, Listener)
        assert ours.http.tracing is not None
        assert ours.http.route_config is not None
        route = ours.http.route_config.virtual_hosts[0].routes[0].tracing
        for case in cases():
            view = request(headers=list(case.items()))
            reason, writes = decided(ours.http.tracing, route, view, Random(1), trusted=True)
            reasons.add(reason)
            flags = "00" if reason is Reason.NONE else "01"
            identity = case["x-request-id"]
            written = (packed(identity, reason) if writes else identity, flags)
            assert written == expected[made["name"], tuple(case.items())], (made["name"], case)
    assert reasons == set(Reason)
