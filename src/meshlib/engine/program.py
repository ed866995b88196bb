"""A snapshot made ready for calls: one Program, swapped as a whole and never changed.

Compiling happens on the thread that publishes. What did not change since the last Program (the same resource objects) is
taken over as it is, so that a push costs what it changes. What calls read is plain classes, since a dataclass with slots is not
compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING

from meshlib.balance.balancer import LoadBalancer
from meshlib.balance.factory import make_balancer
from meshlib.balance.membership import changed_priorities
from meshlib.balance.outlier import OutlierDetector
from meshlib.engine.filters import Link, build_chain
from meshlib.engine.steps import FilterScope
from meshlib.resources.access_log import shows_connections
from meshlib.resources.cluster import Cluster, DiscoveryType
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.listener import Listener, RouterConfig
from meshlib.resources.route import RouteConfiguration
from meshlib.routing.authority import compile_authority
from meshlib.routing.compiled import CompiledRoute
from meshlib.routing.path import NormalPath, compile_path
from meshlib.routing.table import RouteTable
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.runtime.threads import Slicer
from meshlib.snapshot import Kind, Snapshot
from meshlib.state import ClusterState, HttpStats, Secure, StateStore

if TYPE_CHECKING:
    from meshlib.policy.breaker import Breaker, BreakerSet

__all__ = ["ClusterProgram", "Compiler", "ListenerProgram", "Program"]

LIKENESSES = 4096
"""So many sorts of requests are known at most: an application may make up the paths that it calls."""

SECRETS_TIMEOUT = 15.0
"""Seconds that calls wait for the first certificates of a cluster (ConfigSource.initial_fetch_timeout: its default)."""


class ListenerProgram:
    """A listener with its route table.

    table: None when its RouteConfiguration is not there. awaited: it has been asked for and may still come. normalise,
    normalise_path: what the HttpConnectionManager does to the Host and to the path, None when nothing. stats: what its
    stat_prefix counts, or the listener's name where it has none. shows_connections: one of its access logs does.
    idle_timeout, longest: its stream_idle_timeout and max_stream_duration in seconds, 0 for none. lets_be: requests meet their
    routes as they are.
    """

    __slots__ = (
        "awaited",
        "config",
        "filters",
        "idle_timeout",
        "lets_be",
        "listener",
        "longest",
        "normalise",
        "normalise_path",
        "shows_connections",
        "stats",
        "suppress_envoy_headers",
        "table",
    )

    def __init__(
        self,
        listener: Listener,
        config: RouteConfiguration | None,
        table: RouteTable | None,
        awaited: bool,
        filters: tuple[Link, ...],
        stats: HttpStats,
    ) -> None:
        manager = listener.http
        router = manager.http_filters[-1].config
        self.listener = listener
        self.config = config
        self.table = table
        self.awaited = awaited
        self.filters = filters
        self.stats = stats
        self.normalise: Callable[[str], str] | None = compile_authority(manager)
        self.normalise_path: Callable[[str], NormalPath] | None = compile_path(manager)
        self.lets_be: bool = self.normalise is None and self.normalise_path is None
        self.suppress_envoy_headers: bool = isinstance(router, RouterConfig) and router.suppress_envoy_headers
        self.shows_connections: bool = any(shows_connections(log.format) for log in manager.access_log)
        self.idle_timeout: float = manager.stream_idle_timeout
        self.longest: float = manager.max_stream_duration or 0.0


class ClusterProgram:
    """A cluster with its balancer. awaited: its endpoints, or what TLS to them needs, have been asked for and are not there yet.

    secure_by: until when (monotonic seconds) calls wait for that: afterwards they fail as they do for want of a certificate. None
    when it is there, or not needed. longest: its max_stream_duration in seconds, 0 for none.
    """

    __slots__ = (
        "assignment",
        "awaited",
        "balancer",
        "breaker",
        "cluster",
        "longest",
        "outlier",
        "secure_by",
        "state",
    )

    def __init__(
        self,
        cluster: Cluster,
        assignment: ClusterLoadAssignment | None,
        awaited: bool,
        state: ClusterState,
        balancer: LoadBalancer,
        outlier: OutlierDetector | None,
        breaker: Breaker | None,
        secure_by: float | None,
    ) -> None:
        self.cluster = cluster
        self.assignment = assignment
        self.awaited = awaited
        self.state = state
        self.balancer = balancer
        self.outlier = outlier
        self.breaker = breaker
        self.secure_by = secure_by
        self.longest: float = cluster.max_stream_duration or 0.0


class Known:
    """Where requests of one likeness go (`RequestView.likeness`)."""

    __slots__ = ("listener", "route")

    def __init__(self, listener: ListenerProgram, route: CompiledRoute) -> None:
        self.listener = listener
        self.route = route


class Program:
    """What calls read. listeners and clusters by name; sole: the only listener of a configuration from files."""

    __slots__ = ("_known", "clusters", "listeners", "snapshot", "sole")

    def __init__(
        self,
        snapshot: Snapshot,
        listeners: Mapping[str, ListenerProgram],
        clusters: Mapping[str, ClusterProgram],
        sole: ListenerProgram | None,
    ) -> None:
        self.snapshot = snapshot
        self.listeners = listeners
        self.clusters = clusters
        self.sole = sole
        self._known: dict[str, Known] = {}

    def find(self, name: str) -> ListenerProgram | None:
        """The listener of this name; from files, the only listener when none has the name."""
        return self.listeners.get(name, self.sole)

    def known(self, likeness: str) -> Known | None:
        """What `remember` was told of such requests."""
        return self._known.get(likeness)

    def remember(self, likeness: str, listener: ListenerProgram, route: CompiledRoute) -> None:
        """Such requests take this route. The caller sees to it that nothing about a single one could say otherwise."""
        if len(self._known) >= LIKENESSES:
            self._known = {}
        self._known[likeness] = Known(listener, route)


class Compiler:
    """Makes Programs. Used by one thread at a time.

    secure: makes of a TLS configuration what connections use; None: none may come. names_secrets: the workload's own identity
    may stand for a secret that the configuration does not give.
    """

    def __init__(
        self,
        store: StateStore,
        random: Random,
        breakers: BreakerSet | None = None,
        secure: Secure | None = None,
        clock: Clock | None = None,
        *,
        names_secrets: bool = False,
    ) -> None:
        self._store = store
        self._names_secrets = names_secrets
        self._secure = secure
        self._monotonic = (clock or SystemClock()).monotonic
        self._random = random
        self._breakers = breakers
        self._slicer = Slicer()
        self._leisure = Slicer(budget=0.0002, rest=0.0005)  # for what nobody waits for
        self._defer: Callable[[Callable[[], None]], None] | None = None

    def empty(self) -> Program:
        return Program(Snapshot(), {}, {}, None)

    def compile(
        self,
        snapshot: Snapshot,
        previous: Program,
        defer: Callable[[Callable[[], None]], None] | None = None,
    ) -> Program:
        """The Program for the snapshot, with everything of `previous` that is still the same.

        defer: runs a task on the publishing thread a little later; None: there is no such thread.
        """
        self._defer = defer
        self._slicer.begin()
        listeners = {
            name: self._listener(listener, snapshot, previous.listeners.get(name))
            for name, listener in snapshot.listeners.items()
        }
        clusters = {
            name: self._cluster(cluster, snapshot, previous.clusters.get(name))
            for name, cluster in snapshot.clusters.items()
        }
        sole = next(iter(listeners.values())) if snapshot.complete and len(listeners) == 1 else None
        return Program(snapshot, listeners, clusters, sole)

    def settle(self, program: Program, previous: Program) -> None:
        """After publication, what no call waits for: endpoints that have left are marked, so that pools let go of them."""
        self._leisure.begin()
        pause = self._leisure.pause
        for name, cluster in program.clusters.items():
            before = previous.clusters.get(name)
            if before is cluster or (before is not None and before.assignment is cluster.assignment):
                continue
            known = None if before is None else before.assignment
            changes = changed_priorities(known, cluster.assignment, pause)
            cluster.state.stats.membership_change.value += changes
            cluster.balancer.settle(pause)
            if cluster.outlier is not None:
                cluster.outlier.members(cluster.balancer)
        gone = [name for name in previous.clusters if name not in program.clusters]
        for name in gone:
            state = previous.clusters[name].state
            state.depart(list(state.endpoints.values()), frozenset())
        if gone:
            self._store.depart(gone, program.clusters)

    def _listener(
        self, listener: Listener, snapshot: Snapshot, known: ListenerProgram | None
    ) -> ListenerProgram:
        config = snapshot.route_config(listener)
        name = listener.http.route_config_name
        awaited = config is None and name is not None and snapshot.pending(Kind.ROUTE, name)
        if (
            known is not None
            and known.listener is listener
            and known.config is config
            and known.awaited is awaited
        ):
            return known
        stat_prefix = listener.http.stat_prefix or listener.name
        scope = FilterScope(stat_prefix=stat_prefix, store=self._store)
        return ListenerProgram(
            listener,
            config,
            None if config is None else RouteTable(config),
            awaited,
            build_chain(listener.http.http_filters, scope),
            self._store.http(stat_prefix),
        )

    def _cluster(self, cluster: Cluster, snapshot: Snapshot, known: ClusterProgram | None) -> ClusterProgram:
        assignment = snapshot.assignment(cluster)
        same = known is not None and known.cluster is cluster
        secure_by = self._secure_by(cluster, snapshot, known if same else None)
        awaited = secure_by is not None or (assignment is None and snapshot.pending_endpoints(cluster))
        if known is not None and same and known.assignment is assignment and known.awaited is awaited:
            return known
        state = self._store.cluster(cluster.name)
        arrived = assignment is not None and (known is None or known.assignment is not assignment)
        if arrived and cluster.discovery is DiscoveryType.EDS:
            state.stats.more("update_attempt")
            state.stats.more("update_success")
        outlier = known.outlier if known is not None else None
        if cluster.outlier_detection is None:
            if outlier is not None:
                outlier.release()
            outlier = None
        elif outlier is None:
            outlier = OutlierDetector(cluster.outlier_detection, state, self._random)
        elif not same:
            outlier.configure(cluster.outlier_detection)
        balancer = make_balancer(
            cluster,
            assignment,
            state,
            self._random,
            previous=None if known is None else known.balancer,
            pause=self._slicer.pause,
            defer=self._defer,
        )
        if outlier is not None:
            outlier.members(balancer)
        return ClusterProgram(
            cluster=cluster,
            assignment=assignment,
            awaited=awaited,
            state=state,
            balancer=balancer,
            outlier=outlier,
            breaker=None if self._breakers is None else self._breakers.get(cluster.name),
            secure_by=secure_by,
        )

    def _secure_by(self, cluster: Cluster, snapshot: Snapshot, known: ClusterProgram | None) -> float | None:
        """`ClusterProgram.secure_by`. known: what was made of the same version of the cluster; a new one is taken over here."""
        if known is None:
            self._store.cluster(cluster.name).configure(cluster, self._secure)
        elif known.secure_by is None:
            return None
        if not self._store.cluster(cluster.name).unsecured:
            return None
        if not self._names_secrets and any(map(snapshot.lacks_secret, cluster.secrets)):
            return None
        return self._monotonic() + SECRETS_TIMEOUT if known is None else known.secure_by
