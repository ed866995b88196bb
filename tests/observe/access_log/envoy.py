"""A real Envoy and a Mesh with one configuration, and the lines that both log of the same requests."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import httpx

import meshlib
from conformance.envoy_process import EnvoyProcess
from meshlib.httpx import MeshTransport

__all__ = ["TYPES", "both_logs", "closed_port", "file_log", "lines_of", "verdicts"]

TYPES = "type.googleapis.com/envoy."
_REJECTED = re.compile(r"lds: listener 'n(\d+)' config rejected: ([^\n]*)")
_PATIENCE = 10.0


def file_log(path: Path | str, **config: Any) -> dict[str, Any]:
    kind = TYPES + "extensions.access_loggers.file.v3.FileAccessLog"
    return {"name": "file", "typed_config": {"@type": kind, "path": str(path), **config}}


def manager(logs: list[dict[str, Any]], routes: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "name": "http",
        "typed_config": {
            "@type": TYPES + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "s",
            "access_log": logs,
            "route_config": {
                "name": "rc",
                "validate_clusters": False,
                "virtual_hosts": [
                    {
                        "name": "v",
                        "domains": ["*"],
                        "routes": routes,
                        "metadata": {"filter_metadata": {"of.host": {"name": "v"}}},
                        "virtual_clusters": [
                            {
                                "name": "read",
                                "headers": [{"name": ":method", "string_match": {"exact": "GET"}}],
                            }
                        ],
                    }
                ],
            },
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": TYPES + "extensions.filters.http.router.v3.Router"},
                }
            ],
        },
    }


def listener(name: str, filters: dict[str, Any], *, port: int = 0, **fields: Any) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"name": name, "address": address, "filter_chains": [{"filters": [filters]}], **fields}


def resources(
    logs: list[dict[str, Any]], routes: list[dict[str, Any]], clusters: list[dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """The `static_resources` of Envoy."""
    labels = {"filter_metadata": {"of.listener": {"name": "l"}}}
    return {"listeners": [listener("l", manager(logs, routes), metadata=labels)], "clusters": clusters}


def both_logs(
    formats: Mapping[str, dict[str, Any]],
    routes: list[dict[str, Any]],
    clusters: list[dict[str, Any]],
    requests: Iterable[httpx.Request],
    folder: Path,
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The lines in each format that Envoy and meshlib write for these requests, one after the other."""
    requests = list(requests)
    with EnvoyProcess() as envoy:
        paths = {name: envoy.folder / f"{name}.log" for name in formats}
        logs = [file_log(paths[name], **config) for name, config in formats.items()]
        envoy.launch({"static_resources": resources(logs, routes, clusters)})
        while not envoy.live:
            assert envoy.pause(), envoy.last_words()
        port = envoy.ports()["l"]
        with httpx.Client(transport=httpx.HTTPTransport(proxy=None)) as client:
            for request in requests:
                at = request.url.copy_with(host="127.0.0.1", port=port)
                client.send(
                    httpx.Request(request.method, at, headers=request.headers, content=request.read())
                )
        theirs = {name: lines_of(path, len(requests)) for name, path in paths.items()}
    paths = {name: folder / f"{name}.log" for name in formats}
    logs = [file_log(paths[name], **config) for name, config in formats.items()]
    static = resources(logs, routes, clusters)
    kinds = {"listeners": "config.listener.v3.Listener", "clusters": "config.cluster.v3.Cluster"}
    documents = [{"@type": TYPES + kind, **each} for name, kind in kinds.items() for each in static[name]]
    with (
        meshlib.Mesh(config=[{"resources": documents}], headers="envoy") as mesh,
        httpx.Client(transport=MeshTransport(mesh, local_reply="response")) as client,
    ):
        for request in requests:
            client.send(request)
    return theirs, {name: _split(path) for name, path in paths.items()}


def _split(path: Path) -> list[str]:
    return re.findall("[^\n]*\n", path.read_bytes().decode("utf-8", "surrogateescape"))


def lines_of(path: Path, number: int) -> list[str]:
    """What Envoy has written; it flushes each 5 ms. As many lines as there are after a while, if there are fewer."""
    until = time.monotonic() + _PATIENCE
    while True:
        lines = _split(path) if path.exists() else []
        if len(lines) >= number or time.monotonic() > until:
            return lines
        time.sleep(0.005)


def verdicts(logs: list[dict[str, Any]]) -> list[str | None]:
    """What Envoy says against each of these access logs, None where it takes it. It is one process, each log a listener of it."""
    answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
    kind = TYPES + "config.listener.v3.Listener"
    listeners = [
        {
            "@type": kind,
            **listener(f"n{index}", manager([log], [answer]), port=10_000 + index, bind_to_port=False),
        }
        for index, log in enumerate(logs)
    ]
    with EnvoyProcess() as envoy:
        path = envoy.folder / "lds.json"
        path.write_text(json.dumps({"version_info": "1", "resources": listeners}))
        source = {"resource_api_version": "V3", "path_config_source": {"path": str(path)}}
        envoy.launch({"dynamic_resources": {"lds_config": source}})
        while not envoy.live:
            assert envoy.pause(), envoy.last_words()
        said = dict(_REJECTED.findall((envoy.folder / "envoy.log").read_text(errors="replace")))
    return [said.get(str(index)) for index in range(len(logs))]


def closed_port() -> int:
    """One that refuses connections."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
