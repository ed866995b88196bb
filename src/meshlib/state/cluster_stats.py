"""What is counted of a cluster, by Envoy's names: `cluster.<name>.<attribute>`.

What most clusters count some day is bound once; the rest is made when it is counted for the first time (`more`), since a
process may know ten thousand clusters and call three.
"""

from __future__ import annotations

from meshlib.state.responses import ResponseCodes
from meshlib.stats import Histogram, Scope

__all__ = ["ClusterStats"]


class ClusterStats:
    """The cluster's counters.

    external, internal: the responses that calls ended with, whoever gave them; internal: of calls whose request counts as one of
    the mesh's own, which Envoy does where it trusts the caller. retried: the responses that led to a retry.
    """

    __slots__ = (
        "_external_time",
        "_internal",
        "_internal_time",
        "_retried",
        "_scope",
        "ejections_active",
        "ejections_consecutive_5xx",
        "ejections_detected_consecutive_5xx",
        "ejections_enforced_consecutive_5xx",
        "ejections_enforced_total",
        "ejections_overflow",
        "ejections_total",
        "external",
        "lb_healthy_panic",
        "membership_change",
        "upstream_cx_connect_fail",
        "upstream_cx_connect_timeout",
        "upstream_cx_overflow",
        "upstream_cx_total",
        "upstream_rq_active_overflow",
        "upstream_rq_max_duration_reached",
        "upstream_rq_pending_overflow",
        "upstream_rq_pending_total",
        "upstream_rq_per_try_timeout",
        "upstream_rq_retry",
        "upstream_rq_retry_limit_exceeded",
        "upstream_rq_retry_overflow",
        "upstream_rq_retry_success",
        "upstream_rq_rx_reset",
        "upstream_rq_time",
        "upstream_rq_timeout",
        "upstream_rq_total",
    )

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        counter = scope.counter
        self.upstream_rq_total = counter("upstream_rq_total")
        self.upstream_rq_timeout = counter("upstream_rq_timeout")
        self.upstream_rq_per_try_timeout = counter("upstream_rq_per_try_timeout")
        self.upstream_rq_max_duration_reached = counter("upstream_rq_max_duration_reached")
        self.upstream_rq_rx_reset = counter("upstream_rq_rx_reset")
        self.upstream_rq_pending_total = counter("upstream_rq_pending_total")
        self.upstream_rq_pending_overflow = counter("upstream_rq_pending_overflow")
        self.upstream_rq_active_overflow = counter("upstream_rq_active_overflow")
        self.upstream_rq_retry = counter("upstream_rq_retry")
        self.upstream_rq_retry_success = counter("upstream_rq_retry_success")
        self.upstream_rq_retry_overflow = counter("upstream_rq_retry_overflow")
        self.upstream_rq_retry_limit_exceeded = counter("upstream_rq_retry_limit_exceeded")
        self.upstream_cx_total = counter("upstream_cx_total")
        self.upstream_cx_overflow = counter("upstream_cx_overflow")
        self.upstream_cx_connect_fail = counter("upstream_cx_connect_fail")
        self.upstream_cx_connect_timeout = counter("upstream_cx_connect_timeout")
        self.lb_healthy_panic = counter("lb_healthy_panic")
        self.membership_change = counter("membership_change")
        outlier = scope.scope("outlier_detection")
        self.ejections_enforced_total = outlier.counter("ejections_enforced_total")
        self.ejections_enforced_consecutive_5xx = outlier.counter("ejections_enforced_consecutive_5xx")
        self.ejections_detected_consecutive_5xx = outlier.counter("ejections_detected_consecutive_5xx")
        self.ejections_consecutive_5xx = outlier.counter("ejections_consecutive_5xx")
        self.ejections_total = outlier.counter("ejections_total")
        self.ejections_overflow = outlier.counter("ejections_overflow")
        self.ejections_active = outlier.gauge("ejections_active")
        self.upstream_rq_time = scope.histogram("upstream_rq_time")
        external = scope.scope("external")
        self.external = ResponseCodes(scope, external)
        self._external_time = external.histogram("upstream_rq_time")
        self._internal: ResponseCodes | None = None
        self._internal_time: Histogram | None = None
        self._retried: ResponseCodes | None = None

    @property
    def internal(self) -> ResponseCodes:
        if self._internal is None:
            self._internal = ResponseCodes(self._scope, self._scope.scope("internal"))
        return self._internal

    @property
    def retried(self) -> ResponseCodes:
        if self._retried is None:
            self._retried = ResponseCodes(self._scope.scope("retry"))
        return self._retried

    def time(self, milliseconds: float, internal: bool) -> None:
        """From the end of the request to the end of its response."""
        split = self._external_time
        if internal:
            split = self._time_of_internal()
        every = self.upstream_rq_time
        bucket = 0
        for bound in every.bounds:  # most calls are in one of the first buckets
            if milliseconds <= bound:
                break
            bucket += 1
        every.buckets[bucket] += 1
        every.total += milliseconds
        split.buckets[bucket] += 1
        split.total += milliseconds

    def _time_of_internal(self) -> Histogram:
        if self._internal_time is None:
            self._internal_time = self._scope.scope("internal").histogram("upstream_rq_time")
        return self._internal_time

    def connection_begun(self, *, multiplexed: bool) -> None:
        """A connection is about to be opened. multiplexed: HTTP/2."""
        self.upstream_cx_total.value += 1
        self.more("upstream_cx_http2_total" if multiplexed else "upstream_cx_http1_total")

    def more(self, leaf: str) -> None:
        """One more of a counter that is too rare to be bound: nothing that happens to every call."""
        self._scope.counter(leaf).value += 1
