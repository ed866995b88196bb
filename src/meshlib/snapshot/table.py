"""A mapping that is published as an immutable one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

__all__ = ["Table"]

K = TypeVar("K")
V = TypeVar("V")
_GONE: Any = object()


class Table(Generic[K, V]):
    """Changes are collected, and one copy is made of them and of what is `current`; what was published never changes."""

    __slots__ = ("_changes", "current")

    def __init__(self, current: Mapping[K, V] | None = None) -> None:
        self.current: dict[K, V] = dict(current or {})
        self._changes: dict[K, Any] = {}

    def set(self, key: K, value: V) -> None:
        self._changes[key] = value

    def drop(self, key: K) -> None:
        if key in self.current:
            self._changes[key] = _GONE
        else:
            self._changes.pop(key, None)

    def publish(self) -> bool:
        """Make the changes current; False when there were none."""
        if not self._changes:
            return False
        following = self.current.copy()
        for key, value in self._changes.items():
            if value is _GONE:
                following.pop(key, None)
            else:
                following[key] = value
        self._changes.clear()
        self.current = following
        return True
