"""A call of grpcio as a request that the engine routes."""

from __future__ import annotations

from collections.abc import Sequence

from meshlib.engine.actions import Start
from meshlib.routing.request import Headers, KnownHeaders, RequestView, values_by_name
from meshlib.transport.grpc.metadata import Metadata, to_headers, to_metadata

__all__ = ["authority_of", "known_headers", "method_path", "outgoing_metadata", "view", "with_extra"]


class _KnownMetadata:
    """The headers of a call, made when a route looks at them."""

    __slots__ = ("_metadata",)

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def listed(self) -> Headers:
        return [("content-type", "application/grpc"), ("te", "trailers"), *to_headers(self._metadata)]

    def by_name(self) -> dict[str, list[str]]:
        return values_by_name(self.listed())


_BARE = _KnownMetadata(())


class _NoMetadata:
    """The same for all calls without metadata."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name = _BARE.by_name()

    def listed(self) -> Headers:
        return _BARE.listed()

    def by_name(self) -> dict[str, list[str]]:
        return self._by_name


_NO_METADATA = _NoMetadata()


def known_headers(metadata: Metadata | None) -> KnownHeaders:
    """The headers of a call, made when a route looks at them."""
    return _KnownMetadata(metadata) if metadata else _NO_METADATA


def view(
    target: str, authority: str, path: str, metadata: Metadata | None, channel_id: int | None = None
) -> RequestView:
    """target: names the Listener. path: `/package.Service/Method`. The headers are made when a route looks at them.

    channel_id: a random number of the channel, for hash policies.
    """
    return RequestView("POST", "http", authority, path, known_headers(metadata), target, channel_id)


def outgoing_metadata(start: Start, own: Metadata | None) -> Metadata | None:
    """What an attempt sends: the application's own object, or what the route made of it, and what observers add."""
    metadata = own if start.headers is None else to_metadata(start.headers)
    return with_extra(metadata, start.extra) if start.extra else metadata


def with_extra(metadata: Metadata | None, extra: Sequence[tuple[str, str]]) -> Metadata | None:
    """The metadata and these headers; the same object where there are none."""
    return (*(metadata or ()), *to_metadata(extra)) if extra else metadata


def method_path(method: str | bytes) -> str:
    """`/package.Service/Method`, as generated stubs give it."""
    return method.decode("utf-8") if isinstance(method, bytes) else method


def authority_of(target: str) -> str:
    """What goes into `:authority`: the target without a scheme, as C-core takes it from a `dns:///` or `xds:///` target."""
    _, found, path = target.partition("://")
    if not found:
        return target
    return path.partition("/")[2] or path
