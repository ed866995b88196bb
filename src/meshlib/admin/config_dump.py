"""`/config_dump`: every resource in force, with its version and what was refused, in Envoy's shape (envoy.admin.v3.ConfigDump).

Resources are shown as they came, from the bytes that the control plane or the files gave, without secrets. Where a process no
longer has those (a cluster that DNS resolves, a child right after a fork) the name stands alone.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from meshlib import proto
from meshlib.admin.redaction import redact
from meshlib.snapshot import Kind, ResourceState, ResourceStatus

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["config_dump", "masked", "shown", "timestamp"]

_PREFIX = "type.googleapis.com/envoy.admin.v3."


@dataclass(frozen=True, slots=True)
class _Shape:
    """How Envoy dumps one type. item: the message of an entry; resource: the field that holds the resource."""

    kind: Kind
    message: str
    static: str
    dynamic: str
    static_item: str
    dynamic_item: str
    resource: str


_SHAPES = (
    _Shape(
        Kind.CLUSTER,
        "ClustersConfigDump",
        "static_clusters",
        "dynamic_active_clusters",
        "ClustersConfigDump.StaticCluster",
        "ClustersConfigDump.DynamicCluster",
        "cluster",
    ),
    _Shape(
        Kind.ENDPOINT,
        "EndpointsConfigDump",
        "static_endpoint_configs",
        "dynamic_endpoint_configs",
        "EndpointsConfigDump.StaticEndpointConfig",
        "EndpointsConfigDump.DynamicEndpointConfig",
        "endpoint_config",
    ),
    _Shape(
        Kind.LISTENER,
        "ListenersConfigDump",
        "static_listeners",
        "dynamic_listeners",
        "ListenersConfigDump.StaticListener",
        "ListenersConfigDump.DynamicListener",
        "listener",
    ),
    _Shape(
        Kind.ROUTE,
        "RoutesConfigDump",
        "static_route_configs",
        "dynamic_route_configs",
        "RoutesConfigDump.StaticRouteConfig",
        "RoutesConfigDump.DynamicRouteConfig",
        "route_config",
    ),
    _Shape(
        Kind.SECRET,
        "SecretsConfigDump",
        "static_secrets",
        "dynamic_active_secrets",
        "SecretsConfigDump.StaticSecret",
        "SecretsConfigDump.DynamicSecret",
        "secret",
    ),
)


def config_dump(
    mesh: Mesh,
    *,
    include_eds: bool = False,
    resource: str | None = None,
    mask: str | None = None,
    matches: Callable[[str], object] | None = None,
) -> dict[str, Any]:
    """As JSON.

    include_eds: endpoints too, which may be many. resource: only the entries of this field, `dynamic_active_clusters` for
    example, each on its own. mask: field paths, comma-separated, of what is kept of each configuration (with `resource`: of each
    entry). matches: what a resource's name must satisfy.

    Raises:
        LookupError: there is no such resource field.
    """
    statuses = sorted(mesh.status(), key=lambda status: status.name)
    if matches is not None:
        statuses = [status for status in statuses if matches(status.name)]
    shapes = [shape for shape in _SHAPES if include_eds or shape.kind is not Kind.ENDPOINT]
    if resource is not None:
        found = [shape for shape in _SHAPES if resource in (shape.static, shape.dynamic)]
        if not found:
            known = ", ".join(field for shape in _SHAPES for field in (shape.static, shape.dynamic))
            raise LookupError(f"{resource} not found in config dump; there are {known}")
        dump = _one(mesh, found[0], statuses)
        static = resource == found[0].static
        item = _PREFIX + (found[0].static_item if static else found[0].dynamic_item)
        configs = [{"@type": item, **entry} for entry in dump.get(resource, ())]
    else:
        configs = [_one(mesh, shape, statuses) for shape in shapes]
    if mask:
        paths = [path.split(".") for path in mask.split(",") if path]
        configs = [masked(config, paths) for config in configs]
    return {"configs": configs}


def _one(mesh: Mesh, shape: _Shape, statuses: list[ResourceStatus]) -> dict[str, Any]:
    snapshot = mesh.snapshot
    dump: dict[str, Any] = {"@type": _PREFIX + shape.message}
    version = snapshot.versions.get(shape.kind, "")
    if version and shape.kind in (Kind.CLUSTER, Kind.LISTENER):
        dump["version_info"] = version
    static = snapshot.complete
    make = _static if static else _dynamic
    entries = [make(mesh, shape, status) for status in statuses if status.kind is shape.kind]
    if entries:
        dump[shape.static if static else shape.dynamic] = entries
    return dump


def _static(mesh: Mesh, shape: _Shape, status: ResourceStatus) -> dict[str, Any]:
    return {shape.resource: shown(mesh, status), "last_updated": timestamp(status.updated)}


def _dynamic(mesh: Mesh, shape: _Shape, status: ResourceStatus) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    if shape.kind in (Kind.LISTENER, Kind.SECRET):
        entry["name"] = status.name
    good: dict[str, Any] = {}
    if status.version or status.state is ResourceState.ACKED:
        good = {
            "version_info": status.version,
            shape.resource: shown(mesh, status),
            "last_updated": timestamp(status.updated),
        }
    if shape.kind is Kind.LISTENER:
        if good:
            entry["active_state"] = good
    else:
        entry |= good or {shape.resource: _named(status)}
    if status.error is not None:
        entry["error_state"] = _refused(mesh, status)
    entry["client_status"] = status.state.name
    return entry


def _refused(mesh: Mesh, status: ResourceStatus) -> dict[str, Any]:
    """envoy.admin.v3.UpdateFailureState."""
    return {
        "failed_configuration": shown(mesh, status, refused=True),
        "last_update_attempt": timestamp(status.updated),
        "details": str(status.error),
        "version_info": status.error_version,
    }


def shown(mesh: Mesh, status: ResourceStatus, *, refused: bool = False) -> dict[str, Any]:
    """The resource in force, or the version that was refused, with its `@type` and without secrets."""
    data = mesh.encoded(status.kind, status.name, refused=refused)
    return _named(status) if data is None else _decoded(status, data)


def _named(status: ResourceStatus) -> dict[str, Any]:
    field = "cluster_name" if status.kind is Kind.ENDPOINT else "name"
    return {"@type": status.kind.value, field: status.name}


def _decoded(status: ResourceStatus, data: bytes) -> dict[str, Any]:
    try:
        form = proto.to_dict(proto.parse(proto.full_name(status.kind.value), data))
    except (proto.DecodeError, ValueError, TypeError):
        return _named(status)
    found: dict[str, Any] = redact(form)
    return {"@type": status.kind.value, **found}


def masked(value: dict[str, Any], paths: list[list[str]]) -> dict[str, Any]:
    """What the paths name, at any depth; a path through a list means each of its elements. Types of extensions stay."""
    kept: dict[str, Any] = {"@type": value["@type"]} if "@type" in value else {}
    for name, below in _by_first(paths):
        if name not in value:
            continue
        found = value[name]
        if [] in below:
            kept[name] = found
        elif isinstance(found, dict):
            kept[name] = masked(found, below)
        elif isinstance(found, list):
            kept[name] = [masked(item, below) if isinstance(item, dict) else item for item in found]
    return kept


def _by_first(paths: list[list[str]]) -> Iterator[tuple[str, list[list[str]]]]:
    for name in dict.fromkeys(path[0] for path in paths if path):
        yield name, [path[1:] for path in paths if path and path[0] == name]


def timestamp(epoch: float) -> str:
    """google.protobuf.Timestamp as JSON, in milliseconds."""
    moment = dt.datetime.fromtimestamp(epoch, dt.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"
