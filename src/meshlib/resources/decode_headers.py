"""Header edits: `request_headers_to_add`, `request_headers_to_remove` and the same for responses."""

from __future__ import annotations

from meshlib.resources.decode_common import format_string
from meshlib.resources.headers import AppendAction, HeaderEdits, HeaderValueOption
from meshlib.resources.reader import Reader

__all__ = ["request_headers", "response_headers"]

_ACTIONS = {action.value: action for action in AppendAction}


def request_headers(reader: Reader) -> HeaderEdits:
    """The edits of the request at this level. Raises ResourceError."""
    return _edits(reader, "request")


def response_headers(reader: Reader) -> HeaderEdits:
    """The edits of the response at this level. Raises ResourceError."""
    return _edits(reader, "response")


def _edits(reader: Reader, direction: str) -> HeaderEdits:
    add = f"{direction}_headers_to_add"
    remove = f"{direction}_headers_to_remove"
    removed = []
    for index, name in enumerate(reader.values(remove)):
        if _is_fixed(name):
            raise reader.fail(f"{remove}[{index}]", "Host and headers that begin with `:` may not be removed")
        removed.append(name.lower())
    return HeaderEdits(add=tuple(_option(entry) for entry in reader.each(add)), remove=tuple(removed))


def _option(reader: Reader) -> HeaderValueOption:
    header = reader.required("header")
    name = header.text("key")
    if _is_fixed(name):
        raise header.fail("key", "Host and headers that begin with `:` may not be modified")
    text, raw = header.text("value"), header.value("raw_value")
    field = "value" if text or not raw else "raw_value"
    value = format_string(header, field, text or raw.decode("utf-8", "surrogateescape"))
    append = reader.boxed("append")
    action = reader.enum("append_action", _ACTIONS)
    if append is not None:
        if action is not AppendAction.APPEND_IF_EXISTS_OR_ADD:
            raise reader.fail("append", "append and append_action can't both be given")
        if not append:
            action = AppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    return HeaderValueOption(
        name=name.lower(),
        value=value,
        action=action,
        keep_empty_value=reader.flag("keep_empty_value"),
    )


def _is_fixed(name: str) -> bool:
    return name.startswith(":") or name.lower() == "host"
