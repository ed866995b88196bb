"""Fault injection (extensions.filters.http.fault.v3.HTTPFault)."""

from __future__ import annotations

from dataclasses import dataclass

from meshlib.resources.matching import FractionalPercent, HeaderMatch

__all__ = ["FaultAbort", "FaultDelay", "HttpFault"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultDelay:
    """common.fault.v3.FaultDelay. percentage: of the requests, none by default.

    milliseconds: None when the request says how long (`header_delay`). 0 is no delay, as in Envoy, which drops what is less
    than a millisecond.
    """

    percentage: FractionalPercent
    milliseconds: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultAbort:
    """FaultAbort. percentage: of the requests, none by default.

    At most one of http_status (200 .. 599) and grpc_status is set; without either the request says which (`header_abort`).
    """

    percentage: FractionalPercent
    http_status: int | None = None
    grpc_status: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpFault:
    """Which requests get a fault, and which. Every condition must hold: those that are empty hold always.

    upstream_cluster: the route's cluster. headers: of the request, all of them. downstream_nodes: values of
    x-envoy-downstream-service-node. max_active_faults: how many calls may have a fault at the same time, None for no limit.
    downstream_cluster_stats: whether faults are also counted for the caller that x-envoy-downstream-service-cluster names.
    """

    delay: FaultDelay | None = None
    abort: FaultAbort | None = None
    upstream_cluster: str = ""
    headers: tuple[HeaderMatch, ...] = ()
    downstream_nodes: frozenset[str] = frozenset()
    max_active_faults: int | None = None
    downstream_cluster_stats: bool = True
