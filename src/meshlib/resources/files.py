"""Configuration files: xDS resources as YAML or JSON, in the form of Envoy's file subscriptions.

    resources:
    - "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster
      name: reviews

Several documents, files and folders form one configuration. A mistake never raises: it becomes a Problem, whose text is
``FILE:LINE: path.to.field: what is wrong``, and all other resources are still loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources.yamltext import Text, TextError

__all__ = ["FileConfig", "FileResource", "Problem", "Source", "files_of", "load", "locate", "validate"]

Source: TypeAlias = "str | Path | Mapping[str, Any]"
"""A file, a folder (its *.yaml, *.yml and *.json sorted by name, without sub-folders) or a document itself."""

SUFFIXES = frozenset({".yaml", ".yml", ".json"})
DECODED = (proto.LISTENER, proto.ROUTE, proto.CLUSTER, proto.ENDPOINT, proto.SECRET)

_NAME_FIELDS = {
    "envoy.config.listener.v3.Listener": "name",
    "envoy.config.route.v3.RouteConfiguration": "name",
    "envoy.config.route.v3.ScopedRouteConfiguration": "name",
    "envoy.config.cluster.v3.Cluster": "name",
    "envoy.config.endpoint.v3.ClusterLoadAssignment": "cluster_name",
    "envoy.extensions.transport_sockets.tls.v3.Secret": "name",
    "envoy.config.core.v3.TypedExtensionConfig": "name",
}
"""The messages that are xDS resources, and the field that names each."""

_WRAPPER = "envoy.service.discovery.v3.Resource"
_DOCUMENT_FIELDS = frozenset({"resources", "version_info", "versionInfo", "type_url", "typeUrl", "nonce"})
_BOOTSTRAP_FIELDS = frozenset({"static_resources", "dynamic_resources", "admin", "node"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake.

    file: as it was given, or ``config[N]`` for a dictionary. line: counted from 1; 0 when there is none. path: the
    field within its resource, in proto names; may be empty. message: what is wrong and, if need be, what to do.
    """

    file: str
    line: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FileResource:
    """One resource of a file. ``message`` is of meshlib's private pool; do not change it."""

    type_url: str
    name: str
    message: proto.Message
    file: str
    origin: _Origin

    @property
    def line(self) -> int:
        """Where the resource begins, counted from 1; 0 for a dictionary. Slow at the first use for a file."""
        return self.origin.line()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileConfig:
    """What files hold: resources in the order they were read, (type_url, name) unique, and every mistake found."""

    resources: tuple[FileResource, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Origin:
    """Where a value stands: a file, a document in it, and the path in that document."""

    file: str
    text: Text | None = None
    document: int = 0
    path: str = ""

    def line(self, path: str = "") -> int:
        if self.text is None:
            return 0
        return self.text.line(
            self.document, f"{self.path}.{path}" if path and self.path else self.path + path
        )

    def at(self, step: str) -> _Origin:
        return _Origin(file=self.file, text=self.text, document=self.document, path=self.path + step)

    def problem(self, path: str, message: str) -> Problem:
        return Problem(file=self.file, line=self.line(path), path=path, message=message)


Decode: TypeAlias = Callable[[str, proto.Message], object]
"""``decode(type_url, message)``; raises ResourceError when the message means nothing that can be applied."""


def load(sources: Iterable[Source]) -> FileConfig:
    """Read all sources. Never raises for what they contain; see ``problems``."""
    resources: list[FileResource] = []
    problems: list[Problem] = []
    known: dict[tuple[str, str], FileResource] = {}
    for item in _read(sources):
        if isinstance(item, Problem):
            problems.append(item)
            continue
        first = known.setdefault((item.type_url, item.name), item)
        if first is item:
            resources.append(item)
        else:
            problems.append(_duplicate(item, first))
    return FileConfig(resources=tuple(resources), problems=tuple(problems))


def files_of(source: str | Path) -> list[Path]:
    """The files that a path stands for: itself, or what a folder holds; empty if there is no such path."""
    path = Path(source)
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.name[0] != "." and p.is_file())
    return [path] if path.exists() else []


def locate(resource: FileResource, path: str) -> int:
    """The line of a field of a resource (``virtual_hosts[2].routes[0].match``) or of what encloses it.

    Counted from 1; 0 when the resource came from a dictionary.
    """
    return resource.origin.line(path)


def validate(config: FileConfig, decode: Decode) -> list[Problem]:
    """All that is wrong: the problems of loading, then those that ``decode`` finds in Listeners, RouteConfigurations,
    Clusters, ClusterLoadAssignments and Secrets."""
    problems = list(config.problems)
    for resource in config.resources:
        if resource.type_url not in DECODED:
            continue
        try:
            decode(resource.type_url, resource.message)
        except ResourceError as error:
            problems.append(resource.origin.problem(error.path, error.reason))
    return problems


