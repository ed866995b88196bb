"""`meshlib explain`: every key of its JSON, and how each option makes an answer reproducible."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from meshlib.cli.app import app
from tests.cli.conftest import Meshlib

KEYS = [
    "listener",
    "route_config",
    "virtual_host",
    "route",
    "action",
    "cluster",
    "weighted_clusters",
    "status",
    "body",
    "location",
    "path",
    "authority",
    "request_headers",
    "timeout",
    "retry",
    "hash",
    "mirrors",
    "endpoint",
    "unsupported",
]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["explain", *map(str, arguments)])


def answer(*arguments: object) -> dict[str, Any]:
    result = run("--json", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    value: dict[str, Any] = json.loads(result.stdout)
    assert list(value) == KEYS
    return value


def test_a_forwarded_request(folder: Path) -> None:
    found = answer("--header", "X-User: bob", folder, "http://reviews/api/users?page=2")
    assert found == {
        "listener": "reviews:80",
        "route_config": "reviews",
        "virtual_host": "reviews",
        "route": "bob",
        "action": "cluster",
        "cluster": "api",
        "weighted_clusters": [],
        "status": None,
        "body": None,
        "location": None,
        "path": "/v2/users?page=2",
        "authority": "api.internal",
        "request_headers": [["x-user", "bob"], ["x-from", "mesh"]],
        "timeout": 3.0,
        "retry": {"on": ["5xx", "reset"], "attempts": 5, "per_try_timeout": 0.5},
        "hash": None,
        "mirrors": [],
        "endpoint": "127.0.0.1:8101",
        "unsupported": found["unsupported"],
    }


def test_a_redirect(folder: Path) -> None:
    found = answer(folder, "http://reviews/old?q=1")
    assert (found["action"], found["status"], found["route"]) == ("redirect", 302, 0)
    assert found["location"] == "http://reviews/new?q=1"
    assert (found["cluster"], found["endpoint"], found["path"], found["timeout"]) == (None, None, None, None)


def test_a_direct_response(folder: Path) -> None:
    found = answer(folder, "http://reviews/direct")
    assert (found["action"], found["route"]) == ("direct_response", "teapot")
    assert (found["status"], found["body"], found["location"]) == (418, "short and stout", None)


def test_no_route(folder: Path) -> None:
    found = answer(folder, "http://reviews/nowhere")
    assert (found["action"], found["virtual_host"], found["route"]) == ("none", "reviews", None)
    assert (found["status"], found["body"]) == (404, "")


def test_no_virtual_host(folder: Path) -> None:
    found = answer(folder, "http://unheard-of/")
    assert (found["listener"], found["virtual_host"]) == (
        "reviews:80",
        None,
    )  # the only Listener takes every host
    assert (found["action"], found["status"]) == ("none", 404)


def test_no_listener_of_several(folder: Path) -> None:
    second = (folder / "listener.yaml").read_text().replace("reviews:80", "ratings:80")
    (folder / "second.yaml").write_text(second)
    assert answer(folder, "http://ratings/")["listener"] == "ratings:80"
    found = answer(folder, "http://unheard-of/")
    assert (found["listener"], found["route_config"], found["action"], found["status"]) == (
        None,
        None,
        "none",
        404,
    )


def test_a_virtual_host_that_requires_tls(folder: Path) -> None:
    found = answer(folder, "http://secure/x")
    assert (found["action"], found["status"], found["location"]) == ("redirect", 301, "https://secure/x")
    assert (found["virtual_host"], found["route"]) == ("secure", None)


def test_the_method(folder: Path) -> None:
    assert answer(folder, "http://reviews/post")["action"] == "none"
    found = answer("--method", "POST", folder, "http://reviews/post")
    assert (found["action"], found["route"], found["timeout"], found["retry"]) == ("cluster", 4, 0.0, None)


def test_the_default_timeout(folder: Path) -> None:
    assert answer(folder, "http://reviews/share")["timeout"] == 15.0


def test_a_cluster_that_is_not_configured_is_named(folder: Path) -> None:
    found = answer("-m", "POST", folder, "http://reviews/post")
    assert (found["cluster"], found["endpoint"]) == ("elsewhere", None)


def test_weights_and_seed(folder: Path) -> None:
    drawn = Counter[str]()
    for seed in range(60):
        found = answer("--seed", seed, folder, "http://reviews/share")
        assert found["weighted_clusters"] == [
            {"cluster": "api", "weight": 1},
            {"cluster": "elsewhere", "weight": 3},
        ]
        assert found == answer("--seed", seed, folder, "http://reviews/share")
        drawn[found["cluster"]] += 1
    assert 3 <= drawn["api"] <= 30  # 15 expected; beyond these bounds with a chance under 1 in 10,000
    assert drawn.total() == 60


def test_the_time(folder: Path) -> None:
    for at, day in (
        ("0", "1970-01-01"),
        ("2024-02-29T23:59:59", "2024-02-29"),
        ("2024-02-29T23:00:00-05:00", "2024-03-01"),
    ):
        assert ["x-at", day] in answer("--at", at, folder, "http://reviews/when")["request_headers"]


def test_what_is_not_applied_is_listed(folder: Path) -> None:
    assert (
        "virtual_hosts[0].routes[6].route.request_mirror_policies"
        in (answer(folder, "http://reviews/mirror")["unsupported"])
    )


def test_a_configuration_without_a_listener(folder: Path) -> None:
    (folder / "listener.yaml").unlink()
    found = answer(folder, "http://reviews/direct")
    assert (found["listener"], found["route_config"], found["status"]) == (None, "reviews", 418)


def test_the_route_configuration_can_be_named(folder: Path) -> None:
    other = '"@type": type.googleapis.com/envoy.config.route.v3.RouteConfiguration\nname: other\n'
    other += "virtual_hosts: [{name: all, domains: ['*'], routes: [{match: {prefix: /}, direct_response: {status: 204}}]}]\n"
    (folder / "other.yaml").write_text(other)
    found = answer("--route-config", "other", folder, "http://reviews/direct")
    assert (found["route_config"], found["status"]) == ("other", 204)
    (folder / "listener.yaml").unlink()
    result = run("--json", folder, "http://reviews/direct")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "2 RouteConfigurations; name one with --route-config" in result.stderr
    result = run("--route-config", "third", folder, "http://reviews/direct")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there is no RouteConfiguration 'third'; there is: other, reviews" in result.stderr


def test_the_host_header_replaces_the_authority(folder: Path) -> None:
    found = answer("-H", "Host: secure", folder, "http://reviews/x")
    assert found["virtual_host"] == "secure"


def test_many_requests(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"method": "GET", "url": "http://reviews/old", "headers": []},
        {"method": "POST", "url": "http://reviews/post"},
        {"url": "http://reviews/api/1", "headers": [["X-User", "bob"], ["x-b", "1"]]},
        {"url": "http://reviews/share"},
    ]
    file = tmp_path / "requests.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    result = run(folder, "--requests", file, "--seed", 5)
    assert (result.exit_code, result.stderr) == (0, "")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [found["action"] for found in answers] == ["redirect", "cluster", "cluster", "cluster"]
    assert answers[2]["request_headers"] == [["x-user", "bob"], ["x-b", "1"], ["x-from", "mesh"]]
    alone = answer("--seed", 5, folder, "http://reviews/share")
    assert answers[3] == alone  # a line's answer does not depend on the lines before it


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"url": "http://reviews/", "headers": [["a"]]}'])
def test_a_wrong_line_of_requests_is_named(folder: Path, line: str) -> None:
    file = folder / "requests.jsonl"
    file.write_text('{"url": "http://reviews/direct"}\n' + line + "\n")
    result = run(folder, "--requests", file)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"{file}:2: ")
    assert len(result.stdout.splitlines()) == 1


def test_an_invalid_configuration_is_not_explained(folder: Path) -> None:
    file = folder / "routes.yaml"
    file.write_text(file.read_text().replace("timeout: 3s", "timeout: soon"))
    result = run("--json", folder, "http://reviews/")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"{file}:20: virtual_hosts[0].routes[2].route.timeout: ")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("http://reviews/",),
        ("no-such-file.yaml", "http://reviews/"),
        ("FOLDER", "--header", "no colon", "http://reviews/"),
        ("FOLDER", "--at", "yesterday", "http://reviews/"),
        ("FOLDER", "--seed", "x", "http://reviews/"),
        ("FOLDER", "--nonsense", "http://reviews/"),
    ],
)
def test_wrong_usage_exits_with_2(folder: Path, arguments: tuple[str, ...]) -> None:
    result = run(*(folder if argument == "FOLDER" else argument for argument in arguments))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage:" in result.stderr


def test_for_people(folder: Path) -> None:
    lines = run("-H", "x-user: bob", folder, "http://reviews/api/1").stdout.splitlines()
    assert lines[0] == "GET http://reviews/api/1"
    facts = [tuple(line.split(maxsplit=1)) for line in lines[1:]]
    for fact in (
        ("cluster", "api"),
        ("endpoint", "127.0.0.1:8101"),
        ("path", "/v2/1"),
        ("timeout", "3 s"),
        ("retry", "on 5xx, reset; 5 attempts of 0.5 s"),
    ):
        assert fact in facts


def test_for_people_without_a_route(folder: Path) -> None:
    assert "404, nothing is sent" in run(folder, "http://reviews/nowhere").stdout
    assert "virtual host    none matches" in run(folder, "http://unheard-of/").stdout
    assert "418 (direct_response)" in run(folder, "http://reviews/direct").stdout
    assert "http://reviews/new" in run(folder, "http://reviews/old").stdout
    assert "drawn from api 1, elsewhere 3" in run(folder, "http://reviews/share").stdout


def test_as_a_process(meshlib: Meshlib, folder: Path) -> None:
    done = meshlib("explain", "--json", folder, "http://reviews/direct")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["status"] == 418
    done = meshlib("explain", folder / "nothing", "http://reviews/")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_cluster_with_tls(folder: Path) -> None:
    """Nobody connects, so no certificate is needed."""
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
    secret = {"name": "cert", "sds_config": {"ads": {}}}
    cluster = {
        "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        "name": "secure",
        "type": "STATIC",
        "transport_socket": {
            "name": "tls",
            "typed_config": {
                "@type": kind,
                "common_tls_context": {"tls_certificate_sds_secret_configs": [secret]},
            },
        },
    }
    (folder / "secure.json").write_text(json.dumps({"resources": [cluster]}))
    assert answer(folder, "http://reviews/")["listener"] == "reviews:80"
