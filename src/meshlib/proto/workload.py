"""The messages of the SPIFFE Workload API, in a pool of their own.

The API's file has no package, so its messages are called `X509SVIDResponse` and not `spiffe.workload.X509SVIDResponse`; in
protobuf's default pool they would collide with the generated modules of any SPIFFE library. The schema is the table below;
field numbers and types are those of the SPIFFE Workload API specification.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

from meshlib.proto.pool import Message, MessageClass

__all__ = ["SECURITY_HEADER", "SERVICE", "message", "parse"]

SERVICE = "SpiffeWorkloadAPI"
"""The gRPC service; methods are `/SpiffeWorkloadAPI/FetchX509SVID` and so on."""

SECURITY_HEADER = ("workload.spiffe.io", "true")
"""Metadata that every request must carry, so that a request that was forwarded fetches no keys (SPIFFE Workload Endpoint)."""

_FILE = "meshlib/workload.proto"

_SCHEMA: dict[str, tuple[tuple[str, int, str], ...]] = {
    "X509SVIDRequest": (),
    "X509SVID": (
        ("spiffe_id", 1, "string"),
        ("x509_svid", 2, "bytes"),
        ("x509_svid_key", 3, "bytes"),
        ("bundle", 4, "bytes"),
        ("hint", 5, "string"),
    ),
    "X509SVIDResponse": (
        ("svids", 1, "repeated X509SVID"),
        ("crl", 2, "repeated bytes"),
        ("federated_bundles", 3, "map"),
    ),
    "X509BundlesRequest": (),
    "X509BundlesResponse": (("crl", 1, "repeated bytes"), ("bundles", 2, "map")),
    "JWTSVIDRequest": (("audience", 1, "repeated string"), ("spiffe_id", 2, "string")),
    "JWTSVID": (("spiffe_id", 1, "string"), ("svid", 2, "string"), ("hint", 3, "string")),
    "JWTSVIDResponse": (("svids", 1, "repeated JWTSVID"),),
    "JWTBundlesRequest": (),
    "JWTBundlesResponse": (("bundles", 1, "map"),),
    "ValidateJWTSVIDRequest": (("audience", 1, "string"), ("svid", 2, "string")),
    "ValidateJWTSVIDResponse": (("spiffe_id", 1, "string"), ("claims", 2, "google.protobuf.Struct")),
}
"""Message -> (field, number, type); `map` is `map<string, bytes>`, the only kind of map there is."""

_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {"string": _Field.TYPE_STRING, "bytes": _Field.TYPE_BYTES}

_built: dict[str, tuple[Any, dict[str, MessageClass]]] = {}
"""The pool and its classes, held for ever (see meshlib.proto.pool)."""


def message(name: str) -> MessageClass:
    """The class of a message of the Workload API. Raises KeyError for a name that it does not have."""
    built = _built.get("")
    return (built if built is not None else _built.setdefault("", _build()))[1][name]


def parse(name: str, data: bytes) -> Message:
    """Decode bytes as this message. Raises :class:`meshlib.proto.DecodeError`."""
    return message(name).FromString(data)


def _build() -> tuple[Any, dict[str, MessageClass]]:
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, syntax="proto3")
    file.dependency.append(struct_pb2.DESCRIPTOR.name)
    for name, fields in _SCHEMA.items():
        owner = file.message_type.add(name=name)
        for field in fields:
            _add(owner, *field)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    messages = pool.FindFileByName(_FILE).message_types_by_name
    return pool, {name: message_factory.GetMessageClass(messages[name]) for name in _SCHEMA}


def _add(owner: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    repeated, _, inner = kind.rpartition(" ")
    field = owner.field.add(name=name, number=number)
    field.label = _Field.LABEL_REPEATED if repeated or kind == "map" else _Field.LABEL_OPTIONAL
    if kind == "map":
        inner = "".join(part.capitalize() for part in name.split("_")) + "Entry"
        entry = owner.nested_type.add(name=inner)
        entry.options.map_entry = True
        _add(entry, "key", 1, "string")
        _add(entry, "value", 2, "bytes")
        inner = f"{owner.name}.{inner}"
    if inner in _SCALARS:
        field.type = _SCALARS[inner]
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{inner}"
