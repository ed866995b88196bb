"""Between messages and the dictionaries of YAML and JSON, by protobuf's JSON mapping.

protobuf's own json_format does the conversion. Only when it refuses, the dictionary is walked beside the descriptor to
find which field is at fault, because json_format's own text has no index of a list and no field within an Any.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from google.protobuf import json_format

from meshlib.proto.pool import (
    DecodeError,
    Message,
    MessageClass,
    UnknownType,
    descriptor_set,
    full_name,
    message_class,
    pool,
)

MAX_DEPTH = 100
"""How deep messages may be nested; protobuf's own default."""

_ANY = "google.protobuf.Any"
_OWN_PATH = re.compile(r" at \"?[A-Z]\w*(\.[\w.\[\]\"-]+)?\"?\.?$")
_AS_A_WHOLE = frozenset(
    f"google.protobuf.{name}"
    for name in (
        *("Duration", "Timestamp", "FieldMask", "Struct", "Value", "ListValue", "DoubleValue", "FloatValue"),
        *("Int64Value", "UInt64Value", "Int32Value", "UInt32Value", "BoolValue", "StringValue", "BytesValue"),
    )
)
"""Messages that JSON writes in a form of their own."""


class FieldError(ValueError):
    """A dictionary that is not the JSON form of the message.

    Attributes:
        path: the field at fault, in proto names (``virtual_hosts[2].routes[0].match``); empty for the message itself.
        reason: what is wrong with it.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}" if self.path else self.reason


def from_dict(name: str, value: Mapping[str, Any]) -> Message:
    """The message of this full name from its JSON form; proto and JSON field names are both accepted.

    Raises:
        UnknownType: there is no such message.
        FieldError: a field is unknown or a value does not fit; also for an Any whose ``@type`` is unknown.
    """
    cls = message_class(name)
    try:
        return _parse(cls, value)
    except json_format.ParseError as error:
        raise _locate(cls, value, "", _reason(error)) from None


def to_dict(message: Message) -> Any:
    """The JSON form with proto field names; a dictionary but for Value, ListValue and other well-known types.

    An Any of an unknown type appears as a Struct of its type_url and of its bytes, in hexadecimal.
    """
    try:
        return _print(message)
    except TypeError:
        copy = type(message)()
        copy.CopyFrom(message)
        _replace_unknown(copy)
        return _print(copy)


def _parse(cls: MessageClass, value: Any) -> Message:
    if not _is_object(cls, value):
        raise json_format.ParseError(f"expected a mapping, got {_shown(value)}")
    try:
        return json_format.ParseDict(value, cls(), descriptor_pool=pool(), max_recursion_depth=MAX_DEPTH)
    except json_format.ParseError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError, RecursionError) as error:
        raise json_format.ParseError(f"{type(error).__name__}: {error}") from error


def _is_object(cls: MessageClass, value: Any) -> bool:
    return isinstance(value, Mapping) or cls.DESCRIPTOR.full_name in _AS_A_WHOLE


def _print(message: Message) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=pool())


def _locate(cls: MessageClass, value: Any, path: str, reason: str) -> FieldError:
    """The first field of the dictionary that is at fault; the message itself if each field alone is right."""
    name = cls.DESCRIPTOR.full_name
    if name in _AS_A_WHOLE or not isinstance(value, Mapping):
        return FieldError(path, reason)
    if name == _ANY:
        return _locate_in_any(value, path, reason)
    for key, item in value.items():
        field = _field(cls.DESCRIPTOR, key)
        if field is None:
            return FieldError(_join(path, key), _unknown_field(cls.DESCRIPTOR, key))
        for place, part, alone in _parts(field, item, _join(path, field.name)):
            wrong = _wrong(cls, field, part, alone)
            if wrong is None:
                continue
            if field.message_type is None or part is None:
                return FieldError(place, wrong)
            inner = _value_type(field)
            return FieldError(place, wrong) if inner is None else _locate(inner, part, place, wrong)
    return FieldError(path, reason)


def _locate_in_any(value: Mapping[str, Any], path: str, reason: str) -> FieldError:
    url = value.get("@type")
    if not value:
        return FieldError(path, "expected '@type'")
    if not isinstance(url, str) or not full_name(url):
        return FieldError(
            path, f"no usable '@type' (got {_shown(url)}): write '@type: type.googleapis.com/...'"
        )
    try:
        cls = message_class(full_name(url))
    except UnknownType as unknown:
        return FieldError(_join(path, "@type"), _unknown_type(unknown.type_url))
    if cls.DESCRIPTOR.full_name in _AS_A_WHOLE:
        return FieldError(_join(path, "value"), reason)
    return _locate(cls, {key: item for key, item in value.items() if key != "@type"}, path, reason)


def _parts(field: Any, item: Any, path: str) -> Iterator[tuple[str, Any, Any]]:
    """(path, value, the JSON of the field with this value only) for each element of a field."""
    if _is_repeated(field) and isinstance(item, Mapping) and _is_map(field):
        for key, part in item.items():
            yield f"{path}[{_quoted(key)}]", part, {key: part}
    elif _is_repeated(field) and isinstance(item, list) and not _is_map(field):
        for index, part in enumerate(item):
            yield f"{path}[{index}]", part, [part]
    else:
        yield path, item if not _is_repeated(field) else None, item


def _wrong(cls: MessageClass, field: Any, part: Any, alone: Any) -> str | None:
    try:
        _parse(cls, {field.name: alone})
    except json_format.ParseError as error:
        if field.enum_type is not None and isinstance(part, str):
            return _unknown_value(field.enum_type, part)
        inner = _value_type(field)
        if part is not None and inner is not None and not _is_object(inner, part):
            return f"expected a mapping, got {_shown(part)}"
        return _reason(error)
    return None


def _value_type(field: Any) -> MessageClass | None:
    """The class of a message field, of the elements of a list or of the values of a map; None for a scalar."""
    descriptor = field.message_type
    if _is_map(field):
        descriptor = descriptor.fields_by_name["value"].message_type
    return None if descriptor is None else message_class(descriptor.full_name)


def _is_repeated(field: Any) -> bool:
    known: bool | None = getattr(field, "is_repeated", None)  # protobuf before 6.31 has only the label
    return field.label == field.LABEL_REPEATED if known is None else known


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _field(descriptor: Any, key: Any) -> Any:
    if not isinstance(key, str):
        return None
    return descriptor.fields_by_name.get(key) or descriptor.fields_by_camelcase_name.get(key)


def _unknown_field(descriptor: Any, key: Any) -> str:
    return f"unknown field of {descriptor.full_name}{_suggest(str(key), descriptor.fields_by_name)}"


def _unknown_value(enum: Any, value: str) -> str:
    names = ", ".join(entry.name for entry in enum.values)
    return f"{_shown(value)} is not one of {names}"


def _unknown_type(name: str) -> str:
    known = [item for item in _message_names() if item.rpartition(".")[2] == name.rpartition(".")[2]]
    return f"unknown type {name!r}{_suggest(name, known or _message_names())}"


def _message_names() -> list[str]:
    return [
        f"{file.package}.{message.name}" for file in descriptor_set().file for message in file.message_type
    ]


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _reason(error: Exception) -> str:
    """The innermost part of json_format's message, on one line, without its own path."""
    text = " ".join(str(error).split())
    text = text.rpartition(" field: ")[2]
    return _OWN_PATH.sub("", text).rstrip(".")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _quoted(key: Any) -> str:
    return '"' + str(key).replace('"', '\\"') + '"'


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _replace_unknown(message: Message) -> None:
    """Turn each Any of an unknown type or with undecodable bytes into a printable one, at any depth."""
    if message.DESCRIPTOR.full_name == _ANY:
        _make_printable(message)
        return
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        if _is_map(field):
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    _replace_unknown(value[key])
        elif _is_repeated(field):
            for item in value:
                _replace_unknown(item)
        else:
            _replace_unknown(value)


def _make_printable(any_message: Message) -> None:
    try:
        inner = message_class(full_name(any_message.type_url))()
        inner.ParseFromString(any_message.value)
    except (UnknownType, DecodeError):
        opaque = message_class("google.protobuf.Struct")()
        opaque.update({"type_url": any_message.type_url, "value": any_message.value.hex()})
        any_message.Pack(opaque)
        return
    _replace_unknown(inner)
    any_message.Pack(inner)
