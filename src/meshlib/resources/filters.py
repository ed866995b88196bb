"""The HTTP filters: which configurations are known, in the chain and as overrides on routes.

Adding a filter is one module with its dataclasses and decoders, and its entries in `CHAIN` and `OVERRIDES`.

A filter that is not known is an error unless it is marked optional: an authorization filter that is skipped would let
everything through. On a route, a configuration of one of Envoy's own HTTP filters that is not implemented only gets reported:
the filter itself is refused in the chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from meshlib.resources.decode_fault import decode_fault
from meshlib.resources.decode_rbac import decode_rbac, decode_rbac_per_route
from meshlib.resources.listener import HttpFilter, RouterConfig
from meshlib.resources.reader import Reader
from meshlib.resources.route import NO_FILTER_CONFIGS, FilterConfig, FilterConfigs

__all__ = [
    "CHAIN",
    "FAULT",
    "INBOUND_CHAIN",
    "OVERRIDES",
    "RBAC",
    "ROUTER",
    "decode_chain",
    "decode_overrides",
]

FAULT = "envoy.extensions.filters.http.fault.v3.HTTPFault"
RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"
ROUTER = "envoy.extensions.filters.http.router.v3.Router"
_RBAC_PER_ROUTE = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
_FILTER_CONFIG = "envoy.config.route.v3.FilterConfig"
_HTTP_FILTERS = "envoy.extensions.filters.http."


def _router(reader: Reader) -> RouterConfig:
    return RouterConfig(suppress_envoy_headers=reader.flag("suppress_envoy_headers"))


CHAIN: dict[str, Callable[[Reader], Any]] = {FAULT: decode_fault, ROUTER: _router}
"""By full message name: the decoder of a filter's configuration in a client's chain."""

INBOUND_CHAIN: dict[str, Callable[[Reader], Any]] = {RBAC: decode_rbac, ROUTER: _router}
"""The same in the chain of a server's filter chain."""

OVERRIDES: dict[str, Callable[[Reader], Any]] = {FAULT: decode_fault, _RBAC_PER_ROUTE: decode_rbac_per_route}
"""By full message name: the decoder of a filter's configuration on a route, virtual host or weighted cluster."""


def decode_chain(
    reader: Reader, field: str, known: Mapping[str, Callable[[Reader], Any]] = CHAIN
) -> tuple[HttpFilter, ...]:
    """The filters in order; the router is the last and only there. known: CHAIN or INBOUND_CHAIN. Raises ResourceError."""
    entries = reader.items(field)
    filters: list[HttpFilter] = []
    names: set[str] = set()
    for index, entry in enumerate(entries):
        decoded = _filter(entry, known)
        if decoded is None:
            continue
        last = index == len(entries) - 1
        if (_is_router(decoded)) != last:
            place = f"{field}[{index}]"
            raise reader.fail(
                place, "the last filter must be the router" if last else "the router must be the last filter"
            )
        if decoded.name in names:
            raise entry.fail("name", f"two filters are named {decoded.name!r}")
        names.add(decoded.name)
        filters.append(decoded)
    if not filters or not _is_router(filters[-1]):
        raise reader.fail(field, "the last filter must be the router")
    if filters[-1].disabled:
        raise reader.fail(f"{field}[{len(entries) - 1}].disabled", "the router can't be disabled")
    return tuple(filters)


def _is_router(decoded: HttpFilter) -> bool:
    return isinstance(decoded.config, RouterConfig)


def _filter(entry: Reader, decoders: Mapping[str, Callable[[Reader], Any]]) -> HttpFilter | None:
    name = entry.text("name")
    optional = entry.flag("is_optional")
    disabled = entry.flag("disabled")
    if entry.which("config_type") == "config_discovery":
        if optional:
            entry.unsupported("config_discovery")
            return None
        raise entry.fail("config_discovery", "filter configuration discovery (ECDS) is not implemented")
    config = entry.child("typed_config")
    if config is None:
        raise entry.fail("typed_config", f"the filter {name!r} has no configuration")
    known = _known(config, decoders)
    if known is None:
        kind = config.message.type_url.rpartition("/")[2]
        if not optional:
            raise entry.fail("typed_config", f"the HTTP filter {name!r} ({kind}) is not implemented")
        config.leave("type_url", "value")
        entry.unsupported("typed_config")
        return None
    content, decoder = known
    return HttpFilter(name=name, type_url=content.type_name, config=decoder(content), disabled=disabled)


def _known(
    config: Reader, decoders: Mapping[str, Callable[[Reader], Any]]
) -> tuple[Reader, Callable[[Reader], Any]] | None:
    """The content of an Any and its decoder; None when there is no decoder."""
    kind = config.message.type_url.rpartition("/")[2]
    if kind not in decoders and not kind.endswith(".TypedStruct"):
        return None
    content = config.unpacked()
    decoder = decoders.get(content.type_name)
    return None if decoder is None else (content, decoder)


def decode_overrides(reader: Reader) -> FilterConfigs:
    """typed_per_filter_config: by filter name, the filter's own dataclass, or a FilterConfig around it."""
    found: dict[str, Any] = {}
    for name, entry in reader.entries("typed_per_filter_config"):
        if entry.message.type_url.rpartition("/")[2] == _FILTER_CONFIG:
            wrapper = entry.unpacked()
            optional = wrapper.flag("is_optional")
            disabled = wrapper.flag("disabled")
            config = wrapper.child("config")
            if config is None:
                if not disabled:
                    raise entry.fail("", f"an empty configuration for the filter {name!r}")
                found[name] = FilterConfig(disabled=True)
            else:
                decoded = _override(config, name, optional=optional)
                if decoded is not None or disabled:
                    found[name] = FilterConfig(disabled=disabled, config=decoded)
            continue
        decoded = _override(entry, name, optional=False)
        if decoded is not None:
            found[name] = decoded
    return MappingProxyType(found) if found else NO_FILTER_CONFIGS


def _override(config: Reader, name: str, *, optional: bool) -> Any:
    kind = config.message.type_url.rpartition("/")[2]
    if (kind in CHAIN or kind in INBOUND_CHAIN) and kind not in OVERRIDES:
        raise config.fail("", f"the filter {name!r} has no configuration for routes")
    known = _known(config, OVERRIDES)
    if known is not None:
        content, decoder = known
        return decoder(content)
    if not optional and not kind.startswith(_HTTP_FILTERS):
        raise config.fail("", f"no HTTP filter has a configuration of type {kind!r}")
    config.leave("type_url", "value")
    config.reading.unsupported(config.path)
    return None
