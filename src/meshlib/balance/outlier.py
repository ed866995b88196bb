"""Outlier detection: endpoints that fail again and again are left alone for a while (config.cluster.v3.OutlierDetection).

Detection happens as results come in; everything else only at ticks of `interval`, as in Envoy:

- A 5xx answer, or a failure on this side of it (no connection, reset, timeout), counts; any other answer sets the count to
  zero. At `consecutive_5xx` the endpoint is ejected, if enforcing_consecutive_5xx and max_ejection_percent allow it, and
  the count starts again either way.
- At an ejection the multiplier grows by one, unless it would only exceed max_ejection_time further. The endpoint stays out
  for min(base_ejection_time * multiplier, max_ejection_time) plus jitter.
- At a tick, an ejected endpoint whose time is over is taken back; the multiplier of every other one shrinks by one.

Ticks need no timer: nothing can be seen of them but by a call, so the first call after a tick runs it, and every one that
was missed, in order.
"""

from __future__ import annotations

from random import Random
from typing import Protocol

from meshlib.resources.cluster import OutlierDetection
from meshlib.state import ClusterState, EndpointState

__all__ = ["Members", "OutlierDetector"]


class Members(Protocol):
    """The hosts among which the detector may eject: the current LoadBalancer."""

    @property
    def size(self) -> int:
        """How many endpoints there are, whatever their health."""


class OutlierDetector:
    """One for each cluster; it outlives pushes. Results may come from any thread.

    next_sweep: monotonic seconds of the next tick; `sweep` is due then.
    """

    __slots__ = ("_config", "_hosts", "_random", "_state", "next_sweep")

    def __init__(self, config: OutlierDetection, state: ClusterState, random: Random) -> None:
        self._state = state
        self._random = random
        self._hosts = 0
        self._config = config
        self.next_sweep = float("-inf")

    def configure(self, config: OutlierDetection) -> None:
        """Take over a new configuration; ejections that are in force keep their times."""
        self._config = config

    def members(self, members: Members) -> None:
        """The cluster's endpoints changed."""
        self._hosts = members.size
        self._show()

    def release(self) -> None:
        """Outlier detection is over: take every endpoint back."""
        with self._state.lock:
            for endpoint in self._state.endpoints.values():
                endpoint.ejected = False
                endpoint.ejection_multiplier = endpoint.consecutive_5xx = 0
        self._show()

    def record(self, endpoint: EndpointState, ok: bool, now: float) -> bool:
        """The outcome of one attempt. True: the endpoint has been ejected just now."""
        if ok:
            endpoint.consecutive_5xx = 0
            return False
        with self._state.lock:
            endpoint.consecutive_5xx += 1
            if endpoint.consecutive_5xx < self._config.consecutive_5xx:
                return False
            endpoint.consecutive_5xx = 0
            if endpoint.ejected or endpoint.departed:
                return False
            stats = self._state.stats
            stats.ejections_detected_consecutive_5xx.value += 1
            stats.ejections_consecutive_5xx.value += 1
            return self._eject(endpoint, now)

    def sweep(self, now: float) -> bool:
        """Run every tick up to now. True: an endpoint has been taken back."""
        interval = self._config.interval
        if self.next_sweep == float("-inf"):
            self.next_sweep = now + interval
            return False
        taken_back = False
        with self._state.lock:
            endpoints = [
                each for each in self._state.endpoints.values() if each.ejected or each.ejection_multiplier
            ]
            while self.next_sweep <= now:
                if not endpoints:
                    self.next_sweep += interval * ((now - self.next_sweep) // interval + 1)
                    break
                for endpoint in endpoints:
                    taken_back |= self._tick(endpoint, self.next_sweep)
                endpoints = [each for each in endpoints if each.ejected or each.ejection_multiplier]
                self.next_sweep += interval
        if taken_back:
            self._show()
        return taken_back

    def _tick(self, endpoint: EndpointState, moment: float) -> bool:
        config = self._config
        if not endpoint.ejected:
            endpoint.ejection_multiplier -= 1
            return False
        length = min(config.base_ejection_time * endpoint.ejection_multiplier, _longest(config))
        if moment < endpoint.ejected_at + length + endpoint.ejection_jitter:
            return False
        endpoint.ejected = False
        endpoint.consecutive_5xx = 0
        return True

    def _eject(self, endpoint: EndpointState, now: float) -> bool:
        config = self._config
        stats = self._state.stats
        ejected = self._ejected()
        allowed = self._hosts > 0 and 100.0 * (ejected + 1) / self._hosts <= config.max_ejection_percent
        if not allowed and not (config.always_eject_one_host and ejected == 0):
            stats.ejections_overflow.value += 1
            return False
        stats.ejections_total.value += 1
        if self._random.random() * 100 >= config.enforcing_consecutive_5xx:
            return False
        endpoint.ejected = True
        endpoint.ejected_at = now
        if (
            endpoint.ejection_multiplier * config.base_ejection_time
            < _longest(config) + config.base_ejection_time
        ):
            endpoint.ejection_multiplier += 1
        endpoint.ejection_jitter = self._random.random() * config.max_ejection_time_jitter
        stats.ejections_enforced_total.value += 1
        stats.ejections_enforced_consecutive_5xx.value += 1
        self._show()
        return True

    def _ejected(self) -> int:
        """How many of the cluster's present endpoints are ejected."""
        return sum(1 for each in list(self._state.endpoints.values()) if each.ejected and not each.departed)

    def _show(self) -> None:
        self._state.stats.ejections_active.value = float(self._ejected())


def _longest(config: OutlierDetection) -> float:
    """Seconds that an ejection may last, before jitter."""
    return max(config.max_ejection_time, config.base_ejection_time)
