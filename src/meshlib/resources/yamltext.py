"""YAML and JSON text: values for the reader, line numbers for whoever has to mend a mistake.

Values come from the fast C loader. Line numbers need the node tree, which costs as much again, so it is composed only
when a line is asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Iterator
from functools import cached_property
from typing import Any

import yaml

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MAP_TAG = "tag:yaml.org,2002:map"
_INT_TAG = "tag:yaml.org,2002:int"
_FLOAT_TAG = "tag:yaml.org,2002:float"
_LEFT_AS_TEXT = frozenset({"tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value"})
_INT = re.compile(r"[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)$")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"
)
_CAMEL = re.compile(r"[A-Z]")


class TextError(ValueError):
    """The text is not YAML (or JSON).

    Attributes:
        line: counted from 1.
        reason: what is wrong there, on one line.
    """

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line = line
        self.reason = reason


class _Loader(_Base):  # type: ignore[misc]
    """YAML as Envoy reads it: dates and base-60 numbers are text, a key may stand only once in a mapping."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, {_INT_TAG: _INT, _FLOAT_TAG: _FLOAT}.get(tag, pattern))
        for tag, pattern in resolvers
        if tag not in _LEFT_AS_TEXT
    ]
    for first, resolvers in _Base.yaml_implicit_resolvers.items()
}


def _construct_mapping(loader: Any, node: yaml.MappingNode) -> Iterator[dict[Any, Any]]:
    value: dict[Any, Any] = {}
    yield value
    keys = set()
    for key_node, _ in node.value:
        if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
            key = loader.construct_object(key_node)
            if isinstance(key, Hashable) and key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here twice", key_node.start_mark
                )
            keys.add(key)
    value.update(loader.construct_mapping(node))


_Loader.add_constructor(_MAP_TAG, _construct_mapping)


class Text:
    """The text of one file.

    Attributes:
        documents: one value for each document; JSON has one.
    """

    def __init__(self, text: str, *, is_json: bool = False) -> None:
        """Parse.

        Raises:
            TextError: not YAML, or not JSON.
        """
        self._text = text
        self._is_json = is_json
        try:
            self.documents: list[Any] = [_load_json(text)] if is_json else list(yaml.load_all(text, _Loader))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            last = text.count(
                "\n", 0, max(len(text) - 1, 0)
            )  # libyaml puts the end of the text one line too far
            raise TextError(min(mark.line, last) + 1 if mark else 1, _reason(error)) from None
        except yaml.YAMLError as error:
            raise TextError(1, _one_line(error)) from None
        except json.JSONDecodeError as error:
            raise TextError(error.lineno, f"not JSON: {error.msg} (column {error.colno})") from None
        except RecursionError:
            raise TextError(1, "nested too deeply") from None
        except ValueError as error:
            raise TextError(1, _one_line(error)) from None

    def line(self, document: int, path: str = "") -> int:
        """The line, counted from 1, of the field at this path of a document; of its nearest enclosing field if the path
        leads to something that is not written there."""
        if document >= len(self._nodes) or self._nodes[document] is None:
            return 1
        node = self._nodes[document]
        line = node.start_mark.line
        rest = path
        while rest:
            step = _step(node, rest)
            if step is None:
                break
            line, node, rest = step
        return int(line) + 1

    @cached_property
    def _nodes(self) -> list[Any]:
        # A raw tab is never part of a JSON string, and YAML refuses it as indentation.
        text = self._text.replace("\t", " ") if self._is_json else self._text
        try:
            return list(yaml.compose_all(text, _Loader))
        except (yaml.YAMLError, RecursionError):
            return []


def _step(node: Any, rest: str) -> tuple[int, Any, str] | None:
    """(line, node, what is left of the path) one level down."""
    rest = rest.removeprefix(".")
    if isinstance(node, yaml.SequenceNode):
        match = re.match(r"\[(\d+)\]", rest)
        if match is None or int(match[1]) >= len(node.value):
            return None
        item = node.value[int(match[1])]
        return item.start_mark.line, item, rest[match.end() :]
    if not isinstance(node, yaml.MappingNode):
        return None
    best: tuple[int, Any, Any] | None = None
    for key, value in node.value:
        for written in _spellings(key):
            if (
                rest.startswith(written)
                and (written[0] == "[" or rest[len(written) : len(written) + 1] in {"", ".", "["})
                and (best is None or len(written) > best[0])
            ):
                best = len(written), key, value
    if best is not None:
        return best[1].start_mark.line, best[2], rest[best[0] :]
    for key, value in node.value:
        if key.value == "<<" and (found := _step(value, rest)) is not None:
            return found
    return None


def _spellings(key: Any) -> tuple[str, ...]:
    """How a path may write this key: a proto name for a JSON name, and a map's key in brackets."""
    if not isinstance(key, yaml.ScalarNode) or not key.value:
        return ()
    name: str = key.value
    quoted = name.replace('"', '\\"')
    return name, _CAMEL.sub(lambda m: "_" + m[0].lower(), name), f'["{quoted}"]', f"['{name}']", f"[{name}]"


def _load_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_without_duplicates)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return value


def _reason(error: yaml.MarkedYAMLError) -> str:
    parts = [part for part in (error.problem, error.context) if part]
    return _one_line(", ".join(parts) or error)


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
