"""LbEndpoint messages as bytes, read without making a message of each.

Thousands of endpoints share a handful of tails (`endpoint_keys` says what that is), so a tail is parsed once and then recognised.
Whatever looks different is parsed as a message.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources.endpoint import Endpoint, Health
from meshlib.resources.endpoint_keys import is_canonical, keys_of
from meshlib.resources.metadata import (
    NO_METADATA,
    TRANSPORT_SOCKET,
    Scalar,
    SocketMetadata,
    as_python,
    scalars,
)

__all__ = [
    "BAD",
    "LazyEndpoints",
    "Tails",
    "hash_name",
    "parse",
    "socket_metadata",
    "split",
]

BAD = Endpoint("0.0.0.0", 0)  # noqa: S104 - port 0 can't be connected to
"""Stands for an endpoint whose bytes turn out to be wrong after publication; every connection to it fails."""

ReadMessage = Callable[[bytes], tuple[str, int, str]]
"""Reads address, port and hostname of one LbEndpoint of any layout. Raises ResourceError."""

_HEALTH = {
    0: Health.HEALTHY,
    1: Health.HEALTHY,
    2: Health.UNHEALTHY,
    3: Health.DRAINING,
    4: Health.UNHEALTHY,
}
_HEALTH[5] = Health.DEGRADED


def split(item: bytes) -> tuple[bytes, bytes]:
    """Key and tail of an LbEndpoint. The key is empty when the endpoint is not the first field, or 128 bytes or longer."""
    if len(item) < 2 or item[0] != 0x0A or item[1] > 0x7F:
        return b"", _without_endpoint(item)
    end = 2 + item[1]
    return item[:end], item[end:]


@dataclass(frozen=True, slots=True)
class Tail:
    """What follows the key. weight is 0 when it is not given; known: whether the health status is one of Envoy's.

    hash_key: of the metadata, empty when not given. metadata: for the choice of a transport socket. workload: as Endpoint's.
    """

    health: Health
    weight: int
    known: bool
    hash_key: str
    metadata: Mapping[str, Scalar]
    workload: str


class Tails(dict[bytes, Tail]):
    """Every tail that was seen, parsed when it is seen first. Raises ResourceError (path within the LbEndpoint)."""

    __slots__ = ()

    def __missing__(self, tail: bytes) -> Tail:
        message = parse(tail)
        if message.HasField("endpoint"):
            raise ResourceError("endpoint", "is given in two pieces")
        if message.HasField("endpoint_name"):
            raise ResourceError("endpoint_name", "named endpoints are not supported")
        number = message.health_status
        weight = message.load_balancing_weight.value
        if message.HasField("load_balancing_weight") and not weight:
            raise ResourceError("load_balancing_weight", "must be at least 1")
        health = _HEALTH.get(number, Health.HEALTHY)
        metadata = message.metadata
        hash_key, workload = _text(metadata, "envoy.lb", "hash_key"), _text(metadata, "istio", "workload")
        parsed = Tail(health, weight, number in _HEALTH, hash_key, socket_metadata(metadata), workload)
        self[tail] = parsed
        return parsed


class LazyEndpoints(Sequence[Endpoint]):
    """The endpoints of one locality; each is made the first time that it is asked for, and kept. metadata: the locality's.

    An endpoint whose bytes are wrong is BAD (only possible above the number up to which all are checked beforehand).
    """

    __slots__ = ("_made", "_metadata", "_read", "_tails", "items")

    def __init__(
        self,
        items: list[bytes],
        tails: Tails,
        read: ReadMessage,
        metadata: Mapping[str, Scalar] = NO_METADATA,
    ) -> None:
        self.items = items
        self._tails = tails
        self._read = read
        self._metadata = metadata
        self._made: dict[int, Endpoint] = {}

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, index: int) -> Endpoint: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Endpoint]: ...
    def __getitem__(self, index: int | slice) -> Endpoint | Sequence[Endpoint]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self.items))))
        made = self._made.get(index)
        if made is None:
            try:
                made = self.read(index)
            except ResourceError:
                made = BAD
            self._made[index if index >= 0 else index + len(self.items)] = made
        return made

    def read(self, index: int) -> Endpoint:
        """Read the endpoint from its bytes. Raises ResourceError with the path within the LbEndpoint."""
        item = self.items[index]
        key, rest = split(item)
        tail = self._tails[rest]
        metadata = tail.metadata if not self._metadata else SocketMetadata(tail.metadata, self._metadata)
        if not is_canonical(key):
            address, port, hostname = self._read(item)
            weight = tail.weight or 1
            return Endpoint(
                address, port, weight, tail.health, hostname, tail.hash_key, metadata, tail.workload
            )
        length = key[7]
        return Endpoint(
            key[8 : 8 + length].decode("ascii"),
            _varint(key[9 + length :]),
            tail.weight or 1,
            tail.health,
            hash_key=tail.hash_key,
            transport_socket_metadata=metadata,
            workload=tail.workload,
        )

    def labels(self, index: int) -> Mapping[str, Any]:
        """The filter_metadata of the endpoint, read now."""
        return as_python(parse(self.items[index]).metadata)

    def names(self, start: int, stop: int, *, hostnames: bool) -> list[str]:
        """What the endpoints start .. stop-1 are known by to the policies that hash: without making any, where possible.

        That is the hash_key, else `ip:port`, or with `hostnames` the hostname, which may be empty.
        """
        items = self.items[start:stop]
        keys = keys_of(items)
        if keys is None:
            return [hash_name(self[index], hostnames=hostnames) for index in range(start, stop)]
        if hostnames:
            names = [""] * len(keys)
        else:
            names = [f"{key[8 : 8 + key[7]].decode('ascii')}:{_varint(key[9 + key[7] :])}" for key in keys]
        for index, (key, item) in enumerate(zip(keys, items)):
            if len(key) != len(item):
                names[index] = self._tails[item[len(key) :]].hash_key or names[index]
        return names

    def only(self, indexes: Sequence[int]) -> LazyEndpoints:
        """The endpoints at these indexes."""
        return LazyEndpoints(
            [self.items[index] for index in indexes], self._tails, self._read, self._metadata
        )

    def __eq__(self, other: object) -> bool:
        if isinstance(other, LazyEndpoints):
            return self.items == other.items
        return (
            isinstance(other, Sequence)
            and len(other) == len(self)
            and all(a == b for a, b in zip(self, other))
        )

    def __hash__(self) -> int:
        return hash(len(self.items))


def hash_name(endpoint: Endpoint, *, hostnames: bool) -> str:
    """What an endpoint is known by to the policies that hash."""
    return endpoint.hash_key or (endpoint.hostname if hostnames else endpoint.key)


def _varint(octets: bytes) -> int:
    value = shift = 0
    for octet in octets:
        value |= (octet & 0x7F) << shift
        shift += 7
    return value


def _text(metadata: Any, name: str, key: str) -> str:
    """One string of the metadata; a value of another kind is none."""
    if name not in metadata.filter_metadata:
        return ""
    fields = metadata.filter_metadata[name].fields
    return str(fields[key].string_value) if key in fields else ""


def socket_metadata(metadata: Any) -> Mapping[str, Scalar]:
    """What `core.v3.Metadata` says about the transport socket."""
    if TRANSPORT_SOCKET not in metadata.filter_metadata:
        return NO_METADATA
    return scalars(metadata.filter_metadata[TRANSPORT_SOCKET])


def parse(item: bytes) -> Any:
    """An LbEndpoint message. Raises ResourceError."""
    try:
        return proto.parse("envoy.config.endpoint.v3.LbEndpoint", item)
    except proto.DecodeError:
        raise ResourceError("", "not an encoding of an LbEndpoint") from None


def _without_endpoint(item: bytes) -> bytes:
    """The tail of an LbEndpoint whose fields stand in another order."""
    message = parse(item)
    message.ClearField("endpoint")
    return bytes(message.SerializeToString())
