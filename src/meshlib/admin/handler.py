"""What the admin answers: a table of paths, each a function of the request. Nothing here knows where the bytes come from."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from meshlib import __version__
from meshlib.admin import model as models
from meshlib.admin.aside import aside
from meshlib.admin.calls import Tap, TapFilter, decision_json
from meshlib.admin.certs import certs
from meshlib.admin.client import AdminError
from meshlib.admin.clusters import address_json, clusters_json, clusters_text
from meshlib.admin.config_dump import config_dump
from meshlib.admin.family import group
from meshlib.admin.golden import Golden
from meshlib.admin.graph import graph_of, merged
from meshlib.admin.http import Reply, Request, json_reply, text_reply
from meshlib.admin.processes import Process, ProcessDirectory
from meshlib.admin.static_files import static_file
from meshlib.admin.statistics import stats_json, stats_text
from meshlib.admin.traces import spans_of, trace_of, traces_of
from meshlib.errors import MeshClosed, MeshError
from meshlib.observe.document import document
from meshlib.observe.explain import Question, explain
from meshlib.observe.exposition import exposition
from meshlib.observe.workload import UNKNOWN, own_workload
from meshlib.runtime import fork, regex

if TYPE_CHECKING:
    from meshlib.admin.membership import Membership
    from meshlib.mesh import Mesh

__all__ = ["PATHS", "Handler"]

ASK_TIMEOUT = 2.0
"""Seconds that another process has for its part of an answer."""

LEVELS = ("critical", "error", "warning", "info", "debug")
MOST_ENDPOINTS = 1000


class _Path(NamedTuple):
    answer: Callable[[Handler, Request], Reply]
    help: str
    method: str = "GET"


class Handler:
    """Answers for one Mesh. See `meshlib.admin.admin.Admin` for who may ask."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._golden = Golden(mesh.stats, mesh.clock.monotonic)
        self._directory: ProcessDirectory | None = None
        self._process: Process | None = None
        self._failing = False
        self._started = mesh.clock.time()
        workload = own_workload(mesh.node, os.environ)
        named = [workload.canonical_service, workload.name]
        self.service = next((name for name in named if name != UNKNOWN), "")
        fork.register(self)

    def join(self, directory: ProcessDirectory | None, process: Process | None) -> None:
        """Other processes can be asked through this directory, where this one is `process`. None: no longer."""
        self._directory, self._process = directory, process

    def handle(self, request: Request) -> Reply:
        path = "/" + request.path.strip("/")
        known = PATHS.get(path)
        if known is None:
            if path.startswith("/static/"):
                return static_file(path.removeprefix("/static/"), request)
            return text_reply(f"there is no {path}; / lists what there is\n", 404)
        if request.method != known.method and not (request.method == "HEAD" and known.method == "GET"):
            return text_reply(f"{path} wants {known.method}\n", 405, ("allow", known.method))
        try:
            if path.startswith("/mesh") and "process" in request.query:
                return self._ask(request)
            return known.answer(self, request)
        except LookupError as error:
            return text_reply(f"{error.args[0]}\n", 404)
        except (ValueError, MeshError) as error:
            return text_reply(f"{error}\n", 400)

    def before_fork(self) -> None:
        """Nothing is held."""

    def after_fork_in_parent(self) -> None:
        """All goes on."""

    def after_fork_in_child(self) -> None:
        self._golden.renew_lock()
        self._started = self._mesh.clock.time()

    # --- Envoy's -----------------------------------------------------------------------------------------------------

    def index(self, request: Request) -> Reply:
        page = static_file("index.html", request)
        return self.help(request) if page.status == 404 else page

    def help(self, _request: Request) -> Reply:
        lines = [f"  {path}: {each.help}" for path, each in PATHS.items()]
        return text_reply("admin commands are:\n" + "\n".join(lines) + "\n")

    def config_dump(self, request: Request) -> Reply:
        dump = config_dump(
            self._mesh,
            include_eds=request.flag("include_eds"),
            resource=request.query.get("resource") or None,
            mask=request.query.get("mask") or None,
            matches=_pattern(request.query.get("name_regex")),
        )
        return json_reply(dump, indent=1)

    def clusters(self, request: Request) -> Reply:
        matches = _pattern(request.query.get("filter"))
        names = [name for name in self._mesh.engine.program.clusters if matches is None or matches(name)]
        if request.query.get("format") == "json":
            return json_reply(clusters_json(self._mesh, names), indent=1)
        return text_reply(clusters_text(self._mesh, names))

    def stats(self, request: Request) -> Reply:
        matches, used_only = _pattern(request.query.get("filter")), request.flag("usedonly")
        form = request.query.get("format", "text")
        if form == "prometheus":
            return self.prometheus(request)
        if form == "json":
            return json_reply(stats_json(self._mesh.stats, used_only=used_only, matches=matches))
        if form != "text":
            raise ValueError(f"format {form!r} is not one of text, json, prometheus")
        return text_reply(stats_text(self._mesh.stats, used_only=used_only, matches=matches))

    def prometheus(self, request: Request) -> Reply:
        matches, used_only = _pattern(request.query.get("filter")), request.flag("usedonly")
        membership = self._membership()
        try:
            if membership is None or request.query.get("scope") == "process":
                found = document(self._mesh.stats, used_only=used_only, matches=matches)
            elif request.query.get("format") == "document":
                found = membership.own()
            else:
                found = membership.whole().only(used_only=used_only, matches=matches)
        except RuntimeError as error:
            return text_reply(f"{error}\n", 503)
        if request.query.get("format") == "document":
            return Reply(content_type="application/json", body=found.to_json())
        content_type, text = exposition(found, request.headers.get("accept", ""))
        return Reply(content_type=content_type, body=text.encode())

    def certs(self, _request: Request) -> Reply:
        return json_reply(certs(self._mesh), indent=1)

    def ready(self, _request: Request) -> Reply:
        if self._failing:
            return text_reply("DRAINING: told to fail health checks\n", 503)
        ready, why_not = models.readiness(self._mesh)
        return text_reply("LIVE\n") if ready else text_reply(f"PRE_INITIALIZING: {why_not}\n", 503)

    def listeners(self, request: Request) -> Reply:
        snapshot = self._mesh.snapshot
        found = dict.fromkeys(snapshot.listeners, "")
        found |= {name: listener.address for name, listener in snapshot.inbound.items()}
        if request.query.get("format") == "json":
            return json_reply(
                {"listener_statuses": [_listener(name, found[name]) for name in sorted(found)]}, indent=1
            )
        return text_reply("".join(f"{name}::{found[name] or 'api_listener'}\n" for name in sorted(found)))

    def runtime(self, _request: Request) -> Reply:
        # There is no runtime: `runtime_fraction` and its kin have their default values.
        return json_reply({"layers": [], "entries": {}}, indent=1)

    def server_info(self, _request: Request) -> Reply:
        mesh, node = self._mesh, self._mesh.node
        ready, _ = models.readiness(mesh)
        state = "DRAINING" if self._failing else "LIVE" if ready else "PRE_INITIALIZING"
        uptime = f"{max(mesh.clock.time() - self._started, 0.0):.0f}s"
        return json_reply(
            {
                "version": f"meshlib/{__version__}",
                "state": state,
                "uptime_current_epoch": uptime,
                "uptime_all_epochs": uptime,
                "node": {"id": node.id, "cluster": node.cluster, "user_agent_name": "meshlib"},
                "pid": os.getpid(),
                "python": sys.version.split()[0],
            },
            indent=1,
        )

    # --- for the page and the commands -------------------------------------------------------------------------------

    def mesh(self, request: Request) -> Reply:
        given = request.query.get("parts")
        parts = None if given is None else set(filter(None, given.split(",")))
        unknown = (parts or set()) - models.PARTS.keys()
        if unknown:
            raise ValueError(f"unknown part {min(unknown)!r}; there are {', '.join(models.PARTS)}")
        found = models.model(self._mesh, self._about(), self._golden.look(), parts)
        return json_reply(found, request, extra={"now": round(self._mesh.clock.time(), 3)})

    def endpoints(self, request: Request) -> Reply:
        mesh, view = self._mesh, self._golden.look()
        name = request.query.get("cluster") or next(iter(models.clusters(mesh, view)), "")
        start = request.number("start", 0, most=10**9)
        limit = request.number("limit", 200, most=MOST_ENDPOINTS)
        found = models.endpoints(mesh, view, name, start=start, limit=limit)
        return (
            text_reply(f"there is no cluster {name!r}\n", 404)
            if found is None
            else json_reply(found, request)
        )

    def call(self, request: Request) -> Reply:
        number = request.number("number", 0, most=10**15)
        facts = None if self._mesh.recent is None else self._mesh.recent.find(number)
        if facts is None:
            return text_reply(f"call {number} is not among those that are remembered\n", 404)
        return json_reply(decision_json(facts, self._mesh.clock))

    def processes(self, request: Request) -> Reply:
        listed = self._directory.list() if self._directory is not None else ()
        own = self._process.name if self._process is not None else None
        found = [_process_json(process, own) for process in listed]
        return json_reply({"processes": found or [{**self._about(), "self": True}]}, request)

    def graph(self, request: Request) -> Reply:
        graphs = [graph_of(self._mesh, self._about()["service"], self._golden.look())]
        graphs += (found["graph"] for found in self._others("/mesh.json?parts=graph"))
        return json_reply(merged(graphs), request)

    def traces(self, request: Request) -> Reply:
        if request.query.get("scope") == "process":
            return json_reply(self._spans())
        return json_reply(traces_of(self._all_spans()), request)

    def trace(self, request: Request) -> Reply:
        name = request.query.get("id", "")
        found = trace_of(self._all_spans(), name)
        if found is None:
            return text_reply(f"no process remembers anything of trace {name!r}\n", 404)
        return json_reply(found, request)

    def explain(self, request: Request) -> Reply:
        url = request.query.get("url")
        if not url:
            raise ValueError("give the url to explain: /mesh/explain.json?url=http://reviews:9080/")
        headers = [_header(line) for line in request.query.get("headers", "").split("\n") if line]
        mesh = self._mesh
        random = Random()
        answer = explain(
            aside(mesh.engine.program, random),
            Question(url=url, method=request.query.get("method", "GET"), headers=headers),
            random=random,
            now=mesh.clock.monotonic(),
            epoch=mesh.clock.time(),
        )
        return json_reply(answer.to_dict())

    def tap(self, request: Request) -> Reply:
        return Reply(
            content_type="application/x-ndjson", body=Tap(self._mesh.engine, TapFilter(request.query))
        )

    # --- what changes something --------------------------------------------------------------------------------------

    def logging(self, request: Request) -> Reply:
        level = request.query.get("level", "").lower()
        if level not in LEVELS:
            raise ValueError(f"level must be one of {', '.join(LEVELS)}")
        logging.getLogger("meshlib").setLevel(level.upper())
        return text_reply(f"meshlib: {level}\n")

    def healthcheck_fail(self, _request: Request) -> Reply:
        self._failing = True
        return text_reply("OK\n")

    def healthcheck_ok(self, _request: Request) -> Reply:
        self._failing = False
        return text_reply("OK\n")

    # --- other processes ---------------------------------------------------------------------------------------------

    def _membership(self) -> Membership | None:
        """A worker that has made no call yet comes into its application now."""
        with suppress(MeshClosed):
            self._mesh.start()
        doors = self._mesh.doors
        return None if doors is None else doors.membership

    def _about(self) -> dict[str, Any]:
        process = self._process
        name = str(os.getpid()) if process is None else process.name
        machine = models.about_this_machine()
        return {
            "id": f"{name}@{machine['host']}",
            "name": name,
            "pid": os.getpid(),
            "group": group() if process is None else process.group,
            "service": self.service or (process.command if process is not None else "this process"),
            "command": "" if process is None else process.command,
            "url": "" if process is None else process.url,
            "meshlib": __version__,
            "started": self._started,
            **machine,
        }

    def _spans(self) -> dict[str, Any]:
        about = self._about()
        return spans_of(self._mesh, about["name"], about["service"])

    def _all_spans(self) -> list[dict[str, Any]]:
        return [self._spans(), *self._others("/mesh/traces.json?scope=process")]

    def _ask(self, request: Request) -> Reply:
        """The same of another process of the directory."""
        name = request.query["process"]
        if self._process is not None and name == self._process.name:
            rest = {key: value for key, value in request.query.items() if key != "process"}
            return self.handle(
                Request(method=request.method, path=request.path, query=rest, headers=request.headers)
            )
        if self._directory is None:
            return text_reply(
                "this process knows no others: its admin is not in the process directory\n", 404
            )
        target = request.path + _query(
            {key: value for key, value in request.query.items() if key != "process"}
        )
        try:
            answer = self._directory.ask(name, target, timeout=ASK_TIMEOUT)
        except AdminError as error:
            return text_reply(f"{error}\n", 502)
        content_type = answer.headers.get("content-type", "text/plain; charset=utf-8")
        return Reply(status=answer.status, content_type=content_type, body=answer.body)

    def _others(self, path: str, group: str | None = None) -> list[Any]:
        """The JSON answers of the other processes, of those that answer."""
        if self._directory is None or self._process is None:
            return []
        found = []
        for process in self._directory.list(group):
            if process.name == self._process.name:
                continue
            try:
                answer = self._directory.ask(process, path, timeout=ASK_TIMEOUT)
                if answer.status == 200:
                    found.append(answer.json())
            except AdminError as error:
                logging.getLogger("meshlib.admin").info("%s", error)
        return found


