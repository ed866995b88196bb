"""What was made of an object, remembered by the object's identity.

Configuration objects compare by value, which is slow for a large one; the same object always gives the same, so its `id` will
do. An entry keeps its object alive: the id is not given to another one while the entry stands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Memo"]

_KEPT = 4096

K = TypeVar("K")
V = TypeVar("V")


class Memo(Generic[K, V]):
    """`memo(key)` is `make(key)`, made once for each object. After 4,096 of them it begins anew. Thread safe without a lock."""

    __slots__ = ("_entries", "_make")

    def __init__(self, make: Callable[[K], V]) -> None:
        self._make = make
        self._entries: dict[int, tuple[K, V]] = {}

    def __call__(self, key: K) -> V:
        entry = self._entries.get(id(key))
        if entry is None:
            if len(self._entries) >= _KEPT:
                self._entries.clear()
            entry = self._entries[id(key)] = (key, self._make(key))
        return entry[1]
