"""What clients of the embedded control plane say of their load (LRS): kept, for whoever looks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc

from meshlib import proto

__all__ = ["INTERVAL", "LoadReport", "LoadReports"]

SERVICE = "envoy.service.load_stats.v3.LoadReportingService"
INTERVAL = 10.0
"""Seconds between two reports of a client."""

KEPT = 10_000


@dataclass(frozen=True, slots=True)
class LoadReport:
    """node: the id of the client. clusters: its envoy.config.endpoint.v3.ClusterStats messages."""

    node: str
    clusters: tuple[Any, ...]


class LoadReports:
    """Asks each client for all of its clusters, endpoint by endpoint. changed: called after each report."""

    def __init__(self, interval: float, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._kept: deque[LoadReport] = deque(maxlen=KEPT)
        answer = proto.message("envoy.service.load_stats.v3.LoadStatsResponse")(
            send_all_clusters=True, report_endpoint_granularity=True
        )
        answer.load_reporting_interval.FromTimedelta(timedelta(seconds=interval))
        self._answer: bytes = answer.SerializeToString()

    @property
    def kept(self) -> tuple[LoadReport, ...]:
        return tuple(self._kept)

    def handler(self) -> Any:
        """What grpc's server is given."""
        method = grpc.stream_stream_rpc_method_handler(
            self._serve, request_deserializer=None, response_serializer=None
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"StreamLoadStats": method})

    def _serve(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        node: str | None = None
        try:
            for data in requests:
                report = proto.parse("envoy.service.load_stats.v3.LoadStatsRequest", data)
                if node is None:
                    node = str(report.node.id)
                    yield self._answer
                if report.cluster_stats:
                    self._kept.append(LoadReport(node, tuple(report.cluster_stats)))
                    self._changed()
        except proto.DecodeError:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not a LoadStatsRequest")
