"""Tracing of an HttpConnectionManager and of a route."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from meshlib.resources.decode_common import fractional_percent
from meshlib.resources.matching import FractionalPercent
from meshlib.resources.metadata import plain
from meshlib.resources.reader import Reader
from meshlib.resources.tracing import ALL, NO_METADATA, CustomTag, RouteTracing, TagSource, Tracing

__all__ = ["decode_metadata", "decode_route_tracing", "decode_tracing"]

_LONGEST_PATH = 256


def decode_tracing(reader: Reader) -> Tracing | None:
    """The field `tracing` of an HttpConnectionManager. Raises ResourceError."""
    tracing = reader.child("tracing")
    if tracing is None:
        return None
    tracing.leave("spawn_upstream_span")
    longest = tracing.boxed("max_path_tag_length")
    return Tracing(
        client_sampling=_share(tracing, "client_sampling", 100),
        random_sampling=_share(tracing, "random_sampling", 10_000),
        overall_sampling=_share(tracing, "overall_sampling", 10_000),
        custom_tags=_tags(tracing),
        max_path_tag_length=_LONGEST_PATH if longest is None else longest,
        verbose=tracing.flag("verbose"),
    )


def decode_route_tracing(reader: Reader) -> RouteTracing | None:
    """The field `tracing` of a route. Raises ResourceError."""
    tracing = reader.child("tracing")
    if tracing is None:
        return None
    return RouteTracing(
        client_sampling=_fraction(tracing, "client_sampling"),
        random_sampling=_fraction(tracing, "random_sampling"),
        overall_sampling=_fraction(tracing, "overall_sampling"),
        custom_tags=_tags(tracing),
    )


def decode_metadata(reader: Reader) -> Mapping[str, Any]:
    """filter_metadata of a route, as Python has it."""
    given = reader.message.metadata.filter_metadata
    if not given:
        return NO_METADATA
    return MappingProxyType(
        {key: {name: plain(value) for name, value in struct.fields.items()} for key, struct in given.items()}
    )


def _share(reader: Reader, field: str, denominator: int) -> FractionalPercent:
    """A type.v3.Percent as Envoy draws it: a whole number of hundredths, or of ten thousandths."""
    percent = reader.percent(field)
    if percent is None:
        return FractionalPercent(numerator=denominator, denominator=denominator)
    share = percent * denominator / 100
    return FractionalPercent(
        numerator=round(share) if denominator > 100 else int(share), denominator=denominator
    )


def _fraction(reader: Reader, field: str) -> FractionalPercent:
    share = reader.child(field)
    return ALL if share is None else fractional_percent(share)


def _tags(reader: Reader) -> tuple[CustomTag, ...]:
    return tuple(tag for entry in reader.items("custom_tags") if (tag := _tag(entry)) is not None)


def _tag(reader: Reader) -> CustomTag | None:
    name = reader.text("tag")
    if not name:
        raise reader.fail("tag", "must not be empty")
    kind = reader.which("type")
    if kind == "literal":
        return CustomTag(tag=name, source=TagSource.LITERAL, name=reader.required(kind).text("value"))
    if kind == "environment":
        variable = reader.required(kind)
        return CustomTag(
            tag=name,
            source=TagSource.ENVIRONMENT,
            name=variable.text("name"),
            default=variable.text("default_value"),
        )
    if kind == "request_header":
        header = reader.required(kind)
        return CustomTag(
            tag=name,
            source=TagSource.REQUEST_HEADER,
            name=header.text("name").lower(),
            default=header.text("default_value"),
        )
    if kind == "metadata":
        return _metadata_tag(name, reader.required(kind))
    if kind is None:
        raise reader.fail("", "a custom tag must say where its value comes from")
    reader.unsupported(kind)
    return None


def _metadata_tag(name: str, reader: Reader) -> CustomTag:
    """Of the route; metadata of the request, of a cluster or of a host is reported and its default taken."""
    source = TagSource.NOWHERE
    kind = reader.child("kind")
    where = None if kind is None else kind.which("kind")
    if kind is not None and where == "route":
        kind.leave(where)
        source = TagSource.ROUTE_METADATA
    elif kind is not None and where is not None:
        kind.unsupported(where)
    key = reader.child("metadata_key")
    path = () if key is None else tuple(step.text("key") for step in key.items("path"))
    return CustomTag(
        tag=name,
        source=source,
        name="" if key is None else key.text("key"),
        path=path,
        default=reader.text("default_value"),
    )
