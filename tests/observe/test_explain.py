"""What `explain` says is what happens: the same requests are explained and sent."""

from __future__ import annotations

from random import Random
from typing import Any

import httpx
import pytest
from xxhash import xxh64_intdigest

import meshlib
from meshlib import proto
from meshlib.httpx import MeshTransport
from meshlib.observe.explain import Explanation, Question, explain
from meshlib.runtime.clock import FakeClock
from meshlib.testing import Upstream, service

OWN = ("accept", "accept-encoding", "user-agent", "connection")
"""Headers that httpx adds."""

HEADERS = [("X-User", "bob"), ("x-two", "1"), ("x-two", "2")]


def configuration(*addresses: str) -> dict[str, Any]:
    config = service("reviews", *addresses)
    config["resources"][1] = {
        "@type": proto.ROUTE,
        "name": "reviews",
        "request_headers_to_remove": ["x-two"],
        "request_headers_to_add": [{"header": {"key": "x-path", "value": "%REQ(:PATH)%"}}],
        "virtual_hosts": [
            {
                "name": "v",
                "domains": ["reviews"],
                "request_headers_to_add": [
                    {"header": {"key": "x-user", "value": "mesh"}, "append_action": "APPEND_IF_EXISTS_OR_ADD"}
                ],
                "routes": [
                    {
                        "match": {"prefix": "/rewritten/"},
                        "route": {
                            "cluster": "reviews",
                            "prefix_rewrite": "/",
                            "host_rewrite_literal": "inner",
                        },
                    },
                    {
                        "match": {"safe_regex": {"regex": "/books/([0-9]+)"}},
                        "route": {
                            "cluster": "reviews",
                            "regex_rewrite": {
                                "pattern": {"regex": "/books/([0-9]+)"},
                                "substitution": r"/b?id=\1",
                            },
                        },
                    },
                    {
                        "match": {"path": "/moved"},
                        "redirect": {"host_redirect": "elsewhere", "response_code": "FOUND"},
                    },
                    {
                        "match": {"path": "/told"},
                        "direct_response": {"status": 203, "body": {"inline_string": "so"}},
                    },
                    {"match": {"prefix": "/plain"}, "route": {"cluster": "reviews"}},
                ],
            }
        ],
    }
    return config


def explained(mesh: meshlib.Mesh, url: str) -> Explanation:
    return explain(mesh.engine.program, Question(url=url, headers=HEADERS), random=Random(1))


PATHS = [
    "/rewritten/a/b?c=d",
    "/rewritten/",
    "/books/42",
    "/books/42?x=y",
    "/plain",
    "/plain?a=%20b",
    "/plain//x",
]


@pytest.mark.parametrize("path", PATHS)
def test_a_forwarded_request_arrives_as_explained(path: str) -> None:
    with Upstream() as upstream, meshlib.Mesh(configuration(upstream.address), clock=FakeClock()) as mesh:
        url = f"http://reviews{path}"
        with httpx.Client(transport=MeshTransport(mesh)) as client:
            sent = client.build_request("GET", "http://reviews/", headers=HEADERS)
            sent.url = sent.url.copy_with(raw_path=path.encode())
            info = client.send(sent).extensions["meshlib"]
        told = explained(mesh, url)
        (arrived,) = upstream.requests
    assert (told.action, told.cluster) == ("cluster", info.cluster)
    assert (told.virtual_host, str(told.route)) == (info.virtual_host, info.route)
    assert told.endpoint == info.attempts[0].endpoint
    assert (told.path, told.authority) == (arrived.target, arrived.header("host"))
    seen = [[name, value] for name, value in arrived.headers if name not in (*OWN, "host")]
    assert sorted(told.request_headers) == sorted(seen)


@pytest.mark.parametrize("path", ["/moved", "/told", "/nowhere"])
def test_an_answer_is_as_explained(path: str) -> None:
    with meshlib.Mesh(configuration("127.0.0.1:1")) as mesh:
        with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
            response = client.get(f"http://reviews{path}")
        told = explained(mesh, f"http://reviews{path}")
    assert (told.status, told.body) == (response.status_code, response.text)
    assert told.location == response.headers.get("location")
    assert (told.cluster, told.endpoint) == (None, None)


NORMAL = {
    "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
    "normalize_path": True,
    "merge_slashes": True,
}


