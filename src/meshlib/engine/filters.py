"""The HTTP filter chain: an ordered list of filters, each with the configuration that is most specific for the route.

The router is not a filter object; it is what happens when every filter went on. A request that no route takes meets the
filters too, with what the listener configures. A new filter is a module with its class (see `meshlib.engine.steps`) and one
line in `FACTORIES`, keyed by the type of its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from meshlib.engine.fault import FaultFilter
from meshlib.engine.steps import Filter, FilterScope
from meshlib.resources.filters import FAULT
from meshlib.resources.listener import HttpFilter, RouterConfig
from meshlib.resources.route import FilterConfig
from meshlib.routing.compiled import CompiledRoute, ForwardPlan

__all__ = ["FACTORIES", "Link", "build_chain"]

FACTORIES: dict[str, Callable[[HttpFilter, FilterScope], Filter]] = {FAULT: FaultFilter}


@dataclass(frozen=True, slots=True)
class Link:
    """A filter in its chain. disabled: off, unless a route configures it (HttpFilter.disabled)."""

    filter: Filter
    disabled: bool = False

    def config_for(self, route: CompiledRoute | None, plan: ForwardPlan | None) -> Any | None:
        """The filter's most specific configuration; None when it is switched off there. route None: no route matched."""
        override = None if route is None else route.filter_config(self.filter.name, plan)
        if override is None:
            return None if self.disabled else self.filter.config
        if not isinstance(override, FilterConfig):
            return override
        return None if override.disabled else override.config or self.filter.config


def build_chain(filters: Sequence[HttpFilter], scope: FilterScope) -> tuple[Link, ...]:
    """The filters of a listener that have something to do, in order. What has no factory was refused or reported before."""
    return tuple(
        Link(FACTORIES[entry.type_url](entry, scope), entry.disabled)
        for entry in filters
        if not isinstance(entry.config, RouterConfig) and entry.type_url in FACTORIES
    )
