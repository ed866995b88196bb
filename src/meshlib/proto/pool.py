"""The private DescriptorPool: every xDS message class of meshlib comes from here.

The classes of an installed xds-protos, googleapis-common-protos or opentelemetry-proto live in protobuf's default pool
and are never touched, so none of them can conflict with ours, whatever is installed and in whatever order. The pool is
built at first use (about 8 ms). There is no lock, which a fork could leave locked: two threads that come first at the
same time both build a pool, and one of the two is published.

protobuf keeps the Python class of a message by a weak reference and makes it anew after it was collected. While the
collector takes it apart, a thread that finds it there crashes the process. So no class of ours is ever collected: every
message's descriptor is held, and each holds its class once there is one (1 ms and 130 kB for all 1,200).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from importlib import resources
from typing import Any, TypeAlias

from google.protobuf import (
    any_pb2,
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    message,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)

Message: TypeAlias = Any
"""A message of the private pool. protobuf itself checks field names and types when they are used."""

MessageClass: TypeAlias = Any
"""The class of such a message: callable with keyword arguments, with ``FromString`` and ``DESCRIPTOR``."""

DecodeError = message.DecodeError
"""Raised when bytes are not an encoding of the message."""

TYPE_URL_PREFIX = "type.googleapis.com/"

_WELL_KNOWN = (
    descriptor_pb2,
    any_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)

_pools: dict[str, tuple[Any, list[Any]]] = {}
"""The pool, and the descriptors of all its messages."""

_classes: dict[str, MessageClass] = {}


class UnknownType(LookupError):
    """No message of this type is known.

    Attributes:
        type_url: what was asked for, as it was written.
    """

    def __init__(self, type_url: str) -> None:
        super().__init__(type_url)
        self.type_url = type_url

    def __str__(self) -> str:
        return f"unknown type {self.type_url!r}"


def descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """The files of descriptors.bin, imports before importers; google/protobuf/* is not among them."""
    compressed = resources.files("meshlib.proto").joinpath("descriptors.bin").read_bytes()
    return descriptor_pb2.FileDescriptorSet.FromString(zlib.decompress(compressed))


def pool() -> Any:
    """The private DescriptorPool, built at the first call."""
    built = _pools.get("")
    return (built if built is not None else _pools.setdefault("", _build()))[0]


def _build() -> tuple[Any, list[Any]]:
    built = descriptor_pool.DescriptorPool()
    names = []
    for module in _WELL_KNOWN:
        built.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
        names.append(module.DESCRIPTOR.name)
    for file in descriptor_set().file:
        built.AddSerializedFile(file.SerializeToString())
        names.append(file.name)
    return built, [
        descriptor
        for name in names
        for descriptor in _with_nested(built.FindFileByName(name).message_types_by_name.values())
    ]


def _with_nested(descriptors: Iterable[Any]) -> Iterator[Any]:
    for descriptor in descriptors:
        yield descriptor
        yield from _with_nested(descriptor.nested_types)


def message_class(full_name: str) -> MessageClass:
    """The class of a message, by its full name (``envoy.config.cluster.v3.Cluster``); cached.

    Raises:
        UnknownType: the descriptor set has no such message.
    """
    known = _classes.get(full_name)
    if known is not None:
        return known
    try:
        descriptor = pool().FindMessageTypeByName(full_name)
    except KeyError:
        raise UnknownType(full_name) from None
    return _classes.setdefault(full_name, message_factory.GetMessageClass(descriptor))


def parse(full_name: str, data: bytes) -> Message:
    """Decode bytes as the message with this full name.

    Raises:
        UnknownType: no such message.
        DecodeError: the bytes are not an encoding of it.
    """
    return message_class(full_name).FromString(data)


def type_url(full_name: str) -> str:
    """``type.googleapis.com/`` and the name."""
    return TYPE_URL_PREFIX + full_name


def full_name(url: str) -> str:
    """What follows the last slash of a type URL (protobuf's rule for Any)."""
    return url.rpartition("/")[2]
