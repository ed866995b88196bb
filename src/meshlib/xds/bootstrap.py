"""gRPC's bootstrap: which control plane, who we are, and how a host becomes the name of a Listener.

The JSON is that of gRFC A27 with A29 and A87 (certificate providers), A36 (listeners of servers), A47 (authorities, templates),
A53 (server features) and A65 (the `tls` channel credentials). One field is our own: `sds_clusters` says how the SDS servers are
reached that resources name as `envoy_grpc` clusters, which Envoy would have in its own bootstrap.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeAlias
from urllib.parse import quote

from meshlib.errors import ConfigError
from meshlib.runtime.stream import ChannelCredentials

__all__ = ["Bootstrap", "Node", "XdsServer", "load", "parse"]

ENV_FILE = "GRPC_XDS_BOOTSTRAP"
ENV_TEXT = "GRPC_XDS_BOOTSTRAP_CONFIG"

RELAY_NODE = "meshlib-relay"
"""The node id of a bootstrap that is no control plane's: see `is_of_a_relay`."""


Json: TypeAlias = Mapping[str, Any]
NOTHING: Json = MappingProxyType({})

_CREDENTIALS = ("insecure", "tls")
_TLS_FILES = ("ca_certificate_file", "certificate_file", "private_key_file")
_FEATURES = frozenset({"xds_v3", "ignore_resource_deletion"})
_MISSING = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class XdsServer:
    """One control plane. server_uri: any target of gRPC (`host:port`, `dns:///...`, `unix:///...`).

    features: as written. `ignore_resource_deletion` keeps listeners and clusters that a response does not name (gRFC A53).
    """

    server_uri: str
    credentials: ChannelCredentials
    features: frozenset[str] = frozenset()

    @property
    def ignore_resource_deletion(self) -> bool:
        return "ignore_resource_deletion" in self.features


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who asks (config.core.v3.Node)."""

    id: str = ""
    cluster: str = ""
    region: str = ""
    zone: str = ""
    sub_zone: str = ""
    metadata: Json = field(default_factory=lambda: NOTHING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bootstrap:
    """A validated bootstrap.

    servers: never empty; the first one is used. listener_template: `%s` stands for the host, or the target.
    server_listener_template: `%s` stands for the address that a server listens on; empty when not given. sds_clusters: SDS
    servers by the name of the cluster that resources give them.
    authorities, certificate_providers: as written. unsupported: paths of what is understood but not applied.
    """

    servers: tuple[XdsServer, ...]
    node: Node = Node()
    listener_template: str = "%s"
    authorities: Json = field(default_factory=lambda: NOTHING)
    certificate_providers: Json = field(default_factory=lambda: NOTHING)
    server_listener_template: str = ""
    sds_clusters: Mapping[str, XdsServer] = field(default_factory=lambda: NOTHING)
    unsupported: tuple[str, ...] = ()

    @property
    def server(self) -> XdsServer:
        return self.servers[0]

    def listener_name(self, target: str) -> str:
        """The name of the Listener to ask for; an xdstp template gets the target percent-encoded (gRFC A47)."""
        if self.listener_template == "%s":
            return target
        if self.listener_template.startswith("xdstp:"):
            target = quote(target, safe="/-._~!$&'()*+,;=:@")
        return self.listener_template.replace("%s", target)

    def server_listener_name(self, address: str) -> str:
        """The name of the Listener of a server on this address (`ip:port`); the address itself without a template (gRFC A36)."""
        template = self.server_listener_template
        if not template:
            return address
        if template.startswith("xdstp:"):
            address = quote(address, safe="/-._~!$&'()*+,;=:@")
        return template.replace("%s", address)


def load(
    source: Json | str | os.PathLike[str] | None = None,
    *,
    server_uri: str | None = None,
    node_id: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Bootstrap:
    """The bootstrap from a dict, a file, keyword arguments or the environment, in this order.

    server_uri makes a bootstrap with an insecure channel; node_id replaces the id of whatever was found. The environment is
    read as gRPC does: GRPC_XDS_BOOTSTRAP names a file, otherwise GRPC_XDS_BOOTSTRAP_CONFIG holds the JSON.

    Raises:
        ConfigError: there is none, it can't be read, or a field is wrong; the text says which and what to do.
    """
    environ = os.environ if environ is None else environ
    if source is not None and server_uri is not None:
        raise ConfigError("give either bootstrap= or server_uri=, not both")
    if server_uri is not None:
        plain = {"server_uri": server_uri, "channel_creds": [{"type": "insecure"}]}
        return parse({"xds_servers": [plain], "node": {"id": node_id or ""}}, "server_uri=")
    if isinstance(source, Mapping):
        return parse(_with_id(source, node_id), "bootstrap")
    if source is not None:
        return _from_file(Path(source), str(source), node_id)
    if path := environ.get(ENV_FILE):
        return _from_file(Path(path), f"{path} (from {ENV_FILE})", node_id)
    if (text := environ.get(ENV_TEXT)) and not is_of_a_relay(text):
        return parse(_with_id(_from_json(text, ENV_TEXT), node_id), ENV_TEXT)
    raise ConfigError(
        f"no control plane is given: set {ENV_FILE} (a file) or {ENV_TEXT} (the JSON itself), or pass bootstrap= or "
        "server_uri= to Mesh, or config= for a Mesh without a control plane"
    )


def is_of_a_relay(text: str) -> bool:
    """Whether it is what gRPC channels with tls="relay" have put into ENV_TEXT, of this process or of the one that started it.

    It is for C-core, and leads to no control plane.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    node = found.get("node") if isinstance(found, Mapping) else None
    return isinstance(node, Mapping) and node.get("id") == RELAY_NODE


