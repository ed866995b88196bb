"""xDS messages from a descriptor set that meshlib carries, in a pool of its own. See :mod:`meshlib.proto.pool`.

cluster = proto.parse("envoy.config.cluster.v3.Cluster", data)
options = proto.unpack(cluster.typed_extension_protocol_options["envoy...HttpProtocolOptions"])
listener = proto.from_dict("envoy.config.listener.v3.Listener", {"name": "web"})
EndpointShadow = proto.message("meshlib.shadow.ClusterLoadAssignment")   # sub-messages stay bytes
"""

from __future__ import annotations

from meshlib.proto.anys import pack, unpack
from meshlib.proto.pool import (
    DecodeError,
    Message,
    MessageClass,
    UnknownType,
    full_name,
    parse,
    type_url,
)
from meshlib.proto.pool import message_class as message
from meshlib.proto.text import FieldError, from_dict, to_dict

LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - the name of a type

__all__ = [
    "CLUSTER",
    "ENDPOINT",
    "LISTENER",
    "ROUTE",
    "SECRET",
    "DecodeError",
    "FieldError",
    "Message",
    "MessageClass",
    "UnknownType",
    "from_dict",
    "full_name",
    "message",
    "pack",
    "parse",
    "to_dict",
    "type_url",
    "unpack",
]