def _read(sources: Iterable[Source]) -> Iterator[FileResource | Problem]:
    for index, source in enumerate(sources):
        if isinstance(source, Mapping):
            yield from _document(source, _Origin(file=f"config[{index}]"))
            continue
        files = files_of(source)
        if not files:
            yield Problem(file=str(source), line=0, path="", message=_nothing_there(Path(source)))
        for file in files:
            yield from _file(file)


def _file(path: Path) -> Iterator[FileResource | Problem]:
    try:
        text = Text(path.read_text(encoding="utf-8"), is_json=path.suffix == ".json")
    except TextError as error:
        yield Problem(file=str(path), line=error.line, path="", message=error.reason)
    except UnicodeDecodeError as error:
        yield Problem(file=str(path), line=0, path="", message=f"not UTF-8 text (byte {error.start})")
    except OSError as error:
        yield Problem(file=str(path), line=0, path="", message=f"cannot be read: {error.strerror or error}")
    else:
        for number, document in enumerate(text.documents):
            yield from _document(document, _Origin(file=str(path), text=text, document=number))


def _document(value: Any, origin: _Origin) -> Iterator[FileResource | Problem]:
    if value is None:
        return
    if not isinstance(value, Mapping):
        yield origin.problem("", "a document must be a mapping with 'resources:' or with '@type'")
    elif "@type" in value:
        yield _resource(value, origin)
    elif "resources" in value:
        yield from _resources(value, origin)
    elif "apiVersion" in value and "kind" in value:
        yield origin.problem(
            "kind",
            f"{value['kind']}: Istio and Gateway API objects are not supported yet; give xDS resources",
        )
    elif _BOOTSTRAP_FIELDS & value.keys():
        yield origin.problem(
            "",
            "this is an Envoy bootstrap; list its listeners and clusters under 'resources:', each with '@type'",
        )
    else:
        yield origin.problem("", "neither 'resources:' nor '@type' is here")


def _resources(value: Mapping[str, Any], origin: _Origin) -> Iterator[FileResource | Problem]:
    for key in value:
        if key not in _DOCUMENT_FIELDS:
            yield origin.problem(str(key), "unknown field beside 'resources:'")
    items = value["resources"]
    if items is None:
        return
    if not isinstance(items, list):
        yield origin.problem("resources", "must be a list")
        return
    for index, item in enumerate(items):
        yield _resource(item, origin.at(f".resources[{index}]" if origin.path else f"resources[{index}]"))


def _resource(value: Any, origin: _Origin) -> FileResource | Problem:
    if not isinstance(value, Mapping):
        return origin.problem("", "a resource must be a mapping with '@type'")
    url = value.get("@type")
    if not isinstance(url, str):
        return origin.problem("@type", f"missing: write for example '\"@type\": {proto.CLUSTER}'")
    name = proto.full_name(url)
    if name == _WRAPPER:
        return _wrapped(value, origin)
    if name not in _NAME_FIELDS:
        return origin.problem("@type", _not_a_resource(name))
    try:
        message = proto.from_dict(name, {key: item for key, item in value.items() if key != "@type"})
    except proto.FieldError as error:
        return origin.problem(error.path, error.reason)
    named = getattr(message, _NAME_FIELDS[name])
    if not named:
        return origin.problem(_NAME_FIELDS[name], "must not be empty")
    return FileResource(
        type_url=proto.type_url(name), name=named, message=message, file=origin.file, origin=origin
    )


def _wrapped(value: Mapping[str, Any], origin: _Origin) -> FileResource | Problem:
    """A discovery Resource: the resource itself is in its field ``resource``."""
    inner = value.get("resource")
    if inner is None:
        return origin.problem("resource", "missing")
    return _resource(inner, origin.at(".resource" if origin.path else "resource"))


def _not_a_resource(name: str) -> str:
    try:
        proto.message(name)
    except proto.UnknownType:
        pass
    else:
        return f"{name} is not a resource by itself; known are {', '.join(_NAME_FIELDS)}"
    try:
        proto.from_dict("google.protobuf.Any", {"@type": proto.type_url(name)})
    except proto.FieldError as error:
        return error.reason
    return f"unknown type {name!r}"


def _duplicate(item: FileResource, first: FileResource) -> Problem:
    kind = proto.full_name(item.type_url).rpartition(".")[2]
    place = f"{first.file}:{first.line}" if first.line else first.file
    field = _NAME_FIELDS[proto.full_name(item.type_url)]
    return item.origin.problem(
        field, f"there is another {kind} named {item.name!r} at {place}; remove or rename one"
    )


def _nothing_there(path: Path) -> str:
    return "a folder without *.yaml, *.yml or *.json files" if path.is_dir() else "no such file or folder"