def parse(value: Json, where: str = "bootstrap") -> Bootstrap:
    """Validate the JSON form. where: what to call it in an error.

    Raises:
        ConfigError: as for `load`.
    """
    root = _Object(value, where, "")
    entries = root.objects("xds_servers")
    if not entries:
        raise root.error(
            "xds_servers", 'is missing or empty: give [{"server_uri": ..., "channel_creds": [...]}]'
        )
    unsupported: list[str] = []
    servers = tuple(_server(entry, unsupported) for entry in entries)
    unsupported += [f"xds_servers[{index}]" for index in range(1, len(servers))]
    authorities = root.mapping("authorities")
    unsupported += [f"authorities[{json.dumps(name)}]" for name in authorities]
    template = root.text("client_default_listener_resource_name_template", "%s") or "%s"
    if "%s" not in template:
        raise root.error(
            "client_default_listener_resource_name_template",
            "has no %s: every host would get the same Listener",
        )
    return Bootstrap(
        servers=servers,
        node=_node(root.object("node")),
        listener_template=template,
        authorities=authorities,
        certificate_providers=root.mapping("certificate_providers"),
        server_listener_template=root.text("server_listener_resource_name_template"),
        sds_clusters=_sds_clusters(root.object("sds_clusters")),
        unsupported=tuple(unsupported),
    )


def _server(entry: _Object, unsupported: list[str]) -> XdsServer:
    uri = entry.text("server_uri")
    if not uri:
        raise entry.error(
            "server_uri", "is missing: give the control plane's address, such as 127.0.0.1:18000"
        )
    features = frozenset(entry.texts("server_features"))
    unsupported += [f"{entry.path}.server_features: {name}" for name in sorted(features - _FEATURES)]
    if entry.value.get("call_creds"):
        unsupported.append(f"{entry.path}.call_creds")
    return XdsServer(server_uri=uri, credentials=_credentials(entry), features=features)


