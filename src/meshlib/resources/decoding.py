"""From protobuf to resources: one entry for all types.

Whatever a control plane sends ends in a Decoded or in a ResourceError, never in another exception.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources.cluster import Cluster
from meshlib.resources.decode_cluster import decode_cluster
from meshlib.resources.decode_endpoint import decode_load_assignment
from meshlib.resources.decode_listener import decode_listener
from meshlib.resources.decode_route import decode_route_configuration
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.listener import Listener
from meshlib.resources.reader import Reader, Reading
from meshlib.resources.route import RouteConfiguration

__all__ = ["Decoded", "Resource", "decode", "decode_any"]

Resource = Listener | RouteConfiguration | Cluster | ClusterLoadAssignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A valid resource.

    unsupported: the paths of fields that are set but not applied, in order, each once. warnings: what is legal but probably
    not meant, one sentence each.
    """

    resource: Resource
    unsupported: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        if isinstance(self.resource, ClusterLoadAssignment):
            return self.resource.cluster_name
        return self.resource.name


_DECODERS: dict[str, tuple[str, Callable[[Reader], Resource]]] = {
    proto.LISTENER: ("name", decode_listener),
    proto.ROUTE: ("name", decode_route_configuration),
    proto.CLUSTER: ("name", decode_cluster),
}


def decode(type_url: str, message: proto.Message) -> Decoded:
    """The resource that message holds. Raises ResourceError, with type_url, name and the path of the field."""
    if type_url == proto.ENDPOINT:
        return decode_any(type_url, message.SerializeToString())
    entry = _DECODERS.get(type_url)
    if entry is None:
        raise _not_used(type_url)
    if proto.full_name(type_url) != message.DESCRIPTOR.full_name:
        reason = f"expected {proto.full_name(type_url)}, got {message.DESCRIPTOR.full_name}"
        raise ResourceError("", reason, type_url=type_url)
    name_field, decoder = entry
    return _guarded(type_url, getattr(message, name_field), lambda reading: decoder(reading.root(message)))


def decode_any(type_url: str, data: bytes, pause: Callable[[], None] | None = None) -> Decoded:
    """As decode, from the bytes of the message (the `value` of the Any in a DiscoveryResponse).

    pause: called now and then while many endpoints are read, so that the thread can let others run.
    """
    if type_url == proto.ENDPOINT:
        step = pause or _no_pause
        return _guarded(type_url, "", lambda reading: decode_load_assignment(data, reading, pause=step), data)
    if type_url not in _DECODERS:
        raise _not_used(type_url)
    try:
        message = proto.parse(proto.full_name(type_url), data)
    except proto.DecodeError:
        reason = f"the bytes are not an encoding of {proto.full_name(type_url)}"
        raise ResourceError("", reason, type_url=type_url) from None
    return decode(type_url, message)


def _guarded(type_url: str, name: str, decoder: Callable[[Reading], Resource], data: bytes = b"") -> Decoded:
    reading = Reading()
    try:
        resource = decoder(reading)
        unsupported = reading.finish()
    except ResourceError as error:
        name = name or _cluster_name(type_url, data)
        raise ResourceError(error.path, error.reason, type_url=type_url, name=name) from None
    except (RecursionError, OverflowError, ValueError) as error:
        reason = f"can't be read: {type(error).__name__}: {error}"
        raise ResourceError("", reason, type_url=type_url, name=name) from error
    return Decoded(resource=resource, unsupported=unsupported, warnings=tuple(reading.warnings))


def _cluster_name(type_url: str, data: bytes) -> str:
    """The name in a ClusterLoadAssignment that could not be decoded, as far as it can be read."""
    if type_url != proto.ENDPOINT:
        return ""
    try:
        shadow = proto.parse("meshlib.shadow.ClusterLoadAssignment", data)
    except proto.DecodeError:
        return ""
    return str(getattr(shadow, "cluster_name", ""))


def _not_used(type_url: str) -> ResourceError:
    return ResourceError("", f"resources of type {type_url!r} are not used", type_url=type_url)


def _no_pause() -> None:
    return
