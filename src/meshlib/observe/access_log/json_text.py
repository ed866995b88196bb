"""JSON as Envoy writes it: compact, members sorted, the shortest form of a number."""

from __future__ import annotations

import json.encoder
from collections.abc import Callable
from typing import Any

__all__ = ["escape_json", "json_text"]

_quoted: Callable[[str], str] = json.encoder.encode_basestring


def json_text(value: Any) -> str:
    """Of None, a bool, a number, a text, a list or a dictionary."""
    if isinstance(value, str):
        return escape_json(value)
    if isinstance(value, dict):
        members = (f"{escape_json(name)}:{json_text(value[name])}" for name in sorted(value, key=str.encode))
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(json_text, value)) + "]"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return _number(value)


def escape_json(value: str) -> str:
    """The value as a JSON string, with its quotes. Bytes that are no UTF-8 are `\\u00ff`, as in Envoy."""
    if value.isascii():
        return _quoted(value)
    try:
        value.encode()
    except UnicodeEncodeError:
        return '"' + "".join(map(_escaped_byte, value.encode("utf-8", "surrogateescape"))) + '"'
    return _quoted(value)


def _escaped_byte(byte: int) -> str:
    return chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\u{byte:04x}"


def _number(value: float) -> str:
    """The shortest way to write it: `1e+06`, as C++'s std::to_chars."""
    if value == 0:
        return "0"
    sign, digits, exponent = "-" if value < 0 else "", *_digits(abs(value))
    point = len(digits) + exponent
    if exponent >= 0:
        fixed = digits + "0" * exponent
    elif point > 0:
        fixed = f"{digits[:point]}.{digits[point:]}"
    else:
        fixed = f"0.{'0' * -point}{digits}"
    fraction = f".{digits[1:]}" if len(digits) > 1 else ""
    scientific = f"{digits[0]}{fraction}e{point - 1:+03d}"
    return sign + (fixed if len(fixed) <= len(scientific) else scientific)


def _digits(value: float) -> tuple[str, int]:
    """The fewest digits that tell the number, and the power of ten that they are multiplied with."""
    mantissa, _, exponent = f"{value!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    stripped = digits.rstrip("0")
    return stripped, int(exponent or 0) - len(fraction) + len(digits) - len(stripped)
