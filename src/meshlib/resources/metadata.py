"""Metadata: what decides how an endpoint is connected to (`envoy.transport_socket_match` of an endpoint and of its locality), and
what is kept for access logs."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from meshlib import proto

__all__ = [
    "NO_METADATA",
    "TRANSPORT_SOCKET",
    "Other",
    "Scalar",
    "SocketMetadata",
    "as_python",
    "contains",
    "packed",
    "plain",
    "scalars",
    "unpacked",
    "value_of",
]

TRANSPORT_SOCKET = "envoy.transport_socket_match"
"""The key of filter_metadata."""


class Other(str):
    """A null, a list or a struct, as canonical JSON."""

    __slots__ = ()


Scalar: TypeAlias = str | float | bool | Other
"""A google.protobuf.Value. Two are equal when their types and their values are (1 is not true)."""

NO_METADATA: Mapping[str, Scalar] = MappingProxyType({})
"""The shared mapping of whatever has no metadata."""


class SocketMetadata(dict[str, Scalar]):
    """The metadata of an endpoint, and in `locality` that of its locality, which counts when the endpoint's matches nothing."""

    __slots__ = ("locality",)

    def __init__(self, own: Mapping[str, Scalar], locality: Mapping[str, Scalar] = NO_METADATA) -> None:
        super().__init__(own)
        self.locality = locality

    def __bool__(self) -> bool:
        return len(self) > 0 or len(self.locality) > 0

    def __eq__(self, other: object) -> bool:
        return dict.__eq__(self, other) is True and self.locality == getattr(other, "locality", NO_METADATA)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None


def contains(metadata: Mapping[str, Scalar], labels: Mapping[str, Scalar]) -> bool:
    """Whether metadata has all labels with equal values; always when there are no labels, as in Envoy."""
    for key, value in labels.items():
        found = metadata.get(key)
        if type(found) is not type(value) or found != value:
            return False
    return True


def scalars(struct: Any) -> Mapping[str, Scalar]:
    """The fields of a google.protobuf.Struct."""
    if not struct.fields:
        return NO_METADATA
    return MappingProxyType({key: value_of(struct.fields[key]) for key in sorted(struct.fields)})


def value_of(value: Any) -> Scalar:
    """A google.protobuf.Value."""
    kind = value.WhichOneof("kind")
    if kind == "string_value":
        return str(value.string_value)
    if kind == "number_value":
        return float(value.number_value)
    if kind == "bool_value":
        return bool(value.bool_value)
    return Other(json.dumps(plain(value), sort_keys=True))


def plain(value: Any) -> Any:
    """A google.protobuf.Value as Python has it."""
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return {key: plain(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [plain(item) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


def packed(metadata: Any) -> bytes:
    """A core.v3.Metadata as `unpacked` takes it, for what is rarely asked for; empty without filter_metadata."""
    return bytes(metadata.SerializeToString(deterministic=True)) if metadata.filter_metadata else b""


@functools.lru_cache(maxsize=4096)
def unpacked(data: bytes) -> Mapping[str, Any]:
    """Its filter_metadata as Python has it. Not to be changed."""
    return as_python(proto.parse("envoy.config.core.v3.Metadata", data))


def as_python(metadata: Any) -> Mapping[str, Any]:
    """The filter_metadata of a core.v3.Metadata."""
    return {
        name: {key: plain(value) for key, value in struct.fields.items()}
        for name, struct in metadata.filter_metadata.items()
    }
