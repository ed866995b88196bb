"""The oracle: one Envoy process that holds every case, a listener each.

Listeners, clusters, routes and endpoints reach it as files (path_config_source), written once before it starts. Ports are
Envoy's own choice and are read back from its admin interface. The process is our child: it ends with us.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
import time
from math import inf
from typing import TYPE_CHECKING, Any

import grpc

from conformance.counters import BUSY, Counters, own, shortened, since
from conformance.envoy_process import NODE, START_TIMEOUT, EnvoyError, EnvoyProcess, envoy_binary
from conformance.outcome import Run
from conformance.resources import CLUSTER, LISTENER, Compiled
from conformance.runners.access_log import AccessLog, access_log
from conformance.runners.drive import drive
from conformance.runners.grpc_client import OPTIONS, GrpcClient
from conformance.runners.raw import RawClient

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from conformance.case import Case

LIVE_TIMEOUT = 1.0
"""Seconds: an Envoy that says it is live has its listeners, but for those it refused."""

KEEP_ALIVE_FROM = 100

MERGED = 0.5
"""Seconds after which the samples of a histogram are taken to be all that come."""

SETTLED = 5.0
"""Seconds for the counters to settle after a run."""

_PAUSE = 0.01


class Envoy:
    """A running Envoy with the cases in it. A context manager."""

    def __init__(self, cases: Mapping[str, tuple[Case, Compiled]]) -> None:
        self._cases = {name: entry for name, entry in cases.items() if not entry[0].rejected}
        self._process = EnvoyProcess()
        self._folder = self._process.folder
        self._log = AccessLog(self._folder / "access.log")
        self._ports: dict[str, int] = {}
        self._first: dict[str, Counters] = {}

    def __enter__(self) -> Envoy:
        try:
            if self._cases:
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.__exit__()

    @property
    def kept_waiting(self) -> float:
        """Seconds that Envoy was ready to run since it began, and did not."""
        return self._process.kept_waiting

    def run(self, case: Case, compiled: Compiled) -> Run:
        """Send the requests of ``case`` through its listener, which has held ``compiled`` since the start."""
        self._log.forget(case.name)
        before = self._counters(case)
        first = self._first.setdefault(
            case.name, {name: value for name, value in before.items() if own(name)}
        )
        address = ("127.0.0.1", self._ports[case.name])
        client = (
            GrpcClient(functools.partial(_channel, address))
            if case.protocol == "grpc"
            else RawClient(address, keep_alive=case.sent >= KEEP_ALIVE_FROM)
        )
        with contextlib.closing(client):
            outcomes = self._log.complete(case.name, drive(case, client.send))
        now = self._settled(case)
        return Run(outcomes=outcomes, counters=since(now, before, first))

    def _settled(self, case: Case) -> Counters:
        """The counters once the requests of the run are over and all samples of its histograms are merged.

        Envoy merges them some time after it was asked. The last sample of a request is how long it took, which one that the
        client has cut off does not have: then the wait ends by itself.
        """
        begun = time.monotonic()
        now = self._read(case)
        while True:
            time.sleep(_PAUSE)
            previous, now = now, self._read(case)
            counters = shortened(now.items(), case)
            busy = any(value for name, value in counters.items() if BUSY.match(name))
            waited = time.monotonic() - begun
            merged = _answered(now, case) or waited > MERGED
            if (previous == now and merged and not busy) or waited > SETTLED:
                return counters

    def _counters(self, case: Case) -> Counters:
        return shortened(self._read(case).items(), case)

    def _read(self, case: Case) -> Counters:
        """By Envoy's own names."""
        return self._process.stats(rf"^((cluster|http)\.{re.escape(case.name)}\.|vhost\.)")

    def rejection(self, case: Case, compiled: Compiled) -> str | None:
        """Envoy's complaint about a configuration, None if it would take it."""
        folder = self._folder / "rejected" / case.name
        listeners, clusters = self._files(folder, {case.name: (case, compiled)})
        bootstrap = folder / "bootstrap.json"
        static = {"listeners": _untyped(listeners), "clusters": _untyped(clusters)}
        bootstrap.write_text(json.dumps({"node": NODE, "static_resources": static}))
        command: list[str | Path] = [envoy_binary(), "--mode", "validate", "-c", bootstrap, "-l", "error"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=START_TIMEOUT, check=False)
        return None if done.returncode == 0 else _complaint(done.stderr + done.stdout)

    def _start(self) -> None:
        listeners, clusters = self._files(self._folder, self._cases)
        lds, cds = (self._folder / name for name in ("lds.json", "cds.json"))
        lds.write_text(json.dumps({"resources": listeners}))
        cds.write_text(json.dumps({"resources": clusters}))
        envoy = self._process
        dynamic = {"lds_config": _from_file(lds), "cds_config": _from_file(cds)}
        envoy.launch(
            {"dynamic_resources": dynamic, "stats_flush_on_admin": True}
        )  # histograms as they are now
        deadline = inf
        while len(self._ports) < len(self._cases):
            if not envoy.pause() or time.monotonic() > deadline:
                raise EnvoyError(self._diagnosis())
            with contextlib.suppress(OSError, ValueError):
                live = envoy.live
                self._ports = envoy.ports()
                if live and len(self._ports) < len(self._cases):
                    deadline = min(deadline, time.monotonic() + LIVE_TIMEOUT)
        missing = {cluster["name"] for cluster in clusters} - self._clusters()
        if missing:
            raise EnvoyError(
                f"Envoy does not have the clusters {', '.join(sorted(missing))}\n{self._diagnosis()}"
            )

    def _clusters(self) -> set[str]:
        statuses = json.loads(self._process.admin("/clusters?format=json")).get("cluster_statuses", ())
        return {status["name"] for status in statuses}

    def _diagnosis(self) -> str:
        """Why Envoy does not serve all cases: its own words, case by case."""
        found = []
        for name, (case, compiled) in self._cases.items():
            complaint = self.rejection(case, compiled)
            if complaint:
                found.append(f"{case.file}: case {name}: Envoy refuses it: {complaint}")
        return "\n".join(found or self._process.last_words())

    def _files(
        self, folder: Path, cases: Mapping[str, tuple[Case, Compiled]]
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        listeners, clusters = [], []
        for name, (_, compiled) in cases.items():
            home = folder / "resources" / name
            home.mkdir(parents=True, exist_ok=True)
            hcm = _subscribe(compiled.hcm, home, compiled.others)
            hcm["delayed_close_timeout"] = "0.02s"  # a cut response is cut at once instead of after a second
            hcm["access_log"] = [access_log(self._folder / "access.log", name)]
            listeners.append(_listener(name, hcm))
            clusters += [_subscribe(cluster, home, compiled.others) for cluster in compiled.clusters]
        return listeners, clusters


def _channel(address: tuple[str, int], host: str) -> grpc.Channel:
    """A channel that reaches Envoy as ``host``."""
    target = f"ipv4:{address[0]}:{address[1]}"
    return grpc.insecure_channel(target, options=(*OPTIONS, ("grpc.default_authority", host)))


def _from_file(path: Path) -> dict[str, Any]:
    return {"path_config_source": {"path": str(path)}, "resource_api_version": "V3"}


def _subscribe(node: Any, home: Path, others: list[dict[str, Any]]) -> Any:
    """Point every subscription to routes or endpoints at a file with just that type."""
    if isinstance(node, list):
        return [_subscribe(item, home, others) for item in node]
    if not isinstance(node, dict):
        return node
    result = {}
    for key, value in node.items():
        if key in ("config_source", "eds_config"):
            kind = "RouteConfiguration" if key == "config_source" else "ClusterLoadAssignment"
            path = home / f"{kind}.json"
            wanted = [other for other in others if other["@type"].endswith(kind)]
            path.write_text(json.dumps({"resources": wanted}))
            result[key] = _from_file(path)
        else:
            result[key] = _subscribe(value, home, others)
    return result


def _listener(name: str, hcm: dict[str, Any]) -> dict[str, Any]:
    return {
        "@type": LISTENER,
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": hcm}]}
        ],
    }


def _untyped(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(resource["@type"] in (LISTENER, CLUSTER) for resource in resources)
    return [{key: value for key, value in resource.items() if key != "@type"} for resource in resources]


def _complaint(output: str) -> str:
    lines = [line for line in output.splitlines() if "error" in line.lower()] or output.splitlines()
    return " ".join(lines[:3])


def _answered(found: Counters, case: Case) -> bool:
    """Whether there is a sample of each request that was answered."""
    prefix = f"http.{case.name}."
    return found.get(prefix + "downstream_rq_time", 0) >= found.get(prefix + "downstream_rq_completed", 0)
