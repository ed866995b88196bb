"""What the HttpConnectionManager and a route say about tracing: which calls, and which tags their spans have.

Who exports the spans is not among it: that is the application's own OpenTelemetry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any

from meshlib.resources.matching import FractionalPercent

__all__ = ["ALL", "NO_METADATA", "CustomTag", "RouteTracing", "TagSource", "Tracing"]

NO_METADATA: Mapping[str, Any] = MappingProxyType({})

ALL = FractionalPercent(numerator=100)


class TagSource(Enum):
    """Where the value of a custom tag comes from."""

    LITERAL = "literal"
    ENVIRONMENT = "environment"
    REQUEST_HEADER = "request_header"
    ROUTE_METADATA = "route metadata"
    NOWHERE = "metadata that is not known here"


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomTag:
    """type.tracing.v3.CustomTag. name: the literal itself; of the variable; of the header, lower-case; the metadata's key.

    path: within the metadata. default: where there is no value; empty: no tag then.
    """

    tag: str
    source: TagSource
    name: str = ""
    path: tuple[str, ...] = ()
    default: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTracing:
    """config.route.v3.Tracing: its shares stand in for the HttpConnectionManager's, all three of them, also where it does not
    give one (100 %); its tags for the manager's of the same name."""

    client_sampling: FractionalPercent = ALL
    random_sampling: FractionalPercent = ALL
    overall_sampling: FractionalPercent = ALL
    custom_tags: tuple[CustomTag, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracing:
    """HttpConnectionManager.Tracing. max_path_tag_length: of the path in `url.full`. verbose: events on the spans.

    spawn_upstream_span is no question here: each attempt has a span of its own where its call is recorded.
    """

    client_sampling: FractionalPercent = ALL
    random_sampling: FractionalPercent = ALL
    overall_sampling: FractionalPercent = ALL
    custom_tags: tuple[CustomTag, ...] = ()
    max_path_tag_length: int = 256
    verbose: bool = False
