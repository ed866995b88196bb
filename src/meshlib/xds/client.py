"""The ADS client: one state-of-the-world stream, from bytes to snapshots.

All of it happens on one background thread (the executor), so nothing here takes a lock but around the life of the stream,
which a fork must be able to stop. Callers post what they want and read the snapshot, one attribute. A response goes through
these steps: parse, decode what is new, update the graph, publish the snapshot, answer with an ACK or a NACK that carries the
names wanted now, and ask for what the new resources refer to.

Around a fork the stream is closed before, and opened again in the parent. The child keeps the snapshot and the wanted names,
drops every object of the parent's connection without touching it, and connects at its first use (`start`, or the first name
that it wants).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random as _random
from collections.abc import Callable, Sequence
from functools import partial

from tenacity.wait import wait_base

from meshlib.errors import ConfigError, ControlPlaneError, MeshClosed, ResourceError
from meshlib.resources.decode_endpoint import EndpointProblem
from meshlib.resources.endpoint import ClusterLoadAssignment
from meshlib.resources.secret import Secret
from meshlib.resources.tls import SecretRef
from meshlib.runtime import fork
from meshlib.runtime.clock import Clock, SystemClock, epoch_offset
from meshlib.runtime.logs import Once, about, failed
from meshlib.runtime.stream import JOIN, Connection, OpenStream, Stream, over_grpc
from meshlib.runtime.threads import Executor, Slicer, Timer, Worker, refuse_gevent
from meshlib.snapshot import Graph, Kind, Ref, ResourceStatus, Snapshot
from meshlib.stats import Registry
from meshlib.xds import dns, messages
from meshlib.xds.absence import AbsenceTimers
from meshlib.xds.ack import Request, Subscriptions
from meshlib.xds.backoff import Backoff, reconnect_wait
from meshlib.xds.bootstrap import Bootstrap
from meshlib.xds.decoding import Decode, Decoding, ResponseDecoder
from meshlib.xds.inspection import Amended, Inspector, note
from meshlib.xds.journal import Journal
from meshlib.xds.load_report import LoadReports, Loads, no_load
from meshlib.xds.lrs import LrsDriver
from meshlib.xds.report import Reporter
from meshlib.xds.sds import SdsContext, SdsDriver
from meshlib.xds.target import ads_target, lrs_target

__all__ = ["AdsClient"]

logger = logging.getLogger("meshlib.xds")

COMPLETE = (Kind.LISTENER, Kind.CLUSTER)
"""Types whose responses hold everything that was asked for."""

SLICE = 100
"""Resources that are taken over between two pauses; they come into force together."""

SEND_ORDER = (Kind.CLUSTER, Kind.ENDPOINT, Kind.SECRET, Kind.LISTENER, Kind.ROUTE)


class AdsClient:
    """A subscription to a control plane. See the module's text.

    decode: `meshlib.resources.decode_any`. on_snapshot: called on the background thread for each new snapshot, after `snapshot`
    has been set. wait: the back-off between attempts to connect. usage: how often a cluster was used so far, for DNS.
    loads: what is reported where a cluster asks for load reports.
    The rest is injected by tests.
    """

    def __init__(
        self,
        bootstrap: Bootstrap,
        *,
        decode: Decode,
        on_snapshot: Callable[[Snapshot], None],
        clock: Clock | None = None,
        random: _random.Random | None = None,
        registry: Registry | None = None,
        wait: wait_base | None = None,
        usage: Callable[[str], int] | None = None,
        loads: Loads = no_load,
        resolve: dns.Resolve = dns.resolve,
        slicer: Slicer | None = None,
        open_stream: OpenStream = over_grpc,
        executor: Callable[[], Executor] | None = None,
    ) -> None:
        self.bootstrap = bootstrap
        self.node = bootstrap.node
        self.snapshot = Snapshot()
        self.last_error: ControlPlaneError | None = None
        self.journal = Journal()
        self._on_snapshot = on_snapshot
        self._clock = clock or SystemClock()
        self._registry = registry or Registry()
        self._slicer = slicer or Slicer()
        self._usage = usage
        self._loads = loads
        self._resolve = resolve
        self._open_stream = open_stream
        self._make_executor = executor or (lambda: Worker("meshlib-xds", self._clock))
        self._decode = decode
        self._reporter = Reporter(self._registry)
        self._malformed = Once()
        for path in bootstrap.unsupported:
            logger.warning("bootstrap: %s is not supported and has no effect", path)
        self._wait = wait or reconnect_wait((random or _random.Random()).random)
        self._backoff = Backoff(self._wait)
        self._closed = False
        self._reset(Graph())
        fork.register(self)

    def _reset(self, graph: Graph) -> None:
        """All that belongs to one process, and to the life of one background thread."""
        self._graph = graph
        self._decoder = ResponseDecoder(self._decode, self._slicer.pause)
        self._executor = self._make_executor()
        self._subscriptions = Subscriptions(kind.value for kind in Kind)
        self._absence = AbsenceTimers(self._executor, self._absent)
        self._inspector = Inspector(self._executor, self._amended)
        self._dns = dns.DnsDriver(
            executor=self._executor,
            clock=self._clock,
            on_resolved=self._resolved,
            registry=self._registry,
            resolve=self._resolve,
            usage=self._usage,
        )
        self._sds = SdsDriver(
            SdsContext(
                executor=self._executor,
                clock=self._clock,
                registry=self._registry,
                node=self.node,
                decode=self._decode,
                publish=self._secret,
                open_stream=self._open_stream,
                backoff=lambda: Backoff(self._wait),
                snapshot=lambda: self.snapshot,
                clusters=self.bootstrap.sds_clusters,
            )
        )
        self._lrs = LrsDriver(
            LoadReports(self.node, self._loads),
            executor=self._executor,
            clock=self._clock,
            registry=self._registry,
            open_stream=partial(self._open_stream, lrs_target(self.bootstrap.server)),
            backoff=Backoff(self._wait),
        )
        self._connection = Connection(self._open)
        self._answered = False
        self._started = False
        self._sync_posted = False
        self._asked: dict[Kind, int] = {}
        self._expiry: Timer | None = None

    # What the Mesh calls, from any thread

    def start(self) -> None:
        """Connect, unless that has been done. Costs one comparison when it has.

        Raises:
            ConfigError: gevent has patched `threading`.
            MeshClosed: the client has been closed.
        """
        if self._started:
            return
        if self._closed:
            raise MeshClosed("the connection to the control plane has been closed")
        refuse_gevent()
        self._started = True
        self._executor.post(self._connect)

    def want_listener(self, name: str) -> None:
        """Ask for a Listener and for everything that it leads to; starts the client."""
        self._want((Kind.LISTENER, name))

    def want_cluster(self, name: str) -> None:
        """Ask for a cluster that a request header names; starts the client."""
        self._want((Kind.CLUSTER, name))

    def unwant_listener(self, name: str) -> None:
        """Nobody uses the Listener any longer."""
        self._executor.post(partial(self._drop, (Kind.LISTENER, name)))

    def call_later(self, seconds: float, task: Callable[[], None]) -> None:
        """Run the task on the thread that publishes, `seconds` from now."""
        self._executor.call_at(self._clock.monotonic() + seconds, task)

    def status(self) -> tuple[ResourceStatus, ...]:
        """Every wanted resource, `updated` in seconds since the epoch."""
        offset = epoch_offset(self._clock)
        return tuple(
            dataclasses.replace(status, updated=status.updated + offset) for status in self._graph.status()
        )

    def encoded(self, kind: Kind, name: str, *, refused: bool = False) -> bytes | None:
        """The bytes of the resource in force; refused: of its latest version that was refused. None: they are not known."""
        return self._decoder.encoded(kind, name, refused=refused)

    @property
    def connected(self) -> bool:
        """The control plane has answered on the stream that is open now."""
        return self._connection.stream is not None and self._answered

    def close(self) -> None:
        """End the stream and the thread. Idempotent; the last snapshot stays readable."""
        self._closed = True
        stream = self._connection.close()
        self._inspector.stop()
        self._executor.close(2.0)
        self._sds.close()
        self._lrs.close()
        if stream is not None:
            stream.join(JOIN)

    # Around a fork

    def before_fork(self) -> None:
        self._executor.pause(fork.PATIENCE)
        self._connection.before_fork()
        self._sds.before_fork()
        self._lrs.before_fork()

    def after_fork_in_parent(self) -> None:
        interrupted = self._connection.after_fork_in_parent()
        self._sds.after_fork_in_parent()
        self._lrs.after_fork_in_parent()
        self._executor.resume()
        if interrupted:
            self._executor.post(self._resume)

    def after_fork_in_child(self) -> None:
        self._connection.after_fork_in_child()
        self._sds.after_fork_in_child()
        self._lrs.after_fork_in_child()
        self._executor.abandon()
        self._backoff.reset()
        self.journal = Journal()
        wanted = set(self._graph.pinned())
        self._reset(Graph.restore(self.snapshot, wanted, self._clock.monotonic()))

    # On the background thread

    def _want(self, ref: Ref) -> None:
        self.start()
        self._executor.post(partial(self._add, ref))

    def _add(self, ref: Ref) -> None:
        self._graph.want(*ref, self._clock.monotonic())
        self._sync_soon()

    def _drop(self, ref: Ref) -> None:
        self._graph.unwant(*ref, self._clock.monotonic())
        self._sync_soon()

    def _sync_soon(self) -> None:
        """After what has been posted already, so that many names make one request."""
        if not self._sync_posted:
            self._sync_posted = True
            self._executor.post(self._sync)

    def _open(self) -> Stream:
        return self._open_stream(ads_target(self.bootstrap.server), self._on_message, self._on_closed)

    def _connect(self) -> None:
        try:
            if not self._connection.open():
                return
        except ConfigError as error:
            self._lost(str(error))
            return
        self._answered = False
        self._asked.clear()
        self._subscriptions.connected()
        self._sync()

    def _resume(self) -> None:
        self._disconnect()
        self._connect()

    def _on_message(self, stream: Stream, data: bytes) -> None:
        self._executor.post(partial(self._received, stream, data))

    def _on_closed(self, stream: Stream, reason: str) -> None:
        self._executor.post(partial(self._stream_closed, stream, reason))

    def _stream_closed(self, stream: Stream, reason: str) -> None:
        if self._connection.ended(stream):
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        if self._answered:
            self._backoff.reset()
        if self.last_error is None or self._answered:
            uri = self.bootstrap.server.server_uri
            logger.warning("no connection to the control plane %s: %s", uri, reason, extra=self._about())
        self._disconnect()
        self.last_error = ControlPlaneError(f"control plane {self.bootstrap.server.server_uri}: {reason}")
        due = self._clock.monotonic() + self._backoff.next()
        self._executor.call_at(due, self._connect)

    def _about(self, **what: str) -> dict[str, object]:
        return about(server=self.bootstrap.server.server_uri, **what)

    def _disconnect(self) -> None:
        self._answered = False
        self.journal.disconnected()
        self._registry.gauge("control_plane.connected_state").value = 0
        self._absence.stop_all()
        self._subscriptions.disconnected()

    def _received(self, stream: Stream, data: bytes) -> None:
        try:
            if stream is self._connection.stream:
                self._slicer.begin()
                self._respond(messages.parse(data))
        except ControlPlaneError as error:
            self.last_error = error
            self._registry.counter("xds.malformed_responses").value += 1
            if self._malformed(str(error)):
                logger.warning("%s", error, extra=self._about())
        finally:
            stream.processed()

    def _respond(self, response: messages.Response) -> None:
        self._alive()
        try:
            kind = Kind(response.type_url)
        except ValueError:
            known = ", ".join(kind.value for kind in Kind)
            reason = f"type {response.type_url!r} is not used; known are {known}"
            self._send(self._subscriptions.reject(response.type_url, response.nonce, reason))
            return
        if not self._subscriptions.expects(response.type_url):
            self._registry.counter("xds.unrequested_responses").value += 1
            return
        decoding = self._decoder.decode(kind, response.resources, self._graph.wanted(kind))
        self._apply(kind, response.version, decoding)
        self._slicer.pause()
        if self._publish():
            self._slicer.rest()  # calls come first; the control plane can wait for its answer
        self._inspect(decoding)
        names = self._names(kind)
        if decoding.problems:
            answer = self._subscriptions.reject(response.type_url, response.nonce, decoding.text, names)
            self.journal.rejected(kind, response.version, self._clock.time(), decoding.text)
        else:
            answer = self._subscriptions.accept(response.type_url, response.version, response.nonce, names)
            self.journal.accepted(kind, response.version, self._clock.time())
        self._send(answer)
        self._sync()

    def _alive(self) -> None:
        if not self._answered:
            self._answered = True
            if self.last_error is not None:
                uri = self.bootstrap.server.server_uri
                logger.info("connected to the control plane %s again", uri, extra=self._about())
            self.last_error = None
            self.journal.connected(self._clock.time())
            self._registry.gauge("control_plane.connected_state").value = 1

    def _apply(self, kind: Kind, version: str, decoding: Decoding) -> None:
        deletes = kind in COMPLETE and not decoding.nameless
        deletes = deletes and not self.bootstrap.server.ignore_resource_deletion
        now = self._clock.monotonic()
        items = list(decoding.results.items())
        for start in range(0, len(items), SLICE):
            if start:
                self._slicer.pause()
            self._graph.update(kind, dict(items[start : start + SLICE]), version=version, now=now)
        if deletes:
            self._graph.update(kind, {}, version=version, now=now, present=decoding.present)
            self._absence.left_out(kind, decoding.present, now)
        for name in decoding.results:
            self._absence.stop((kind, name))
        self._reporter.results(kind, decoding.results, version)

    def _inspect(self, decoding: Decoding) -> None:
        for result in decoding.results.values():
            if not isinstance(result, ResourceError) and isinstance(result.resource, ClusterLoadAssignment):
                assignment = result.resource
                if self.snapshot.endpoints.get(assignment.cluster_name) is assignment:
                    self._inspector.begin(assignment)

    def _amended(
        self, old: ClusterLoadAssignment, new: ClusterLoadAssignment, problems: Sequence[EndpointProblem]
    ) -> None:
        name = old.cluster_name
        before = self.snapshot.unsupported.get((Kind.ENDPOINT, name), ())
        amended = Amended(new, before + note(problems))
        if self._graph.amend(Kind.ENDPOINT, name, old, amended):
            self._decoder.amend(Kind.ENDPOINT, name, amended)
            self._reporter.left_out(name, note(problems)[0], len(problems))
            self._publish()

    def _absent(self, ref: Ref) -> None:
        self._graph.does_not_exist(*ref, self._clock.monotonic())
        kind, name = ref
        noun = kind.value.rpartition(".")[2]
        logger.warning(
            "the control plane has given no %s %r", noun, name, extra=self._about(type=kind.value, name=name)
        )
        self._sync()

    def _resolved(self, cluster: str, assignment: ClusterLoadAssignment) -> None:
        self._graph.resolved(cluster, assignment)
        self._publish()

    def _secret(self, ref: SecretRef, secret: Secret | None) -> None:
        self._graph.external(ref, secret)
        self._publish()

    def _publish(self) -> bool:
        """Make what the graph has now take effect; False when it is what has been published already."""
        snapshot = self._graph.snapshot()
        before = self.snapshot
        if snapshot is before:
            return False
        self.snapshot = snapshot
        try:
            self._on_snapshot(snapshot)
        except Exception:  # noqa: BLE001 - calls go on with the one before
            failed(logger, "taking over a snapshot failed")
        self._dns.sync(self._graph.dns_clusters())
        self._sds.sync(self._graph.external_secrets())
        if snapshot.clusters is not before.clusters:
            self._lrs.sync(any(cluster.load_reporting for cluster in snapshot.clusters.values()))
        return True

    def _sync(self) -> None:
        """Publish what has changed and ask for what is newly wanted."""
        self._sync_posted = False
        due = self._graph.expire(self._clock.monotonic())
        if due < math.inf and self._expiry is None:
            self._expiry = self._executor.call_at(due, self._expire)
        self._publish()
        if self._connection.stream is None:
            return
        for kind in SEND_ORDER:
            if self._asked.get(kind) != self._graph.revision(kind):
                request = self._subscriptions.subscribe(kind.value, self._names(kind))
                if request is not None:
                    self._send(request)

    def _expire(self) -> None:
        self._expiry = None
        self._sync()

    def _names(self, kind: Kind) -> tuple[str, ...]:
        """The names to subscribe to, in a request that is about to be sent."""
        names = tuple(self._graph.wanted(kind))
        revision = self._graph.revision(kind)
        if self._asked.get(kind) != revision:
            self._asked[kind] = revision
            self._decoder.forget(kind, set(names))
            awaited = [name for name in names if not self._graph.known(kind, name)]
            self._absence.watch(kind, awaited, self._clock.monotonic())
        return names

    def _send(self, request: Request) -> None:
        stream = self._connection.stream
        if stream is not None:
            stream.send(messages.encode(request, self.node))
