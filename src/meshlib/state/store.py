"""Everything that outlives the snapshots of one Mesh."""

from __future__ import annotations

import threading
from collections.abc import Container, Iterable, Iterator

from meshlib.state.cluster import ClusterState
from meshlib.state.faults import ActiveFaults
from meshlib.state.http_stats import HttpStats
from meshlib.state.request_stats import RequestStats
from meshlib.stats import Registry, Scope

__all__ = ["StateStore"]


DEPARTED = 1000
"""So many clusters that have left the configuration keep their state and their metrics."""


class StateStore:
    """ClusterState by cluster name. A cluster that leaves the configuration and comes back finds its state again.

    That of the clusters that left longest ago is forgotten when there are more than DEPARTED of them and nothing uses it.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self._lock = threading.Lock()
        self._clusters: dict[str, ClusterState] = {}
        self._departed: dict[str, None] = {}
        self._faults: dict[str, ActiveFaults] = {}
        self._http: dict[str, HttpStats] = {}
        self._requests: dict[tuple[str, str, str], RequestStats] = {}

    def cluster(self, name: str) -> ClusterState:
        state = self._clusters.get(name)
        if state is None:
            with self._lock:
                state = self._clusters.setdefault(name, ClusterState(name, self.registry))
        return state

    def depart(self, gone: Iterable[str], present: Container[str]) -> None:
        """Clusters have left the configuration. present: the names of those that are in it. One thread at a time."""
        for name in gone:
            self._departed.pop(name, None)
            self._departed[name] = None
        if len(self._departed) <= DEPARTED:
            return
        for name in list(self._departed):
            if name in present or (len(self._departed) > DEPARTED and self._forget(name)):
                del self._departed[name]

    def _forget(self, name: str) -> bool:
        with self._lock:
            state = self._clusters.get(name)
            if state is not None and state.in_use:
                return False
            self._clusters.pop(name, None)
        if state is not None:
            self.registry.forget(state.scope.prefix)
            self.registry.forget_labelled(("cluster", name))
        return True

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
