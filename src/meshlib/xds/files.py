"""A configuration without a control plane, behind the same few methods as AdsClient."""

from __future__ import annotations

import random as _random
from collections.abc import Callable, Iterable, Mapping

from meshlib.errors import ControlPlaneError
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.secret import Secret
from meshlib.resources.tls import AdsSource, SecretRef
from meshlib.runtime import fork
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.runtime.stream import OpenStream, over_grpc
from meshlib.runtime.threads import Executor, Worker
from meshlib.snapshot import Accepted, Kind, Ref, ResourceState, ResourceStatus, Snapshot, from_resources
from meshlib.snapshot.snapshot import kind_of, name_of
from meshlib.stats import Registry
from meshlib.xds import dns
from meshlib.xds.backoff import Backoff, reconnect_wait
from meshlib.xds.bootstrap import Node
from meshlib.xds.decoding import Decode
from meshlib.xds.inspection import inspected
from meshlib.xds.journal import Journal
from meshlib.xds.report import Reporter
from meshlib.xds.sds import SdsContext, SdsDriver

__all__ = ["FileSource"]


def _decode(type_url: str, data: bytes, pause: Callable[[], None]) -> Accepted:
    from meshlib.resources import decode_any

    return decode_any(type_url, data, pause)


class FileSource:
    """Resources that were read from files: in force at once, complete, and never changed except by DNS and by secrets.

    A background thread exists only while there is a cluster whose endpoints come from DNS, or a secret that an SDS server or
    another file gives, from `start` on. on_snapshot: called there for each snapshot after the first one, which `snapshot` holds
    from the beginning. usage: see DnsDriver. node: who asks the SDS servers. encoded: the bytes of resources, for people who look
    (`encoded`).

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
        encoded: Mapping[Ref, bytes] | None = None,
        resolve: dns.Resolve = dns.resolve,
        decode: Decode = _decode,
        node: Node | None = None,
        random: _random.Random | None = None,
        open_stream: OpenStream = over_grpc,
        executor: Callable[[], Executor] | None = None,
    ) -> None:
        self._on_snapshot = on_snapshot
        self._clock = clock or SystemClock()
        self._registry = registry or Registry()
        self._usage = usage
        self._resolve = resolve
        self._make_executor = executor or (lambda: Worker("meshlib-dns", self._clock))
        self._decode = decode
        self.node = node or Node()
        self._wait = reconnect_wait((random or _random.Random()).random)
        self._open_stream = open_stream
        self._sds: SdsDriver | None = None
        self._executor: Executor | None = None
        self._started = False
        self._closed = False
        self._loaded = self._clock.time()
        self.journal = Journal(connected_since=self._loaded)
        self._encoded = dict(encoded or {})
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
        """Begin to resolve the names of DNS clusters, and to follow secrets from elsewhere, if there are any."""
        if self._started or self._closed:
            return
        self._started = True
        clusters = {name: item for name, item in self.snapshot.clusters.items() if dns.is_dns(item)}
        secrets = _external_secrets(self.snapshot)
        if not clusters and not secrets:
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
        sds = self._sds = SdsDriver(
            SdsContext(
                executor=executor,
                clock=self._clock,
                registry=self._registry,
                node=self.node,
                decode=self._decode,
                publish=self._secret,
                open_stream=self._open_stream,
                backoff=lambda: Backoff(self._wait),
                snapshot=lambda: self.snapshot,
                clusters={},
            )
        )
        executor.post(lambda: driver.sync(clusters))
        executor.post(lambda: sds.sync(secrets))

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

    def encoded(self, kind: Kind, name: str, *, refused: bool = False) -> bytes | None:
        """The bytes of the resource, where the files gave them. Nothing of them is ever refused here."""
        return None if refused else self._encoded.get((kind, name))

    def close(self) -> None:
        """End the thread. Idempotent; the snapshot stays readable."""
        self._closed = True
        if self._executor is not None:
            self._executor.close(2.0)
        if self._sds is not None:
            self._sds.close()

    def before_fork(self) -> None:
        if self._executor is not None:
            self._executor.pause(fork.PATIENCE)
        if self._sds is not None:
            self._sds.before_fork()

    def after_fork_in_parent(self) -> None:
        if self._sds is not None:
            self._sds.after_fork_in_parent()
        if self._executor is not None:
            self._executor.resume()

    def after_fork_in_child(self) -> None:
        if self._sds is not None:
            self._sds.after_fork_in_child()
            self._sds = None
        if self._executor is not None:
            self._executor.abandon()
            self._executor = None
        self._started = False

    def _secret(self, ref: SecretRef, secret: Secret | None) -> None:
        self.snapshot = self.snapshot.with_secret(ref, secret)
        self._on_snapshot(self.snapshot)

    def _resolved(self, cluster: str, assignment: ClusterLoadAssignment) -> None:
        self.snapshot = self.snapshot.with_resolved(cluster, assignment)
        self._on_snapshot(self.snapshot)


def _external_secrets(snapshot: Snapshot) -> frozenset[SecretRef]:
    """What clusters and listeners need and is not in the files."""
    refs = [ref for cluster in snapshot.clusters.values() for ref in cluster.secrets]
    refs += [ref for listener in snapshot.inbound.values() for ref in listener.secrets]
    return frozenset(ref for ref in refs if not isinstance(ref.source, AdsSource))
