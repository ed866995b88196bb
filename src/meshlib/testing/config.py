"""Configuration for tests: a control plane from YAML text or dictionaries, and the resources of one service."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from typing import Any

from meshlib import proto
from meshlib.controlplane import ControlPlane, ResourceStore
from meshlib.errors import ConfigError
from meshlib.resources.files import Source, load
from meshlib.resources.yamltext import Text

__all__ = ["messages", "serve", "service"]

_HCM = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


@contextlib.contextmanager
def serve(
    *configuration: str | Path | Mapping[str, Any], listen: str = "127.0.0.1:0"
) -> Iterator[ControlPlane]:
    """A running control plane that serves this configuration; see :func:`messages`.

    What meshlib would refuse is served too, so that a refusal can be tested. ``control_plane.store`` changes what is
    served; ``meshlib.Mesh(bootstrap=control_plane.bootstrap())`` is a client of it.
    """
    with ControlPlane(ResourceStore(messages(*configuration)), listen) as control_plane:
        yield control_plane


def messages(*configuration: str | Path | Mapping[str, Any]) -> list[proto.Message]:
    """The resources, as protobuf messages, of YAML text (a str), files and folders (a Path), resources and documents
    (a mapping).

    Raises:
        ConfigError: with one line for each mistake.
    """
    sources: list[Source] = []
    for item in configuration:
        sources += Text(dedent(item)).documents if isinstance(item, str) else [item]
    config = load(sources)
    if config.problems:
        raise ConfigError("\n".join(map(str, config.problems)))
    return [resource.message for resource in config.resources]


def service(name: str, *addresses: str, listener: str | None = None) -> dict[str, Any]:
    """A document with what a plain service needs: Listener, RouteConfiguration, Cluster and ClusterLoadAssignment.

    name: of the cluster and of the route configuration. addresses: ``ip:port`` of each endpoint. listener: its name,
    which clients ask for; default ``name:80``. Edit the result to make it less plain.
    """
    ads = {"ads": {}, "resource_api_version": "V3"}
    manager = {
        "@type": _HCM,
        "stat_prefix": name,
        "rds": {"route_config_name": name, "config_source": ads},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": _ROUTER}}],
    }
    # grpcio takes no locality without a name, and no endpoint of one without a weight.
    locality = {
        "locality": {"zone": "local"},
        "load_balancing_weight": 1,
        "lb_endpoints": [_endpoint(address) for address in addresses],
    }
    route = {"match": {"prefix": "/"}, "route": {"cluster": name}}
    return {
        "resources": [
            {
                "@type": proto.LISTENER,
                "name": listener or f"{name}:80",
                "api_listener": {"api_listener": manager},
            },
            {
                "@type": proto.ROUTE,
                "name": name,
                "virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}],
            },
            {
                "@type": proto.CLUSTER,
                "name": name,
                "type": "EDS",
                "connect_timeout": "5s",
                "eds_cluster_config": {"eds_config": ads},
            },
            {
                "@type": proto.ENDPOINT,
                "cluster_name": name,
                "endpoints": [locality],
            },
        ]
    }


def _endpoint(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    socket_address = {"address": host.strip("[]"), "port_value": int(port)}
    return {"endpoint": {"address": {"socket_address": socket_address}}}
