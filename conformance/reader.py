"""Reading case files: a mapping that knows where it stands, so that every complaint names file, case and field."""

from __future__ import annotations

from typing import Any


class CaseError(ValueError):
    """A case file is wrong. The text is ``FILE: case NAME: FIELD: what is wrong``."""


class Fields:
    """One mapping of a case file. Each key must be taken exactly once; :meth:`close` complains about the rest."""

    def __init__(self, data: object, where: str, path: str = "") -> None:
        self.where = where
        self.path = path
        if not isinstance(data, dict):
            raise self.error(f"must be a mapping, not {_kind(data)}")
        self._data: dict[str, Any] = {}
        for key, value in data.items():
            if not isinstance(key, str):
                raise self.error(f"key {key!r} must be a string (quote it)")
            self._data[key] = value

    def error(self, what: str, key: str | None = None) -> CaseError:
        """A :class:`CaseError` about this mapping, or about ``key`` in it."""
        path = ".".join(part for part in (self.path, key) if part)
        return CaseError(f"{self.where}: {path}: {what}" if path else f"{self.where}: {what}")

    def has(self, key: str) -> bool:
        """Whether ``key`` is given and not yet taken."""
        return key in self._data

    def take(self, key: str, default: Any = None) -> Any:
        """The raw value of ``key``."""
        return self._data.pop(key, default)

    def text(self, key: str, default: str = "") -> str:
        """A string; numbers are refused so that ``status: 200`` and ``"200"`` cannot be mixed up."""
        value = self.take(key, default)
        if not isinstance(value, str):
            raise self.error(f"must be a string, not {_kind(value)}", key)
        return value

    def choice(self, key: str, allowed: tuple[str, ...], default: str) -> str:
        """One of ``allowed``."""
        value = self.text(key, default)
        if value not in allowed:
            raise self.error(f"{value!r} is not one of {', '.join(allowed)}", key)
        return value

    def integer(self, key: str, default: int, low: int = 0) -> int:
        """An integer of at least ``low``."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"must be an integer, not {_kind(value)}", key)
        if value < low:
            raise self.error(f"must be at least {low}", key)
        return value

    def seconds(self, key: str, default: float = 0.0) -> float:
        """A duration in seconds, as a number."""
        value = self.take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise self.error("must be a number of seconds, 0 or more", key)
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        """``true`` or ``false``."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise self.error(f"must be true or false, not {_kind(value)}", key)
        return value

    def items(self, key: str) -> list[Any]:
        """A list; a missing key is an empty one."""
        value = self.take(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.error(f"must be a list, not {_kind(value)}", key)
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """A mapping with string keys; a missing key is an empty one."""
        value = self.take(key)
        if value is None:
            return {}
        return dict(Fields(value, self.where, f"{self.path}.{key}" if self.path else key)._data)

    def strings(self, key: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.items(key)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                raise self.error(f"must be a string, not {_kind(value)}", f"{key}[{index}]")
        return tuple(values)

    def pairs(self, key: str) -> tuple[tuple[str, str], ...]:
        """Header fields: a mapping, or a list of ``[name, value]`` where order or repetition matters.

        A value is a string, or ``{size: N}`` for one of that length.
        """
        value = self.take(key)
        if value is None:
            return ()
        if isinstance(value, dict):
            value = [list(item) for item in value.items()]
        if not isinstance(value, list):
            raise self.error(f"must be a mapping or a list of [name, value], not {_kind(value)}", key)
        value = [_with_sized(pair) for pair in value]
        for index, pair in enumerate(value):
            if not (
                isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
            ):
                raise self.error("must be [name, value], both strings", f"{key}[{index}]")
        return tuple((pair[0], pair[1]) for pair in value)

    def child(self, key: str) -> Fields:
        """The mapping under ``key``."""
        return Fields(self.take(key, {}), self.where, f"{self.path}.{key}" if self.path else key)

    def children(self, key: str) -> list[Fields]:
        """The list of mappings under ``key``."""
        path = f"{self.path}.{key}" if self.path else key
        return [Fields(item, self.where, f"{path}[{index}]") for index, item in enumerate(self.items(key))]

    def named_children(self, key: str) -> dict[str, Fields]:
        """The mapping of mappings under ``key``; an empty entry (``A:``) is an empty mapping."""
        path = f"{self.path}.{key}" if self.path else key
        return {
            name: Fields({} if item is None else item, self.where, f"{path}.{name}")
            for name, item in self.mapping(key).items()
        }

    def close(self) -> None:
        """Complain about keys that nobody took."""
        for key in self._data:
            raise self.error("unknown field", key)


def _with_sized(pair: object) -> object:
    if isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict):
        size = pair[1].get("size")
        if list(pair[1]) == ["size"] and isinstance(size, int):
            return [pair[0], "v" * size]
    return pair


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "a string", bool: "a boolean", int: "an integer"}
    return "nothing" if value is None else names.get(type(value), type(value).__name__)
