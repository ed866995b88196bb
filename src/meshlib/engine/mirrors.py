"""Copies of a request for other clusters (RouteAction.request_mirror_policies). Nothing that happens to them touches the call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshlib.engine.actions import Mirror, Start
from meshlib.engine.attempt import Attempt, Holding
from meshlib.engine.counting import count_failure
from meshlib.engine.events import Headers
from meshlib.engine.headers import shadow_host
from meshlib.resources.route import MirrorPolicy

if TYPE_CHECKING:
    from meshlib.engine.engine import Engine
    from meshlib.policy.failure import FailureKind

__all__ = ["Mirrors"]


class Mirrors:
    """The copies of one call. Their attempt numbers are negative, so that they are never taken for the call's own."""

    __slots__ = ("_alive",)

    def __init__(self) -> None:
        self._alive: dict[int, Attempt] = {}

    def start(
        self, engine: Engine, policies: Sequence[MirrorPolicy], original: Start, now: float
    ) -> list[Mirror]:
        """What to send for these policies; a copy that finds no endpoint or no permit is not made."""
        copies: list[Mirror] = []
        for policy in policies:
            fraction = policy.fraction
            if fraction is not None and engine.random.randrange(fraction.denominator) >= fraction.numerator:
                continue
            cluster = engine.program.clusters.get(policy.cluster)
            endpoint = None if cluster is None else cluster.balancer.pick(now)
            if cluster is None or endpoint is None:
                continue
            state = cluster.state
            copy = Attempt(-1 - len(copies), endpoint, cluster, state.default, now)
            if not copy.take_request_permit():
                continue
            self._alive[copy.number] = copy
            start = Start(
                copy.number,
                endpoint,
                cluster.cluster,
                state,
                state.default,
                authority=original.authority if policy.keep_host else shadow_host(original.authority),
                path=original.path,
                headers=original.headers,
                permitted=True,
                extra=original.extra,
            )
            copies.append(Mirror(start))
        return copies

    def responded(self, event: Headers, now: float) -> None:
        """A copy, if it is one, has been answered: that is counted, and nothing else."""
        copy = self._alive.get(event.attempt)
        if copy is not None:
            copy.cluster.state.stats.internal.count(event.status)
            if event.end:
                self.over(event.attempt, now)

    def over(self, number: int, now: float, failure: FailureKind | None = None) -> None:
        """A copy's response is complete, or it has failed: either way it only gives back what it held."""
        copy = self._alive.pop(number, None)
        if copy is None:
            return
        stats = copy.cluster.state.stats
        if failure is None:
            stats.time((now - copy.started) * 1000, internal=True)
        else:
            count_failure(stats, failure, multiplexed=copy.endpoint.way.multiplexed)
        copy.give_back()

    def abandon(self) -> None:
        """From a finalizer, which must not take a lock."""
        for copy in self._alive.values():
            if copy.holding is not Holding.NOTHING:
                copy.cluster.state.abandoned.append(copy.give_back)
