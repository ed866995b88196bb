"""Everything that outlives the snapshots of one Mesh."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from meshlib.state.cluster import ClusterState
from meshlib.state.faults import ActiveFaults
from meshlib.state.http_stats import HttpStats
from meshlib.state.request_stats import RequestStats
from meshlib.stats import Registry, Scope

__all__ = ["StateStore"]


class StateStore:
    """ClusterState by cluster name. A cluster that leaves the configuration and comes back finds its state again."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._lock = threading.Lock()
        self._clusters: dict[str, ClusterState] = {}
        self._faults: dict[str, ActiveFaults] = {}
        self._http: dict[str, HttpStats] = {}
        self._requests: dict[tuple[str, str, str], RequestStats] = {}

    def cluster(self, name: str) -> ClusterState:
        state = self._clusters.get(name)
        if state is None:
            with self._lock:
                state = self._clusters.setdefault(name, ClusterState(name, self.registry))
        return state

    def rotated(self) -> bool:
        """A certificate or a bundle was exchanged. True when connections to some cluster are made in another way now."""
        changed = [state.rotated() for state in self]
        return any(changed)

    def http(self, stat_prefix: str) -> HttpStats:
        """The counters of the listeners with this stat_prefix."""
        with self._lock:
            stats = self._http.get(stat_prefix)
            if stats is None:
                scope = self.registry.scope("http", ("envoy_http_conn_manager_prefix", stat_prefix))
                stats = self._http[stat_prefix] = HttpStats(scope)
        return stats

    def requests(self, virtual_host: str, kind: str, name: str) -> RequestStats:
        """The counters of a virtual cluster (kind `vcluster`), or of a route's stat_prefix (kind `route`)."""
        key = (virtual_host, kind, name)
        stats = self._requests.get(key)
        if stats is None:
            with self._lock:
                label = "envoy_virtual_cluster" if kind == "vcluster" else "envoy_route"
                host = self.registry.scope("vhost", ("envoy_virtual_host", virtual_host))
                stats = self._requests.setdefault(key, RequestStats(host.scope(kind, (label, name))))
        return stats

    def active_faults(self, scope: Scope) -> ActiveFaults:
        """What the gauge `active_faults` of this scope counts."""
        with self._lock:
            faults = self._faults.get(scope.prefix)
            if faults is None:
                faults = self._faults[scope.prefix] = ActiveFaults(scope.gauge("active_faults"))
        return faults

    def __iter__(self) -> Iterator[ClusterState]:
        return iter(list(self._clusters.values()))

    def renew_locks(self) -> None:
        """Call in a forked child before anything else."""
        self._lock = threading.Lock()
        self.registry.after_fork_in_child()
        for state in self._clusters.values():
            state.renew_lock()
        for faults in self._faults.values():
            faults.renew()
        for stats in self._http.values():
            stats.ended = 0
