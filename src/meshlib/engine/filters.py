"""The HTTP filter chain: an ordered list of filters, each with the configuration that is most specific for the route.

A filter looks at the request before it is forwarded and takes one step: go on, answer, wait until a moment, or ask a
service and take the next step when the answer is there. The router is not a filter object; it is what happens when every
filter went on. A new filter is a module with its class and one line in `FACTORIES`, keyed by the type of its configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from meshlib.engine.replies import Ending
from meshlib.resources.listener import HttpFilter, RouterConfig
from meshlib.routing.request import RequestView

__all__ = [
    "FACTORIES",
    "GO_ON",
    "Answer",
    "Ask",
    "Filter",
    "FilterContext",
    "GoOn",
    "Link",
    "Step",
    "WaitUntil",
    "build_chain",
]


@dataclass(frozen=True, slots=True)
class GoOn:
    """The next filter's turn."""


GO_ON = GoOn()


@dataclass(frozen=True, slots=True)
class Answer:
    """End the call with a local reply."""

    ending: Ending


@dataclass(frozen=True, slots=True)
class WaitUntil:
    """Do nothing until `moment` (monotonic seconds), then go on with the same filter's `resume`."""

    moment: float


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `service` and go on with `resume` when it has answered."""

    service: str
    request: object


Step = GoOn | Answer | WaitUntil | Ask


@dataclass(slots=True)
class FilterContext:
    """What a filter sees. config: its most specific configuration. random: the engine's, seeded in tests."""

    request: RequestView
    config: Any
    random: Random


class Filter(Protocol):
    """One filter of one listener. It holds no state of a call: `resume` is told all that it needs."""

    @property
    def name(self) -> str:
        """The filter's name in the chain, by which routes configure it."""

    @property
    def config(self) -> Any:
        """The configuration from the listener, used where the route has none of its own."""

    def on_request(self, context: FilterContext, now: float) -> Step:
        """The filter's first look at the request."""

    def resume(self, context: FilterContext, result: object, error: BaseException | None, now: float) -> Step:
        """The next step after WaitUntil (result None) or Ask (the service's result, or why there is none)."""


FACTORIES: dict[str, Callable[[HttpFilter], Filter]] = {}


@dataclass(frozen=True, slots=True)
class Link:
    """A filter in its chain. disabled: off, unless a route configures it (HttpFilter.disabled)."""

    filter: Filter
    disabled: bool = False


def build_chain(filters: Sequence[HttpFilter]) -> tuple[Link, ...]:
    """The filters of a listener that have something to do, in order. What has no factory was refused or reported before."""
    return tuple(
        Link(FACTORIES[entry.type_url](entry), entry.disabled)
        for entry in filters
        if not isinstance(entry.config, RouterConfig) and entry.type_url in FACTORIES
    )
