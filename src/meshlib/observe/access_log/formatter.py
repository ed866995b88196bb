"""Formats compiled into functions of facts: a line of text, a line of JSON, or the fields of a record.

As Envoy writes them (1.40): missing values are `-` in text and in what a JSON text is mixed of, `null` where a JSON text is one
operator alone, whose number stays a number. With omit_empty they are nothing, and members of JSON objects without a value are
left out, as are objects that end up empty.

One thing is different. Envoy's text format writes values as they are, and %QUERY_PARAM(x)% decodes percent signs: whoever sends
`?x=%0A...` writes lines of his own into Envoy's log. Here control characters in values are written `\\x0a`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from meshlib.observe.access_log.inlined import compile_values
from meshlib.observe.access_log.json_text import escape_json, json_text
from meshlib.observe.access_log.operators import OPERATORS, TEXT_OPERATORS
from meshlib.resources.access_log import JsonFormat, JsonList, JsonObject, JsonValue, TextFormat
from meshlib.resources.format import Format, Operator
from meshlib.routing.format import Read, Value, compile_reads

__all__ = ["Fields", "Line", "compile_fields", "compile_line", "compile_value", "escape_json", "escape_text"]

Line = Callable[[Any], str]
"""From facts to what is written, with its newline."""

Fields = Mapping[str, Any]

_CONTROL = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_ESCAPED = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROL if code != ord("\t")
}
"""What would end a line, drive a terminal or turn the direction of writing."""


def escape_text(value: str) -> str:
    """The value as it may stand in a line of text."""
    return value if value.isprintable() else value.translate(_ESCAPED)


def compile_line(shown: TextFormat | JsonFormat) -> Line:
    """What writes the line of a call."""
    return _text_line(shown) if isinstance(shown, TextFormat) else _json_line(shown)


# --- text ----------------------------------------------------------------------------------------------------------------


def _text_line(shown: TextFormat) -> Line:
    segments = shown.format.segments
    missing = "" if shown.omit_empty else "-"
    end = ""
    if segments and isinstance(segments[-1], str) and segments[-1].endswith("\n"):
        segments, end = (*segments[:-1], segments[-1][:-1]), "\n"
    template = "".join(
        segment.replace("%", "%%") if isinstance(segment, str) else "%s" for segment in segments
    )
    plain = "".join(segment for segment in segments if isinstance(segment, str)).isprintable()
    values_of = compile_values([each for each in segments if isinstance(each, Operator)], missing)

    def line(facts: Any) -> str:
        values = values_of(facts)
        text = template % values
        if not (plain and text.isprintable()):
            text = template % tuple([escape_text(v) if isinstance(v, str) else v for v in values])
        return text + end

    return line


# --- JSON ----------------------------------------------------------------------------------------------------------------

_Render = Callable[[Any], str | None]
"""JSON of a value; None where it is to be left out."""


def _json_line(shown: JsonFormat) -> Line:
    if shown.omit_empty:
        render = _omitting(shown.root, root=True)
        return lambda facts: f"{render(facts)}\n"
    pieces: list[str] = []
    renders: list[Callable[[Any], str]] = []
    _flatten(shown.root, pieces, renders)
    template = "".join(pieces) + "\n"
    return lambda facts: template % tuple([render(facts) for render in renders])


def _flatten(value: JsonValue, pieces: list[str], renders: list[Callable[[Any], str]]) -> None:
    """Put the template of the value into pieces, with a `%s` for each of renders."""
    if isinstance(value, JsonObject):
        pieces.append("{")
        for index, (name, member) in enumerate(value.members):
            pieces.append(("," if index else "") + escape_json(name).replace("%", "%%") + ":")
            _flatten(member, pieces, renders)
        pieces.append("}")
    elif isinstance(value, JsonList):
        pieces.append("[")
        for index, item in enumerate(value.items):
            if index:
                pieces.append(",")
            _flatten(item, pieces, renders)
        pieces.append("]")
    elif isinstance(value, Format) and value.literal is None:
        pieces.append("%s")
        renders.append(_json_text(value, "-"))
    else:
        pieces.append(_constant(value).replace("%", "%%"))


def _json_text(fmt: Format, missing: str) -> Callable[[Any], str]:
    read = _single(fmt)
    if read is None:
        text = _mixed(fmt, missing)
        return lambda facts: escape_json(text(facts))

    def render(facts: Any) -> str:
        value = read(facts)
        if value is None:
            return "null"
        if isinstance(value, str):
            return escape_json(value)
        return str(value) if type(value) is int else json_text(value)

    return render


def _omitting(value: JsonValue, *, root: bool = False) -> _Render:
    if isinstance(value, JsonObject):
        members = tuple((escape_json(name), _omitting(member)) for name, member in value.members)

        def render_object(facts: Any) -> str | None:
            shown = [f"{name}:{text}" for name, render in members if (text := render(facts)) is not None]
            return "{" + ",".join(shown) + "}" if shown or root else None

        return render_object
    if isinstance(value, JsonList):
        items = tuple(_omitting(item) for item in value.items)
        return lambda facts: (
            "[" + ",".join(text for render in items if (text := render(facts)) is not None) + "]"
        )
    if isinstance(value, Format) and value.literal is None:
        text = _json_text(value, "")
        return lambda facts: None if (shown := text(facts)) == "null" else shown
    if value is None:
        return lambda facts: None
    constant = _constant(value)
    return lambda facts: constant


def _constant(value: JsonValue) -> str:
    return json_text(value.literal or "" if isinstance(value, Format) else value)


# --- records -------------------------------------------------------------------------------------------------------------


def compile_fields(root: JsonObject, *, omit_empty: bool = False) -> Callable[[Any], dict[str, Any]]:
    """What makes the members of the object as Python values: texts, numbers, None, dictionaries and lists."""
    members = tuple((name, compile_value(value, omit_empty=omit_empty)) for name, value in root.members)

    def fields(facts: Any) -> dict[str, Any]:
        found = {name: value(facts) for name, value in members}
        return {name: value for name, value in found.items() if value is not None} if omit_empty else found

    return fields


def compile_value(value: JsonValue, *, omit_empty: bool = False, text: bool = False) -> Callable[[Any], Any]:
    """What makes one value. text: all of them are texts, `-` where they are missing, as in a log record of Envoy's."""
    if isinstance(value, JsonObject):
        members = tuple(
            (name, compile_value(member, omit_empty=omit_empty, text=text)) for name, member in value.members
        )
        return lambda facts: {name: render(facts) for name, render in members}
    if isinstance(value, JsonList):
        items = tuple(compile_value(item, omit_empty=omit_empty, text=text) for item in value.items)
        return lambda facts: [render(facts) for render in items]
    if not isinstance(value, Format):
        return lambda facts: value
    if value.literal is not None:
        literal = value.literal
        return lambda facts: literal
    read = None if text else _single(value)
    return _mixed(value, "" if omit_empty else "-") if read is None else read


def _single(fmt: Format) -> Read | None:
    """The operator that the format is alone; None when it is more."""
    segments = compile_reads(fmt, OPERATORS)
    if len(segments) != 1 or isinstance(segments[0], str):
        return None
    return segments[0]


def _mixed(fmt: Format, missing: str) -> Line:
    segments = compile_reads(fmt, TEXT_OPERATORS)

    def text(facts: Any) -> str:
        return "".join([_shown(segment, facts, missing) for segment in segments])

    return text


def _shown(segment: str | Read, facts: Any, missing: str) -> str:
    value: Value = segment if isinstance(segment, str) else segment(facts)
    if value is None:
        return missing
    return value if isinstance(value, str) else str(value)
