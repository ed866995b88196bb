"""What a filter of the HTTP filter chain sees of a call, and the steps that it can take.

A filter looks at the request before it is forwarded and takes one step: go on, answer, wait until a moment, or ask a
service and take the next step when the answer is there. A filter object serves every call of its listener; what it has to
remember of a call goes into its step and comes back with `resume`. Through its context it sets response flags, and has
itself called back when the call is over, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

from meshlib.engine.replies import Ending
from meshlib.routing.request import RequestView
from meshlib.state import StateStore

__all__ = [
    "GO_ON",
    "Answer",
    "Ask",
    "Filter",
    "FilterContext",
    "FilterScope",
    "GoOn",
    "Step",
    "WaitUntil",
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
    """Do nothing until `moment` (monotonic seconds), then go on with the same filter's `resume`, whose result is `carried`."""

    moment: float
    carried: Any = None


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask `service` and go on with `resume` when it has answered."""

    service: str
    request: Any


Step = GoOn | Answer | WaitUntil | Ask


@dataclass(slots=True)
class FilterContext:
    """What a filter sees.

    config: its most specific configuration. random: the engine's, seeded in tests. cluster: where the route sends the
    request; None when the route answers by itself, and when there is none. flag: sets one of Envoy's response flags, which
    stays on the call. at_end: its argument is called once when the call is over: answered, failed, cancelled, or dropped
    without an end (then a little later, since a finalizer must not take a lock).
    """

    request: RequestView
    config: Any
    random: Random
    cluster: str | None
    flag: Callable[[str], None]
    at_end: Callable[[Callable[[], None]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterScope:
    """Where a filter stands. stat_prefix: the HttpConnectionManager's. store: the state and the metrics of the Mesh."""

    stat_prefix: str
    store: StateStore


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
        """The next step after WaitUntil (what it carried) or Ask (the service's result, or why there is none)."""
