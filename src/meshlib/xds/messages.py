"""The two messages of an ADS stream: from a Request to bytes, and from bytes to a Response."""

from __future__ import annotations

from dataclasses import dataclass

from meshlib import __version__, proto
from meshlib.errors import ControlPlaneError, ResourceError
from meshlib.xds.ack import Request
from meshlib.xds.bootstrap import Node

__all__ = ["Packed", "Response", "describe_node", "encode", "parse", "peek_name"]

DISCOVERY_REQUEST = "envoy.service.discovery.v3.DiscoveryRequest"
DISCOVERY_RESPONSE = "envoy.service.discovery.v3.DiscoveryResponse"
WRAPPER = "envoy.service.discovery.v3.Resource"
INVALID_ARGUMENT = 3
CLIENT_FEATURES = ("xds.config.resource-in-sotw",)


@dataclass(frozen=True, slots=True)
class Packed:
    """One resource of a response, not yet decoded.

    name: as far as it can be told without decoding, else None. error: why there is nothing to decode.
    """

    name: str | None
    data: bytes
    error: ResourceError | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """A DiscoveryResponse."""

    type_url: str
    version: str
    nonce: str
    resources: tuple[Packed, ...]


def encode(request: Request, node: Node) -> bytes:
    """The bytes of the DiscoveryRequest; the node is in the first one of a stream only."""
    message = proto.message(DISCOVERY_REQUEST)(
        type_url=request.type_url,
        version_info=request.version,
        response_nonce=request.nonce,
        resource_names=request.names,
    )
    if request.error is not None:
        message.error_detail.code = INVALID_ARGUMENT
        message.error_detail.message = request.error
    if request.first:
        message.node.CopyFrom(describe_node(node, *CLIENT_FEATURES))
    encoded: bytes = message.SerializeToString()
    return encoded


def parse(data: bytes) -> Response:
    """Read a DiscoveryResponse; resources wrapped in a `Resource` are unwrapped.

    Raises:
        ControlPlaneError: the bytes are not a DiscoveryResponse.
    """
    try:
        message = proto.parse(DISCOVERY_RESPONSE, data)
    except proto.DecodeError:
        raise ControlPlaneError("the control plane sent bytes that are not a DiscoveryResponse") from None
    packed = tuple(_unwrap(item.type_url, item.value, message.type_url) for item in message.resources)
    return Response(message.type_url, message.version_info, message.nonce, packed)


def peek_name(data: bytes) -> str | None:
    """The name of an encoded resource, when it stands first, as every encoder in use puts it.

    Field 1 of all four types is their name. It is a hint: the decoded resource is the authority.
    """
    if len(data) < 2 or data[0] != 0x0A:
        return None
    length, shift, position = 0, 0, 1
    while position < len(data) and shift < 21:
        byte = data[position]
        position += 1
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            name = data[position : position + length]
            try:
                return name.decode() or None if len(name) == length else None
            except UnicodeDecodeError:
                return None
    return None


def _unwrap(type_url: str, data: bytes, expected: str) -> Packed:
    name: str | None = None
    if proto.full_name(type_url) == WRAPPER:
        try:
            wrapper = proto.parse(WRAPPER, data)
        except proto.DecodeError:
            return Packed(None, b"", ResourceError("", f"the bytes are not a {WRAPPER}", type_url=expected))
        name, type_url, data = wrapper.name or None, wrapper.resource.type_url, wrapper.resource.value
    if name is None:
        name = peek_name(data)
    if type_url != expected:
        reason = f"is a {type_url!r} in a response of type {expected!r}"
        return Packed(name, b"", ResourceError("", reason, type_url=expected, name=name or ""))
    return Packed(name, data)


def describe_node(node: Node, *features: str) -> proto.Message:
    """The Node of a stream's first request. features: what the client can do, in the protocol of the stream."""
    message = proto.from_dict("envoy.config.core.v3.Node", {"metadata": dict(node.metadata)})
    message.id, message.cluster = node.id, node.cluster
    if node.region or node.zone or node.sub_zone:
        message.locality.region = node.region
        message.locality.zone = node.zone
        message.locality.sub_zone = node.sub_zone
    message.user_agent_name = "meshlib"
    message.user_agent_version = __version__
    message.client_features.extend(features)
    return message
