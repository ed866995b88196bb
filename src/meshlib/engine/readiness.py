"""Whether a configuration is complete enough for calls."""

from __future__ import annotations

from collections.abc import Iterable

from meshlib.engine.program import Program
from meshlib.snapshot import Kind

__all__ = ["first_missing"]


def first_missing(program: Program, names: Iterable[str], now: float) -> str | None:
    """What these listeners still wait for, None when they are complete. now: monotonic seconds."""
    snapshot = program.snapshot
    for name in names:
        listener = snapshot.listener(name)
        if listener is None:
            if snapshot.pending(Kind.LISTENER, name):
                return f"Listener {name!r}"
            continue
        config = snapshot.route_config(listener)
        if config is None:
            wanted = listener.http.route_config_name
            if wanted is not None and snapshot.pending(Kind.ROUTE, wanted):
                return f"RouteConfiguration {wanted!r}"
            continue
        for cluster_name in config.cluster_names:
            cluster = snapshot.clusters.get(cluster_name)
            if cluster is None and snapshot.pending(Kind.CLUSTER, cluster_name):
                return f"Cluster {cluster_name!r}"
            if (
                cluster is not None
                and snapshot.assignment(cluster) is None
                and snapshot.pending_endpoints(cluster)
            ):
                return f"the endpoints of cluster {cluster_name!r}"
            compiled = program.clusters.get(cluster_name)
            if compiled is not None and (compiled.secure_by or 0.0) > now:
                return f"what TLS to cluster {cluster_name!r} needs"
    return None
