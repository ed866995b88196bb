"""Joins a Mesh with what observes it, when it starts. What an observer needs is imported here and no earlier."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from meshlib.observe.settings import Observe

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["attach", "remember"]


def attach(mesh: Mesh, settings: Observe) -> None:
    """Subscribe the observers that these settings ask for. Once for each Mesh.

    Raises ConfigError for an access log that can't be; nothing has been subscribed then.
    """
    engine = mesh.engine
    if settings.access_log or (settings.listener_access_log and _may_ask_for_logs(mesh)):
        from meshlib.observe.access_log.setup import subscribe

        mesh.access_logs = subscribe(
            engine,
            mesh.stats,
            mesh.clock,
            engine.random,
            settings.access_log,
            configured=settings.listener_access_log,
        )
    if settings.tracing is not False:
        from meshlib.observe.server_tracing import ServerTracingObserver
        from meshlib.observe.tracing import TracingObserver
        from meshlib.observe.tracing.gate import Gate

        provider = None if settings.tracing is True else settings.tracing
        mesh.traces = tracing = TracingObserver(
            provider=provider, trusted=engine.trust_request_headers, packs=engine.envoy_headers
        )
        engine.observe(Gate(tracing))
        engine.observe(ServerTracingObserver(provider=provider))
    if settings.metrics:
        _count(mesh)
    if settings.otel_metrics is not False:
        from meshlib.observe.otel_metrics import OtelMetrics

        given = None if settings.otel_metrics is True else settings.otel_metrics
        OtelMetrics(mesh.stats, mesh.clock.time, given)
    if settings.recent_calls is not None:
        remember(mesh, settings.recent_calls)


def remember(mesh: Mesh, size: int) -> None:
    """Keep the last calls and requests from now on, so many of each. Once for each Mesh; 0: none."""
    if size > 0:
        from meshlib.observe.recent import RecentCalls, RecentRequests

        mesh.recent = RecentCalls(size, mesh.traces)
        mesh.served = RecentRequests(size, traced=mesh.traces is not None)
        mesh.engine.observe(mesh.recent)
        mesh.engine.observe(mesh.served)


def _count(mesh: Mesh) -> None:
    from meshlib.observe.metrics import MetricsObserver
    from meshlib.observe.workload import own_workload

    observer = MetricsObserver(mesh.engine, mesh.stats, own_workload(mesh.node, os.environ))
    mesh.engine.observe(observer.tally)
    mesh.engine.observe(observer)


def _may_ask_for_logs(mesh: Mesh) -> bool:
    """Whether the configuration from files asks for access logs, or a control plane may."""
    snapshot = mesh.snapshot
    if not snapshot.complete:
        return True
    if any(listener.http.access_log for listener in snapshot.listeners.values()):
        return True
    chains = (chain for listener in snapshot.inbound.values() for chain in listener.chains)
    return any(chain.http.access_log for chain in chains)
