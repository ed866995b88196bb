"""The values of a text format as one function, so that a line costs one call and not one for each operator.

What most formats are made of, attributes of facts and request headers, stands in that function itself; the other operators are
called. It is the same as calling each `Read` in turn, which a test holds against it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from meshlib.observe.access_log.facts import PSEUDO
from meshlib.observe.access_log.operators import TEXT_OPERATORS
from meshlib.resources.format import Operator
from meshlib.routing.format import compile_operator

__all__ = ["compile_values"]

Values = tuple[str | int, ...]

_ATTRIBUTES = {
    "BYTES_RECEIVED": "received",
    "BYTES_SENT": "sent",
    "RESPONSE_CODE": "status",
    "RESPONSE_FLAGS": "flags",
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": "attempts",
}
"""Operators that are an attribute of facts which always has a value."""

_OPTIONAL_ATTRIBUTES = {"PROTOCOL": "protocol", "UPSTREAM_HOST": "endpoint"}
"""Operators that are an attribute of facts."""


def compile_values(operators: Sequence[Operator], missing: str) -> Callable[[Any], Values]:
    """From facts to the value of each operator, `missing` in the place of those that there are none of."""
    names: dict[str, object] = {"missing": missing}
    shown = [_expression(operator, f"read{index}", names) for index, operator in enumerate(operators)]
    source = f"""
def values(facts):
    get = facts.headers.get
    return ({"".join(f"{each}, " for each in shown)})
"""
    # Made of names of ours and of quoted names of headers.
    exec(compile(source, "<access log>", "exec"), names)  # noqa: S102
    found: Any = names["values"]
    return found  # type: ignore[no-any-return]


def _expression(operator: Operator, name: str, names: dict[str, object]) -> str:
    if operator.name == "REQUEST_HEADER" and operator.max_length is None:
        return _header(operator.argument, _header(operator.alternative, "missing"))
    if operator.max_length is None and operator.name in _ATTRIBUTES:
        return f"facts.{_ATTRIBUTES[operator.name]}"
    if operator.max_length is None and operator.name in _OPTIONAL_ATTRIBUTES:
        value = f"facts.{_OPTIONAL_ATTRIBUTES[operator.name]}"
    else:
        names[name] = compile_operator(operator, TEXT_OPERATORS)
        value = f"{name}(facts)"
    return f"(missing if (value := {value}) is None else value)"


def _header(header: str, otherwise: str) -> str:
    if not header:
        return otherwise
    return f"facts.{PSEUDO[header]}" if header in PSEUDO else f"get({header!r}, {otherwise})"