def _credentials(entry: _Object) -> ChannelCredentials:
    offered = entry.objects("channel_creds")
    for item in offered:
        kind = item.text("type")
        if kind not in _CREDENTIALS:
            continue
        if kind == "insecure":
            return ChannelCredentials(kind=kind)
        config = item.object("config")
        files: dict[str, Any] = {name: config.text(name) or None for name in _TLS_FILES}
        if (files["certificate_file"] is None) != (files["private_key_file"] is None):
            raise config.error("", "certificate_file and private_key_file belong together: give both or none")
        return ChannelCredentials(kind=kind, **files)
    names = ", ".join(repr(item.value.get("type")) for item in offered) or "nothing"
    raise entry.error(
        "channel_creds",
        f"offers {names}; meshlib knows {' and '.join(map(repr, _CREDENTIALS))}: add one of them",
    )


def _sds_clusters(entries: _Object) -> Mapping[str, XdsServer]:
    ignored: list[str] = []
    found = {name: _server(entries.object(name), ignored) for name in entries.value}
    return MappingProxyType(found)


def _node(node: _Object) -> Node:
    locality = node.object("locality")
    return Node(
        id=node.text("id"),
        cluster=node.text("cluster"),
        region=locality.text("region"),
        zone=locality.text("zone"),
        sub_zone=locality.text("sub_zone"),
        metadata=node.mapping("metadata"),
    )


def _from_file(path: Path, where: str, node_id: str | None) -> Bootstrap:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"bootstrap {where} can't be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"bootstrap {where} is not UTF-8: {error}") from error
    return parse(_with_id(_from_json(text, where), node_id), where)


def _from_json(text: str, where: str) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        hint = ""
        if re.match(r"\s*[\w./-]+\.json\s*$", text):
            hint = f" (a file name? then use {ENV_FILE})"
        raise ConfigError(f"{where}: not JSON: {error}{hint}") from error
    if not isinstance(value, dict):
        raise ConfigError(
            f"{where}: expected an object with xds_servers and node, got {type(value).__name__}"
        )
    return value


def _with_id(value: Json, node_id: str | None) -> Json:
    if node_id is None:
        return value
    node = value.get("node")
    return {**value, "node": {**(node if isinstance(node, Mapping) else {}), "id": node_id}}


class _Object:
    """A JSON object with its place, so that an error can name the field."""

    def __init__(self, value: Json, where: str, path: str) -> None:
        self.value = value
        self.where = where
        self.path = path

    def error(self, name: str, reason: str) -> ConfigError:
        return ConfigError(f"{self.where}: {self._place(name)}: {reason}")

    def text(self, name: str, default: str = "") -> str:
        value = self._get(name, str, "a string")
        return default if value is _MISSING else value

    def mapping(self, name: str) -> Json:
        value = self._get(name, Mapping, "an object")
        return NOTHING if value is _MISSING else MappingProxyType(dict(value))

    def object(self, name: str) -> _Object:
        return _Object(self.mapping(name), self.where, self._place(name))

    def objects(self, name: str) -> list[_Object]:
        found = []
        for index, item in enumerate(self._list(name)):
            place = f"{name}[{index}]"
            if not isinstance(item, Mapping):
                raise self.error(place, f"expected an object, got {json.dumps(item, default=repr)}")
            found.append(_Object(item, self.where, self._place(place)))
        return found

    def texts(self, name: str) -> list[str]:
        found = self._list(name)
        for index, item in enumerate(found):
            if not isinstance(item, str):
                raise self.error(
                    f"{name}[{index}]", f"expected a string, got {json.dumps(item, default=repr)}"
                )
        return found

    def _list(self, name: str) -> list[Any]:
        value = self._get(name, (list, tuple), "a list")
        return [] if value is _MISSING else list(value)

    def _get(self, name: str, kind: Any, words: str) -> Any:
        value = self.value.get(name)
        if value is None:
            return _MISSING
        if not isinstance(value, kind):
            raise self.error(name, f"expected {words}, got {json.dumps(value, default=repr)}")
        return value

    def _place(self, name: str) -> str:
        return ".".join(part for part in (self.path, name) if part)
