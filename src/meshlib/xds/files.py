"""A configuration without a control plane, behind the same few methods as AdsClient."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from meshlib.errors import ControlPlaneError
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.runtime import fork
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.runtime.threads import Executor, Worker
from meshlib.snapshot import Accepted, Kind, ResourceState, ResourceStatus, Snapshot, from_resources
from meshlib.snapshot.snapshot import kind_of, name_of
from meshlib.stats import Registry
from meshlib.xds import dns
from meshlib.xds.inspection import inspected
from meshlib.xds.report import Reporter

__all__ = ["FileSource"]


class FileSource:
    """Resources that were read from files: in force at once, complete, and never changed except by DNS.

    A background thread exists only while there is a cluster whose endpoints come from DNS, from `start` on. on_snapshot: called
    there for each snapshot after the first one, which `snapshot` holds from the beginning. usage: see DnsDriver.

    Raises:
        ConfigError: two resources of one type have the same name.
    """

    last_error: ControlPlaneError | None = None
    connected = True

    def __init__(
        self,
        resources: Iterable[Accepted],
        *,
        on_snapshot: Callable[[Snapshot], None],
        clock: Clock | None = None,
        registry: Registry | None = None,
        usage: Callable[[str], int] | None = None,
        resolve: dns.Resolve = dns.resolve,
        executor: Callable[[], Executor] | None = None,
    ) -> None:
        self._on_snapshot = on_snapshot
        self._clock = clock or SystemClock()
        self._registry = registry or Registry()
        self._usage = usage
        self._resolve = resolve
        self._make_executor = executor or (lambda: Worker("meshlib-dns", self._clock))
        self._executor: Executor | None = None
        self._started = False
        self._closed = False
        self._loaded = self._clock.time()
        items = [inspected(item) for item in resources]
        self.snapshot = from_resources(items)
        reporter = Reporter(self._registry)
        by_kind: dict[Kind, dict[str, Accepted]] = {}
        for item in items:
            kind, name = kind_of(item.resource), name_of(item.resource)
            by_kind.setdefault(kind, {})[name] = item
        for kind, found in by_kind.items():
            reporter.results(kind, found, "")
        fork.register(self)

    def start(self) -> None:
        """Begin to resolve the names of DNS clusters, if there are any."""
        if self._started or self._closed:
            return
        self._started = True
        clusters = {name: item for name, item in self.snapshot.clusters.items() if dns.is_dns(item)}
        if not clusters:
            return
        executor = self._executor = self._make_executor()
        driver = dns.DnsDriver(
            executor=executor,
            clock=self._clock,
            on_resolved=self._resolved,
            registry=self._registry,
            resolve=self._resolve,
            usage=self._usage,
        )
        executor.post(lambda: driver.sync(clusters))

    def want_listener(self, name: str) -> None:
        """Nothing to ask for: what is not in the files does not exist."""
        self.start()

    def want_cluster(self, name: str) -> None:
        """As want_listener."""
        self.start()

    def unwant_listener(self, name: str) -> None:
        """As want_listener."""

    def status(self) -> tuple[ResourceStatus, ...]:
        """Every resource; `updated` is when the files were loaded, in seconds since the epoch."""
        snapshot = self.snapshot
        return tuple(
            ResourceStatus(
                kind=kind,
                name=name,
                state=ResourceState.ACKED,
                version="",
                error=None,
                error_version="",
                updated=self._loaded,
            )
            for kind, found in (
                (Kind.LISTENER, snapshot.listeners),
                (Kind.ROUTE, snapshot.routes),
                (Kind.CLUSTER, snapshot.clusters),
                (Kind.ENDPOINT, snapshot.endpoints),
                (Kind.SECRET, snapshot.secrets),
                (Kind.LISTENER, snapshot.inbound),
            )
            for name in found
        )

    def close(self) -> None:
        """End the thread. Idempotent; the snapshot stays readable."""
        self._closed = True
        if self._executor is not None:
            self._executor.close(2.0)

    def before_fork(self) -> None:
        if self._executor is not None:
            self._executor.pause(fork.PATIENCE)

    def after_fork_in_parent(self) -> None:
        if self._executor is not None:
            self._executor.resume()

    def after_fork_in_child(self) -> None:
        if self._executor is not None:
            self._executor.abandon()
            self._executor = None
        self._started = False

    def _resolved(self, cluster: str, assignment: ClusterLoadAssignment) -> None:
        self.snapshot = self.snapshot.with_resolved(cluster, assignment)
        self._on_snapshot(self.snapshot)
