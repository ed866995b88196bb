"""Resources written as dictionaries, the JSON form of xDS."""

from __future__ import annotations

from typing import Any

import pytest

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources import Decoded, decode
from meshlib.resources.cluster import Cluster
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.listener import Listener
from meshlib.resources.route import Route, RouteConfiguration

TYPES = "type.googleapis.com/"
EXTENSIONS = TYPES + "envoy.extensions."
ROUTER: dict[str, Any] = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": EXTENSIONS + "filters.http.router.v3.Router"},
}


def decoded(type_url: str, value: dict[str, Any]) -> Decoded:
    return decode(type_url, proto.from_dict(proto.full_name(type_url), value))


def refused(type_url: str, value: dict[str, Any]) -> ResourceError:
    with pytest.raises(ResourceError) as caught:
        decoded(type_url, value)
    assert caught.value.type_url == type_url
    assert caught.value.reason
    return caught.value


def routes_config(*routes: dict[str, Any], **fields: Any) -> dict[str, Any]:
    host = {"name": "v", "domains": ["*"], "routes": list(routes)}
    return {"name": "rc", "virtual_hosts": [host], **fields}


def route_config(**fields: Any) -> dict[str, Any]:
    """A RouteConfiguration with one route, which has these fields besides a match and an action."""
    route: dict[str, Any] = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, **fields}
    return routes_config({key: value for key, value in route.items() if value is not None})


def decode_routes(value: dict[str, Any]) -> RouteConfiguration:
    resource = decoded(proto.ROUTE, value).resource
    assert isinstance(resource, RouteConfiguration)
    return resource


def decode_one_route(**fields: Any) -> Route:
    return decode_routes(route_config(**fields)).virtual_hosts[0].routes[0]


def decode_cluster(**fields: Any) -> Cluster:
    resource = decoded(proto.CLUSTER, {"name": "c", **fields}).resource
    assert isinstance(resource, Cluster)
    return resource


def decode_assignment(value: dict[str, Any]) -> ClusterLoadAssignment:
    resource = decoded(proto.ENDPOINT, value).resource
    assert isinstance(resource, ClusterLoadAssignment)
    return resource


def decode_listener(value: dict[str, Any]) -> Listener:
    resource = decoded(proto.LISTENER, value).resource
    assert isinstance(resource, Listener)
    return resource


def manager(**fields: Any) -> dict[str, Any]:
    content = {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "s",
        "route_config": routes_config({"match": {"prefix": "/"}, "route": {"cluster": "c"}}),
        "http_filters": [ROUTER],
        **fields,
    }
    return {key: value for key, value in content.items() if value is not None}


def api_listener(**fields: Any) -> dict[str, Any]:
    return {"name": "l", "api_listener": {"api_listener": manager(**fields)}}


def socket_listener(**fields: Any) -> dict[str, Any]:
    filters = [{"name": "http", "typed_config": manager(**fields)}]
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    return {"name": "l", "address": address, "filter_chains": [{"filters": filters}]}


def endpoint(address: str = "127.0.0.1", port: int = 80, **fields: Any) -> dict[str, Any]:
    socket_address = {"address": address, "port_value": port}
    return {"endpoint": {"address": {"socket_address": socket_address}}, **fields}


def locality(*endpoints: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"lb_endpoints": list(endpoints), **fields}


def assignment(*localities: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"cluster_name": "c", "endpoints": list(localities), **fields}
