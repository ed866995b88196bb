"""What a control plane serves: one encoded resource for each type and name, and a version for each type."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from meshlib import proto

__all__ = ["ResourceStore", "StoredResource", "TypeState"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredResource:
    """A resource as it goes on the wire. Unchanged resources stay the same object from one version to the next.

    encoded: the google.protobuf.Any, encoded once however many streams send it. version: that of its type when this
    resource last changed.
    """

    type_url: str
    name: str
    encoded: bytes
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeState:
    """All resources of one type, by name. version: counts up from ``1`` with each change of the type; ``0`` is empty."""

    version: str
    resources: Mapping[str, StoredResource]


_EMPTY = TypeState(version="0", resources=MappingProxyType({}))


class ResourceStore:
    """Thread-safe. Readers take no lock: they get an immutable TypeState, which a change replaces as a whole."""

    def __init__(self, messages: Iterable[proto.Message] = ()) -> None:
        """``messages``: see :meth:`replace`."""
        self._lock = threading.Lock()
        self._types: Mapping[str, TypeState] = MappingProxyType({})
        self._watchers: list[Callable[[], None]] = []
        self.replace(messages)

    def state(self, type_url: str) -> TypeState:
        """The resources of a type; version ``0`` and nothing for a type that never had any."""
        return self._types.get(type_url, _EMPTY)

    @property
    def types(self) -> Mapping[str, TypeState]:
        """All types at one moment."""
        return self._types

    def replace(self, messages: Iterable[proto.Message]) -> frozenset[str]:
        """Make these resources all that is served. Returns the type URLs that changed.

        Raises:
            ValueError: a message is no xDS resource or has no name, or two share type and name. Nothing changes then.
        """
        wanted = _by_type(messages)
        with self._lock:
            gone: dict[str, dict[str, bytes]] = {url: {} for url in self._types if url not in wanted}
            return self._publish({**wanted, **gone})

    def update(self, *messages: proto.Message) -> frozenset[str]:
        """Add resources, or change those with the same type and name. Returns the type URLs that changed.

        Raises:
            ValueError: as for :meth:`replace`.
        """
        added = _by_type(messages)
        with self._lock:
            return self._publish({url: self._encoded(url) | new for url, new in added.items()})

    def update_encoded(self, type_url: str, name: str, value: bytes) -> frozenset[str]:
        """Add or change a resource whose message is already encoded; ``value`` need not be valid (for tests)."""
        any_message = proto.message("google.protobuf.Any")(type_url=type_url, value=value)
        with self._lock:
            return self._publish(
                {type_url: self._encoded(type_url) | {name: any_message.SerializeToString()}}
            )

    def remove(self, type_url: str, *names: str) -> frozenset[str]:
        """Remove resources; names that are not there are passed over. Returns the type URLs that changed."""
        with self._lock:
            left = {name: data for name, data in self._encoded(type_url).items() if name not in names}
            return self._publish({type_url: left})

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after each change, in the changing thread. Returns what ends the watch."""
        with self._lock:
            self._watchers = [*self._watchers, callback]

        def unwatch() -> None:
            with self._lock:
                self._watchers = [watcher for watcher in self._watchers if watcher is not callback]

        return unwatch

    def _encoded(self, type_url: str) -> dict[str, bytes]:
        return {name: resource.encoded for name, resource in self.state(type_url).resources.items()}

    def _publish(self, wanted: Mapping[str, Mapping[str, bytes]]) -> frozenset[str]:
        """Under the lock. ``wanted``: type URL -> name -> encoded Any; other types stay as they are."""
        changed = {}
        for type_url, resources in wanted.items():
            before = self.state(type_url)
            if self._encoded(type_url) == resources:
                continue
            version = str(int(before.version) + 1)
            changed[type_url] = TypeState(
                version=version,
                resources=MappingProxyType(
                    {
                        name: _stored(before, type_url, name, encoded, version)
                        for name, encoded in resources.items()
                    }
                ),
            )
        if changed:
            self._types = MappingProxyType({**self._types, **changed})
            for watcher in self._watchers:
                watcher()
        return frozenset(changed)


def _stored(before: TypeState, type_url: str, name: str, encoded: bytes, version: str) -> StoredResource:
    known = before.resources.get(name)
    if known is not None and known.encoded == encoded:
        return known
    return StoredResource(type_url=type_url, name=name, encoded=encoded, version=version)


def _by_type(messages: Iterable[proto.Message]) -> dict[str, dict[str, bytes]]:
    types: dict[str, dict[str, bytes]] = {}
    for message in messages:
        name = resource_name(message)
        packed = proto.pack(message)
        resources = types.setdefault(packed.type_url, {})
        if name in resources:
            raise ValueError(f"two resources of type {packed.type_url} are named {name!r}")
        resources[name] = packed.SerializeToString(deterministic=True)
    return types


def resource_name(message: proto.Message) -> str:
    """The name by which a resource is asked for: its field ``name``, or ``cluster_name`` of a ClusterLoadAssignment.

    Raises:
        ValueError: the message has no such field, or it is empty.
    """
    name = getattr(message, "cluster_name", None) or getattr(message, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"a {message.DESCRIPTOR.full_name} without a name is not an xDS resource")
    return name