@pytest.mark.parametrize(
    ("path", "status", "location", "arrived"),
    [
        ("/x/..//plain/%2e/y?z//", 200, None, "/plain/y?z//"),
        ("/plain%2Fx?y", 307, "/plain/x?y", None),
        ("/plain/%00", 400, None, None),
    ],
)
def test_the_normal_path_is_explained(
    path: str, status: int, location: str | None, arrived: str | None
) -> None:
    with Upstream() as upstream:
        config = configuration(upstream.address)
        config["resources"][0]["api_listener"]["api_listener"].update(NORMAL)
        with meshlib.Mesh(config) as mesh:
            with httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client:
                sent = client.build_request("GET", "http://reviews/")
                sent.url = sent.url.copy_with(raw_path=path.encode())
                response = client.send(sent)
            told = explained(mesh, f"http://reviews{path}")
        assert [request.target for request in upstream.requests] == ([] if arrived is None else [arrived])
    assert (response.status_code, response.headers.get("location")) == (status, location)
    assert (told.path, told.status, told.location) == (arrived, None if status == 200 else status, location)
    assert told.action == {200: "cluster", 307: "redirect", 400: "reject"}[status]
    assert told.unsupported == []


def test_explaining_changes_nothing_that_calls_see() -> None:
    """Permits and counters; round-robin turns are the balancer's own and may move."""
    with Upstream() as upstream, meshlib.Mesh(configuration(upstream.address)) as mesh:
        before = [(metric.name, getattr(metric, "value", None)) for metric in mesh.stats]
        for _ in range(5):
            explained(mesh, "http://reviews/plain")
        assert [(metric.name, getattr(metric, "value", None)) for metric in mesh.stats] == before
        assert upstream.connections == 0


def test_a_url_without_a_host() -> None:
    with meshlib.Mesh(configuration("127.0.0.1:1")) as mesh:
        with pytest.raises(meshlib.ConfigError, match="has no host"):
            explained(mesh, "/only/a/path")


def test_an_address_in_brackets_and_a_scheme_by_default() -> None:
    with meshlib.Mesh(service("x", "127.0.0.1:1", listener="[::1]:80")) as mesh:
        assert explained(mesh, "http://[::1]/").listener == "[::1]:80"
        assert explained(mesh, "[::1]:80/x").path == "/x"


def test_the_hash_and_the_endpoint_that_it_leads_to() -> None:
    config = service("reviews", *(f"10.0.0.{number}:80" for number in range(1, 9)))
    route = config["resources"][1]["virtual_hosts"][0]["routes"][0]["route"]
    route["hash_policy"] = [{"header": {"header_name": "x-user"}}, {"cookie": {"name": "c", "ttl": "60s"}}]
    route["prefix_rewrite"] = "/x"
    config["resources"][2]["lb_policy"] = "MAGLEV"
    with meshlib.Mesh(config=[config]) as mesh:
        seen: dict[str, set[str | None]] = {}
        for seed, user in enumerate(["ann", "bob", "cid"] * 3):
            question = Question(url="http://reviews/a", headers=[("x-user", user)])
            found = explain(mesh.engine.program, question, random=Random(seed))
            assert found.hash == xxh64_intdigest(user.encode())
            seen.setdefault(user, set()).add(found.endpoint)
        assert all(len(endpoints) == 1 for endpoints in seen.values())
        nothing = explain(mesh.engine.program, Question(url="http://reviews/a"), random=Random(1))
        assert nothing.hash is None, "a new cookie would be random"
        assert nothing.endpoint is not None


def test_what_fault_injection_may_do() -> None:
    fault = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault",
        "delay": {"fixed_delay": "0.2s", "percentage": {"numerator": 50}},
        "abort": {"header_abort": {}, "percentage": {"numerator": 5000, "denominator": "MILLION"}},
        "headers": [{"name": "x-test", "present_match": True}],
    }
    config = configuration("127.0.0.1:1")
    api = config["resources"][0]["api_listener"]["api_listener"]
    api["http_filters"].insert(0, {"name": "fault", "typed_config": fault})

    def faults(*headers: tuple[str, str]) -> list[str]:
        with meshlib.Mesh(config=[config]) as mesh:
            question = Question(url="http://reviews/", headers=headers)
            return explain(mesh.engine.program, question, random=Random(1)).faults

    assert faults() == []
    assert faults(("x-test", "1")) == ["delay 0.2 s (50 %)"]
    assert faults(("x-test", "1"), ("x-envoy-fault-abort-request", "418")) == [
        "delay 0.2 s (50 %)",
        "abort with HTTP status 418 (0.5 %)",
    ]
