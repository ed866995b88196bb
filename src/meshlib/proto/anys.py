"""google.protobuf.Any of the private pool."""

from __future__ import annotations

from meshlib.proto import text
from meshlib.proto.pool import Message, UnknownType, full_name, message_class, parse, type_url

_TYPED_STRUCTS = frozenset({"xds.type.v3.TypedStruct", "udpa.type.v1.TypedStruct"})


def pack(message: Message) -> Message:
    """An Any that holds the message, encoded with map keys in order, so that equal messages give equal bytes."""
    return message_class("google.protobuf.Any")(
        type_url=type_url(message.DESCRIPTOR.full_name),
        value=message.SerializeToString(deterministic=True),
    )


def unpack(any_message: Message) -> Message:
    """The message in an Any.

    A TypedStruct, the form in which a control plane sends a configuration whose type it does not have, is converted to
    the type that it names, as Envoy does with every ``typed_config``.

    Raises:
        UnknownType: the Any, or the TypedStruct in it, names a type that is not in the descriptor set.
        DecodeError: the bytes are not an encoding of that type.
        FieldError: the TypedStruct has a field or a value that its type does not allow.
    """
    name = full_name(any_message.type_url)
    if not name:
        raise UnknownType(any_message.type_url)
    message = parse(name, any_message.value)
    if name not in _TYPED_STRUCTS:
        return message
    inner = full_name(message.type_url)
    if not inner:
        raise UnknownType(message.type_url)
    return text.from_dict(inner, text.to_dict(message.value))
