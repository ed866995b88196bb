"""A case as data: its dataclasses and the loader of case files."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from conformance.reader import CaseError, Fields
from conformance.rpc import Rpc, parse_rpc
from conformance.upstream.grpc_script import CODES
from conformance.upstream.script import Upstream, parse_upstream

CASES = Path(__file__).parent / "cases"
COMPARED = (
    "status", "headers", "body", "complete", "flags", "details", "attempts", "cluster", "route", "upstream",
    "code", "message", "messages", "trailers", "metadata",
)  # fmt: skip
ENDPOINTS = ("exact", "rotation", "counts", "set", "ignored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request, sent ``repeat`` times by ``concurrency`` workers after waiting ``pause`` seconds.

    ``stagger`` seconds lie between the starts of concurrent requests, or after each of the others. ``at_least`` and
    ``at_most`` bound each call's seconds. With ``rpc`` it is a gRPC call of the method ``path`` with ``headers`` as metadata.
    """

    method: str = "GET"
    path: str = "/"
    host: str = "mesh.example"
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    chunked: bool = False
    repeat: int = 1
    concurrency: int = 1
    pause: float = 0.0
    stagger: float = 0.0
    at_least: float | None = None
    at_most: float | None = None
    rpc: Rpc | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """Which observed value is random, and its probabilities (empty: only compared between the two sides)."""

    of: str
    expected: dict[str, float]
    z: float = 3.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Compare:
    """What has to be equal. ``headers`` None: all that are not volatile, else only the named ones."""

    ignore: frozenset[str] = frozenset()
    headers: tuple[str, ...] | None = None
    upstream_headers: tuple[str, ...] | None = None
    any_order: bool = False
    endpoints: str = "exact"
    distribution: Distribution | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case. ``name`` is unique in the suite: ``<area>/<name in the file>``."""

    name: str
    file: str
    doc: str = ""
    internal: bool = False
    rejected: bool = False
    upstreams: dict[str, Upstream] = field(default_factory=dict)
    hcm: dict[str, Any] = field(default_factory=dict)
    route_config: dict[str, Any] = field(default_factory=dict)
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    resources: tuple[dict[str, Any], ...] = ()
    requests: tuple[Request, ...] = ()
    compare: Compare = field(default_factory=Compare)
    expect: tuple[dict[str, Any], ...] = ()

    @property
    def protocol(self) -> str:
        """``grpc`` or ``http``: what its requests are."""
        return "grpc" if any(request.rpc for request in self.requests) else "http"

    @property
    def sent(self) -> int:
        """How many requests the case sends."""
        return sum(request.repeat for request in self.requests)


def load_cases(folder: Path = CASES, only: str = "") -> list[Case]:
    """All cases under ``folder`` whose name :func:`matches` ``only``, sorted by file, in file order.

    Raises :class:`CaseError` for anything that is not a case.
    """
    cases: list[Case] = []
    for path in sorted(folder.rglob("*.yaml")):
        cases += load_file(path, folder)
    seen: set[str] = set()
    for case in cases:
        if case.name in seen:
            raise CaseError(f"{case.file}: case {case.name}: name: used twice")
        seen.add(case.name)
    return [case for case in cases if matches(only, case.name)]


def matches(pattern: str, name: str) -> bool:
    """Whether ``name`` contains ``pattern``, or matches it as a shell pattern."""
    return pattern in name or fnmatchcase(name, pattern)


def load_file(path: Path, folder: Path = CASES) -> list[Case]:
    """The cases of one file."""
    name = path.relative_to(folder).as_posix()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CaseError(f"{name}: not YAML: {error}") from error
    top = Fields(document, name)
    defaults = top.mapping("defaults")
    top.take("anchors")
    entries = top.items("cases")
    top.close()
    cases = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise CaseError(f"{name}: cases[{index}].name: every case is a mapping with a name")
        where = f"{name}: case {entry['name']}"
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", entry["name"]):
            raise CaseError(f"{where}: name: only lower-case letters, digits and '-'")
        cases.append(_parse_case(Fields(_merge(defaults, entry), where), name))
    return cases


def _merge(base: Any, over: Any) -> Any:
    """``over`` on top of ``base``: mappings merge key by key, everything else is replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        merged = copy.deepcopy(base)
        for key, value in over.items():
            merged[key] = _merge(base.get(key), value)
        return merged
    return copy.deepcopy(over)