PATHS: Mapping[str, _Path] = {
    "/": _Path(Handler.index, "the page for people"),
    "/help": _Path(Handler.help, "this list"),
    "/certs": _Path(Handler.certs, "certificates in use, without keys"),
    "/clusters": _Path(Handler.clusters, "clusters and their endpoints; format=json, filter=REGEX"),
    "/config_dump": _Path(
        Handler.config_dump, "the configuration; include_eds, resource=FIELD, mask=PATHS, name_regex=REGEX"
    ),
    "/listeners": _Path(Handler.listeners, "the Listeners; format=json"),
    "/ready": _Path(Handler.ready, "200 when calls can be made, else 503 and why not"),
    "/runtime": _Path(Handler.runtime, "runtime values: there are none"),
    "/server_info": _Path(Handler.server_info, "version, state, node"),
    "/stats": _Path(Handler.stats, "metrics; format=json|prometheus, filter=REGEX, usedonly"),
    "/stats/prometheus": _Path(
        Handler.prometheus, "metrics of the application for Prometheus; scope=process for this process alone"
    ),
    "/tap": _Path(
        Handler.tap,
        "calls as they end, a JSON line each; cluster, route, status, flag, min_duration (ms), header",
    ),
    "/mesh.json": _Path(Handler.mesh, "all that the page shows; parts"),
    "/mesh/endpoints.json": _Path(Handler.endpoints, "endpoints of a cluster; cluster, start, limit"),
    "/mesh/call.json": _Path(Handler.call, "a recent call and why it went where it went; number"),
    "/mesh/processes.json": _Path(Handler.processes, "the processes of this user that have an admin"),
    "/mesh/graph.json": _Path(Handler.graph, "who calls whom, of all these processes"),
    "/mesh/traces.json": _Path(
        Handler.traces, "recent traces of all these processes; scope=process for what this one knows"
    ),
    "/mesh/trace.json": _Path(Handler.trace, "one of them; id"),
    "/mesh/explain.json": _Path(
        Handler.explain, "where a request would go; url, method, headers (lines of 'name: value')"
    ),
    "/logging": _Path(Handler.logging, "set the level of meshlib's log; level", "POST"),
    "/healthcheck/fail": _Path(Handler.healthcheck_fail, "have /ready answer 503 from now on", "POST"),
    "/healthcheck/ok": _Path(Handler.healthcheck_ok, "no longer", "POST"),
}


def _pattern(text: str | None) -> Callable[[str], bool] | None:
    """Found anywhere in a name; in linear time, whatever the pattern. Raises ValueError."""
    if not text:
        return None
    try:
        return regex.compile(text, unanchored=True).search
    except regex.RegexError as error:
        raise ValueError(f"{text!r} is not a regular expression: {error.reason}") from None


def _listener(name: str, address: str) -> dict[str, Any]:
    return {"name": name, "local_address": address_json(address)} if address else {"name": name}


def _header(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not name.strip():
        raise ValueError(f"{line!r} is not like 'name: value'")
    return name.strip(), value.strip()


def _query(parameters: Mapping[str, str]) -> str:
    return f"?{urlencode(parameters)}" if parameters else ""


def _process_json(process: Process, own: str | None) -> dict[str, Any]:
    return {
        "name": process.name,
        "pid": process.pid,
        "group": process.group,
        "service": process.service,
        "command": process.command,
        "started": process.started,
        "url": process.url,
        "self": process.name == own,
    }
