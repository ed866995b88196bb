"""How long a configuration push takes to have effect, and how long it holds up calls: Envoy beside meshlib.

Every endpoint of a cluster is replaced, a tenth of the new ones UNHEALTHY. Effect is the time from the control
plane's send to the end of the first call that a new endpoint answered. Delay is the worst call that was under
way from the send until shortly after the effect, less the median call before the send. The two subjects have a
cluster each on the same control plane, and their pushes alternate. Not pinned: each subject would
otherwise compete with the control plane and with its own caller.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import configuration, envoy
from benchmarks.configuration import Resource
from benchmarks.processes import memory_mib
from benchmarks.push_caller import AUTHORITY, FIXED, PUSHED
from benchmarks.worker import Worker
from benchmarks.world import World, free_port, start, world

SIZES = (1_000, 10_000, 100_000)
_SETTLE = 0.3
_ADS: Resource = {"ads": {}, "resource_api_version": "V3"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """One push, in seconds.

    effect: until it took effect. delay: by how much it held up the worst call. quiet: the same of as long a time before it,
    which is what the machine does by itself.
    """

    effect: float
    delay: float
    quiet: float


def _virtual_host(cluster: str) -> Resource:
    routes = [
        {"match": {"path": PUSHED}, "route": {"cluster": cluster}},
        {"match": {"path": FIXED}, "route": {"cluster": "fixed"}},
    ]
    return {"name": "push", "domains": ["*"], "routes": routes}


def _clusters(cluster: str, fixed: tuple[str, int]) -> list[Resource]:
    pushed = configuration.policies(cluster) | {"type": "EDS", "eds_cluster_config": {"eds_config": _ADS}}
    assignment = configuration.load_assignment("fixed", [fixed])
    return [pushed, configuration.policies("fixed") | {"type": "STATIC", "load_assignment": assignment}]


def _mesh_resources(cluster: str, fixed: tuple[str, int]) -> list[Resource]:
    manager = configuration.http_connection_manager(
        rds={"route_config_name": "push-routes", "config_source": _ADS}
    )
    prefix = "type.googleapis.com/envoy.config."
    return [
        {
            "@type": prefix + "listener.v3.Listener",
            "name": f"{AUTHORITY}:80",
            "api_listener": {"api_listener": manager},
        },
        {
            "@type": prefix + "route.v3.RouteConfiguration",
            "name": "push-routes",
            "virtual_hosts": [_virtual_host(cluster)],
        },
        *({"@type": prefix + "cluster.v3.Cluster"} | found for found in _clusters(cluster, fixed)),
    ]


def _envoy_bootstrap(directory: Path, port: int, plane: int, cluster: str, fixed: tuple[str, int]) -> Path:
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    xds = {
        "name": "xds",
        "type": "STATIC",
        "load_assignment": configuration.load_assignment("xds", [("127.0.0.1", plane)]),
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2,
        },
    }
    ads = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}],
    }
    manager = configuration.http_connection_manager(
        route_config={"name": "push-routes", "virtual_hosts": [_virtual_host(cluster)]}
    )
    return envoy.bootstrap(
        directory / "push.json",
        [envoy.socket_listener("push", port, manager)],
        [xds, *_clusters(cluster, fixed)],
        dynamic_resources={"ads_config": ads},
    )


def _push(plane: Worker, caller: Worker, cluster: str, size: int, which: str) -> Push:
    caller.tell(watch=which, settle=_SETTLE)
    caller.answer()
    sent = plane.ask(push=cluster, size=size, which=which)
    if sent["rejections"]:
        raise RuntimeError(f"the push was rejected: {sent['rejections']}")
    answer = caller.answer()
    return evaluate(sent["sent"], answer["effect"], answer["calls"])


def evaluate(sent: float, effect: float, calls: list[tuple[float, float]]) -> Push:
    """`calls` are (start, duration), seconds; those that ended before `sent` are the ordinary ones."""
    before = [duration for started, duration in calls if started + duration < sent]
    during = [duration for started, duration in calls if started + duration >= sent]
    ordinary = statistics.median(before)
    return Push(effect=effect - sent, delay=max(during) - ordinary, quiet=max(before) - ordinary)


def _row(subject: str, size: int, encoded: int, pushes: list[Push], memory: float) -> dict[str, Any]:
    def ms(values: list[float], choose: Callable[[list[float]], float] = statistics.median) -> float:
        return round(choose(values) * 1e3, 2)

    effects, delays = [push.effect for push in pushes], [push.delay for push in pushes]
    return {
        "case": f"push/{subject}",
        "endpoints": size,
        "bytes": encoded,
        "effect_ms": ms(effects),
        "effect_max_ms": ms(effects, max),
        "delay_ms": ms(delays),
        "delay_max_ms": ms(delays, max),
        "quiet_ms": ms([push.quiet for push in pushes]),
        "rss_mib": round(memory, 1),
        "pushes": len(pushes),
    }


def _prepare(plane: Worker, subject: str, size: int, port: int) -> int:
    """Serialises both sets of endpoints and makes b the current one; returns the bytes of one."""
    encoded = 0
    for which in ("a", "b"):
        answer = plane.ask(set=f"big-{subject}", size=size, which=which, port=port)
        encoded = answer["bytes"]
    plane.ask(push=f"big-{subject}", size=size, which="b")
    return encoded


def _callers(
    stack: contextlib.ExitStack, here: World, plane: Worker, *, with_mesh: bool
) -> dict[str, tuple[Worker, int]]:
    """For each subject the process that calls, and the process id whose memory counts."""
    fixed = here.upstreams[0]
    port = plane.ask(serve=_mesh_resources("big-meshlib", fixed))["port"]
    callers: dict[str, tuple[Worker, int]] = {}
    if envoy.binary() is not None:
        _prepare(plane, "envoy", SIZES[0], here.where_port)
        listening = free_port()
        bootstrap = _envoy_bootstrap(here.directory, listening, port, "big-envoy", fixed)
        pid = start(here.supervisor, here.directory / "push.log", envoy.argv(bootstrap), listening)
        worker = stack.enter_context(Worker("benchmarks.push_caller", "envoy", str(listening), "0"))
        callers["envoy"] = worker, pid
    if with_mesh:
        _prepare(plane, "meshlib", SIZES[0], here.where_port)
        worker = stack.enter_context(Worker("benchmarks.push_caller", "meshlib", "0", str(port)))
        callers["meshlib"] = worker, worker.pid
    return callers


def run(pushes: int, *, with_mesh: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """The table, and the ratios and delays by name. Without Envoy's wheel no ratio, only meshlib's rows."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        here = stack.enter_context(world(envoys=False))
        plane = stack.enter_context(Worker("benchmarks.push_server"))
        callers = _callers(stack, here, plane, with_mesh=with_mesh)
        for size in SIZES:
            encoded = {subject: _prepare(plane, subject, size, here.where_port) for subject in callers}
            measured: dict[str, list[Push]] = {subject: [] for subject in callers}
            for index in range(pushes + 1):
                for subject, (caller, _) in callers.items():
                    push = _push(plane, caller, f"big-{subject}", size, "ab"[index % 2])
                    if index > 0:
                        measured[subject].append(push)
            for subject, (_, pid) in callers.items():
                memory = memory_mib(pid)["rss"]
                rows.append(_row(subject, size, encoded[subject], measured[subject], memory))
            ratios |= _named(size, measured)
    return rows, ratios


def _named(size: int, measured: dict[str, list[Push]]) -> dict[str, float]:
    found = {}
    if "meshlib" in measured:
        own = measured["meshlib"]
        if "envoy" in measured:
            pairs = zip(own, measured["envoy"], strict=True)
            found[f"push_{size}_vs_envoy"] = statistics.median(
                push.effect / other.effect for push, other in pairs
            )
        if size > SIZES[0]:
            found[f"push_delay_ms_{size}"] = statistics.median(push.delay for push in own) * 1e3
    return found