def _parse_case(fields: Fields, file: str) -> Case:
    area = file.removesuffix(".yaml")
    name = f"{area}/{fields.text('name')}"
    rejected = fields.flag("rejected")
    requests = [request for entry in fields.children("requests") for request in _parse_requests(entry)]
    if len({request.rpc is None for request in requests}) > 1:
        raise fields.error("are either all gRPC calls or none is", "requests")
    kind = "grpc" if requests and requests[0].rpc else "http"
    upstreams = {
        key: parse_upstream(key, child, kind) for key, child in fields.named_children("upstreams").items()
    }
    route_config = fields.mapping("route_config")
    virtual_hosts, routes = fields.items("virtual_hosts"), fields.items("routes")
    if bool(virtual_hosts) + bool(routes) + ("virtual_hosts" in route_config) > 1:
        raise fields.error("give one of routes, virtual_hosts, route_config.virtual_hosts", "routes")
    if routes:
        virtual_hosts = [{"domains": ["*"], "routes": routes}]
    if virtual_hosts:
        route_config["virtual_hosts"] = virtual_hosts
    for index, host in enumerate(route_config.get("virtual_hosts", ())):
        if not isinstance(host, dict):
            raise fields.error("must be a mapping", f"virtual_hosts[{index}]")
        host.setdefault("name", f"vh{index}")
    clusters = {key: {} if value is None else value for key, value in fields.mapping("clusters").items()} or {
        key: {} for key in upstreams
    }
    resources = fields.items("resources")
    if resources and route_config:
        raise fields.error("give resources or the short form (routes, clusters), not both", "resources")
    if not resources and "virtual_hosts" not in route_config and not rejected:
        raise fields.error("needs routes, virtual_hosts or resources", "routes")
    if not requests and not rejected:
        raise fields.error("needs at least one request", "requests")
    compare = _parse_compare(fields.child("compare"), requests)
    expect = tuple(_parse_expect(fields))
    count = sum(request.repeat for request in requests)
    if len(expect) > 1 and len(expect) != count:
        raise fields.error(
            f"has {len(expect)} entries for {count} requests (give one for all or one each)", "expect"
        )
    case = Case(
        name=name,
        file=file,
        doc=fields.text("doc"),
        internal=fields.flag("internal"),
        rejected=rejected,
        upstreams=upstreams,
        hcm=fields.mapping("hcm"),
        route_config=route_config,
        clusters=clusters,
        resources=tuple(resources),
        requests=tuple(requests),
        compare=compare,
        expect=expect,
    )
    fields.close()
    return case


def _parse_requests(fields: Fields) -> list[Request]:
    each = fields.children("each")
    if not each:
        return [_parse_request(fields)]
    template = {key: fields.take(key) for key in tuple(fields._data)}
    return [_parse_request(Fields(template | probe._data, probe.where, probe.path)) for probe in each]


def _parse_request(fields: Fields) -> Request:
    if fields.has("rpc"):
        return _parse_rpc_request(fields)
    body = fields.take("body")
    if isinstance(body, dict):
        sized = Fields(body, fields.where, f"{fields.path}.body")
        body = "x" * sized.integer("size", 0)
        sized.close()
    if body is not None and not isinstance(body, str):
        raise fields.error("must be a string or {size: N}", "body")
    request = Request(
        method=fields.text("method", "GET"),
        path=fields.text("path", "/"),
        host=fields.text("host", "mesh.example"),
        headers=fields.pairs("headers"),
        body=None if body is None else body.encode(),
        chunked=fields.flag("chunked"),
        **_when(fields),
    )
    fields.close()
    return request


def _parse_rpc_request(fields: Fields) -> Request:
    request = Request(
        method="POST",
        path=fields.text("rpc"),
        host=fields.text("host", "mesh.example"),
        headers=fields.pairs("metadata"),
        rpc=parse_rpc(fields),
        **_when(fields),
    )
    if not request.path.startswith("/"):
        raise fields.error("must be /package.Service/Method", "rpc")
    fields.close()
    return request


def _when(fields: Fields) -> dict[str, Any]:
    """The fields of a request that say how often and when it is sent, and how long it may take."""
    bounds = fields.child("elapsed")
    found = {
        "repeat": fields.integer("repeat", 1, 1),
        "concurrency": fields.integer("concurrency", 1, 1),
        "pause": fields.seconds("pause"),
        "stagger": fields.seconds("stagger"),
        "at_least": bounds.seconds("at_least") if bounds.has("at_least") else None,
        "at_most": bounds.seconds("at_most") if bounds.has("at_most") else None,
    }
    bounds.close()
    return found


def _parse_compare(fields: Fields, requests: list[Request]) -> Compare:
    ignore = frozenset(fields.strings("ignore"))
    for name in sorted(ignore - set(COMPARED)):
        raise fields.error(f"{name!r} is not one of {', '.join(COMPARED)}", "ignore")
    distribution = None
    if fields.has("distribution"):
        child = fields.child("distribution")
        expected = child.mapping("expected")
        distribution = Distribution(
            of=child.choice("of", ("upstream", "body", "status", "location", "code"), "upstream"),
            expected={key: float(value) for key, value in expected.items()},
            z=child.seconds("z", 3.5),
        )
        needed = 400 if requests and requests[0].rpc else 1000
        if sum(request.repeat for request in requests) < needed:
            raise child.error(f"a distribution needs at least {needed} requests")
        child.close()
    compare = Compare(
        ignore=ignore,
        headers=fields.strings("headers") if fields.has("headers") else None,
        upstream_headers=fields.strings("upstream_headers") if fields.has("upstream_headers") else None,
        any_order=fields.flag("any_order", any(request.concurrency > 1 for request in requests)),
        endpoints=fields.choice("endpoints", ENDPOINTS, "exact"),
        distribution=distribution,
    )
    fields.close()
    return compare


EXPECTED = (
    "status", "flags", "details", "attempts", "body", "complete", "headers", "upstreams", "upstream",
    "code", "message", "messages", "trailers",
)  # fmt: skip


def _parse_expect(fields: Fields) -> list[dict[str, Any]]:
    raw = fields.take("expect", [])
    entries = []
    for index, entry in enumerate(raw if isinstance(raw, list) else [raw]):
        child = Fields(entry, fields.where, f"expect[{index}]")
        times = child.integer("times", 1, 1)
        value = {key: child.take(key) for key in EXPECTED if child.has(key)}
        child.close()
        if value.get("code", CODES[0]) not in CODES:
            raise child.error(f"{value['code']!r} is not the name of a gRPC status", "code")
        entries += [value] * times
    return entries
