"""Custom tags of the configuration: attributes of a call's span."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from meshlib.observe.tracing.attributes import sound
from meshlib.resources.tracing import CustomTag, RouteTracing, TagSource, Tracing

if TYPE_CHECKING:
    from meshlib.engine.call import Call

__all__ = ["custom_tags"]


def custom_tags(tracing: Tracing, route: RouteTracing | None, call: Call) -> dict[str, Any]:
    """By name. The route's stand in for the manager's of the same name; one without a value is left out."""
    tags = {tag.tag: tag for tag in tracing.custom_tags}
    if route is not None:
        tags.update((tag.tag, tag) for tag in route.custom_tags)
    values = {name: _value(tag, call) or tag.default for name, tag in tags.items()}
    return {name: sound(value) for name, value in values.items() if value}


def _value(tag: CustomTag, call: Call) -> str:
    source = tag.source
    if source is TagSource.LITERAL:
        return tag.name
    if source is TagSource.ENVIRONMENT:
        return os.environ.get(tag.name, "")
    if source is TagSource.REQUEST_HEADER:
        return call.request.first(tag.name) or ""
    if source is TagSource.ROUTE_METADATA and call.route is not None:
        return _text(_at(call.route.resource.metadata.get(tag.name), tag.path))
    return ""


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        value = value.get(step) if hasattr(value, "get") else None
    return value


def _text(value: Any) -> str:
    """As Envoy writes it: strings as they are, everything else as JSON."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    import json

    return json.dumps(value, separators=(",", ":"))
