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
from meshlib.resources.decode_secret import decode_secret
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.inbound import InboundListener
from meshlib.resources.listener import Listener
from meshlib.resources.reader import Reader, Reading
from meshlib.resources.route import RouteConfiguration
from meshlib.resources.secret import Secret

__all__ = ["Decoded", "Resource", "decode", "decode_any"]

Resource = Listener | InboundListener | RouteConfiguration | Cluster | ClusterLoadAssignment | Secret


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


_DECODERS: dict[str, Callable[[Reader], Resource]] = {
    proto.LISTENER: decode_listener,
    proto.ROUTE: decode_route_configuration,
    proto.CLUSTER: decode_cluster,
    proto.SECRET: decode_secret,
}
_TYPES = frozenset({*_DECODERS, proto.ENDPOINT})

Pause = Callable[[], None]


def decode(type_url: str, message: proto.Message, pause: Pause | None = None) -> Decoded:
    """The resource that message holds. Raises ResourceError, with type_url, name and the path of the field.

    pause: called now and then while a large resource is read, so that the thread can let others run.
    """
    if type_url not in _TYPES:
        raise _not_used(type_url)
    if proto.full_name(type_url) != message.DESCRIPTOR.full_name:
        reason = f"expected {proto.full_name(type_url)}, got {message.DESCRIPTOR.full_name}"
        raise ResourceError("", reason, type_url=type_url)
    if type_url == proto.ENDPOINT:
        return decode_any(type_url, message.SerializeToString(), pause)
    decoder = _DECODERS[type_url]
    name: str = getattr(message, "name", "")
    return _guarded(type_url, lambda: name, lambda reading: decoder(reading.root(message)), pause)


def decode_any(type_url: str, data: bytes, pause: Pause | None = None) -> Decoded:
    """As decode, from the bytes of the message (the `value` of the Any in a DiscoveryResponse)."""
    if type_url not in _TYPES:
        raise _not_used(type_url)
    if type_url == proto.ENDPOINT:
        return _guarded(
            type_url,
            lambda: _cluster_name(data),
            lambda reading: decode_load_assignment(data, reading),
            pause,
        )
    try:
        message = proto.parse(proto.full_name(type_url), data)
    except proto.DecodeError:
        reason = f"the bytes are not an encoding of {proto.full_name(type_url)}"
        raise ResourceError("", reason, type_url=type_url) from None
    return decode(type_url, message, pause)


def _guarded(
    type_url: str, name: Callable[[], str], decoder: Callable[[Reading], Resource], pause: Pause | None
) -> Decoded:
    reading = Reading() if pause is None else Reading(pause)
    try:
        resource = decoder(reading)
        unsupported = reading.finish()
    except ResourceError as error:
        raise ResourceError(error.path, error.reason, type_url=type_url, name=name()) from None
    except (RecursionError, OverflowError, ValueError) as error:
        reason = f"can't be read: {type(error).__name__}: {error}"
        raise ResourceError("", reason, type_url=type_url, name=name()) from error
    return Decoded(resource=resource, unsupported=unsupported, warnings=tuple(reading.warnings))


def _cluster_name(data: bytes) -> str:
    """The name in a ClusterLoadAssignment that could not be decoded, as far as it can be read."""
    try:
        shadow = proto.parse("meshlib.shadow.ClusterLoadAssignment", data)
    except proto.DecodeError:
        return ""
    return str(getattr(shadow, "cluster_name", ""))


def _not_used(type_url: str) -> ResourceError:
    return ResourceError("", f"resources of type {type_url!r} are not used", type_url=type_url)
