"""What Envoy's connection pools count when an attempt breaks."""

from __future__ import annotations

from meshlib.policy.failure import FailureKind
from meshlib.state import ClusterStats

__all__ = ["count_connect_failure", "count_failure"]


def count_failure(stats: ClusterStats, kind: FailureKind, *, multiplexed: bool) -> None:
    """multiplexed: the endpoint speaks HTTP/2. A reset of HTTP/1.1 is the end of a connection, and is counted as that alone."""
    if kind in (FailureKind.CONNECT_FAILED, FailureKind.CONNECT_TIMEOUT):
        count_connect_failure(stats, kind)
        stats.more("upstream_rq_pending_failure_eject")
    elif kind is FailureKind.PROTOCOL_ERROR:
        stats.more("upstream_cx_protocol_error")
        if multiplexed:
            stats.more("upstream_rq_tx_reset")
    elif multiplexed and kind is FailureKind.TERMINATED:
        stats.more("upstream_rq_pending_failure_eject")
    elif multiplexed and kind is FailureKind.REMOTE_RESET:
        stats.upstream_rq_rx_reset.value += 1


def count_connect_failure(stats: ClusterStats, kind: FailureKind) -> None:
    """Of a connection alone, which no request may have waited for."""
    stats.upstream_cx_connect_fail.value += 1
    if kind is FailureKind.CONNECT_TIMEOUT:
        stats.upstream_cx_connect_timeout.value += 1
