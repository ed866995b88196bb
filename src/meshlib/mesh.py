"""Mesh: owns the life cycle and the state, and joins the parts.

Resources come from a source (the control plane's client, or files), are compiled into a Program by the engine, and are used
by every transport that is given this Mesh. Building a Mesh starts nothing; the first call does, or `start`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from random import Random
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from meshlib.engine.engine import Engine
from meshlib.engine.program import Compiler
from meshlib.engine.readiness import first_missing
from meshlib.errors import ConfigError, MeshClosed
from meshlib.observe.settings import Observe
from meshlib.policy.breaker import BreakerConfig, BreakerSet
from meshlib.runtime import fork
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.snapshot import Kind, ResourceStatus, Snapshot
from meshlib.state import StateStore
from meshlib.stats import Registry

if TYPE_CHECKING:
    from meshlib.admin.admin import Admin
    from meshlib.admin.doors import Doors
    from meshlib.engine.observed import ObservedCall
    from meshlib.identity.source import IdentitySource
    from meshlib.identity.store import IdentityStore
    from meshlib.observe.access_log.logs import Logs
    from meshlib.observe.decision import Decision
    from meshlib.observe.recent import RecentCalls, RecentRequests, TraceSource
    from meshlib.resources.tls import UpstreamTls
    from meshlib.state import Security
    from meshlib.xds.bootstrap import Bootstrap, Node
    from meshlib.xds.client import AdsClient
    from meshlib.xds.files import FileSource
    from meshlib.xds.journal import Journal
    from meshlib.xds.reading import ConfigSource

__all__ = ["Mesh", "default_mesh"]

ATTACHING = 10.0
"""Seconds that a fork waits at most for observers to be loaded, which happens once, at the first call."""

RECENT_CALLS = 256
"""So many of the last calls are kept once somebody can ask for them."""

SETTLE_AFTER = 0.05
"""Seconds after a push before endpoints that have left are looked for; calls come first."""


class Mesh:
    """A service mesh for this process.

        mesh = Mesh(bootstrap="bootstrap.json")     # or nothing: GRPC_XDS_BOOTSTRAP, GRPC_XDS_BOOTSTRAP_CONFIG
        mesh = Mesh(config=["mesh.yaml"])           # files, no control plane at all

    config: files, folders or dictionaries with xDS resources. bootstrap: gRPC's bootstrap, as a file or a dict; server_uri and
    node_id are its short form. headers: `none` adds nothing that the configuration does not ask for, `envoy` adds what Envoy
    adds by itself (x-request-id, x-forwarded-proto, x-envoy-expected-rq-timeout-ms, x-envoy-upstream-service-time, ...).
    trust_request_headers: obey x-envoy-* headers that the application sets. unknown_hosts: `deny` fails a request to a host
    that no Listener knows, `passthrough` sends it without the mesh. config_timeout: seconds that a call waits for its first
    configuration, unless its own deadline is nearer. breakers: an application-level breaker by cluster name, `*` for all.
    identity: where the workload's own certificates and what it trusts come from: the address of a SPIFFE Workload API
    (`"unix:///run/spire/agent.sock"`, `"workload-api"` for the one that SPIFFE_ENDPOINT_SOCKET names), a folder with `tls.crt`
    and its kin, or an IdentitySource. It stands in for certificate providers and secrets that nobody else supplies.
    observe: what it tells of its calls, and how (docs/observability.md). clock, random: injected by tests.

    Thread safe. May be used from several event loops, and in the children of a fork.

    Raises:
        ConfigError: neither config nor a bootstrap is given, or one of them, or identity, is wrong. Files: one line for each
            problem, `FILE:LINE: path.to.field: what is wrong`.
    """

    def __init__(
        self,
        config: Iterable[ConfigSource] | ConfigSource | None = None,
        *,
        bootstrap: Mapping[str, Any] | str | os.PathLike[str] | None = None,
        server_uri: str | None = None,
        node_id: str | None = None,
        headers: Literal["none", "envoy"] = "none",
        trust_request_headers: bool = False,
        unknown_hosts: Literal["deny", "passthrough"] = "deny",
        config_timeout: float = 15.0,
        breakers: Mapping[str, BreakerConfig] | None = None,
        identity: IdentitySource | str | os.PathLike[str] | None = None,
        observe: Observe | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        _one_of("headers", headers, ("none", "envoy"))
        _one_of("unknown_hosts", unknown_hosts, ("deny", "passthrough"))
        self.clock: Clock = clock or SystemClock()
        self.stats = Registry()
        self.passthrough = unknown_hosts == "passthrough"
        self._observe = observe or Observe()
        self._attached = False
        self._asked = False
        self.access_logs: Logs | None = None
        self._own_random = random is None
        self._random = random or Random()
        self._breakers = BreakerSet(breakers or {})
        self._own_identity = None if identity is None else self._read_identity(identity)
        self._providers: Mapping[str, IdentitySource] = {}
        self._identity: IdentityStore | None = None
        self._follow_identity = False
        self._newest = Snapshot()
        self._publishing = threading.RLock()
        self._attaching = threading.RLock()
        self._held = False
        store = StateStore(self.stats)
        self.engine = Engine(
            clock=self.clock,
            random=self._random,
            store=store,
            compiler=Compiler(
                store,
                self._random,
                self._breakers,
                self._secure,
                self.clock,
                names_secrets=identity is not None,
            ),
            envoy_headers=headers == "envoy",
            trust_request_headers=trust_request_headers,
            config_timeout=config_timeout,
        )
        self.engine.passthrough = self.passthrough
        self.engine.explainer = _explained
        self.recent: RecentCalls | None = None
        self.served: RecentRequests | None = None
        self.traces: TraceSource | None = None
        self.doors: Doors | None = None
        self._source: AdsClient | FileSource
        if config is not None:
            if bootstrap is not None or server_uri is not None:
                raise ConfigError(
                    "give either config= (files) or bootstrap=/server_uri= (a control plane), not both"
                )
            self._source = self._from_files(config)
            self._publish(self._source.snapshot)
        else:
            from meshlib.xds import bootstrap as reader

            read = reader.load(bootstrap, server_uri=server_uri, node_id=node_id)
            if read.certificate_providers:
                self._providers = self._read_providers(read)
            self._source = self._from_control_plane(read)
        self.engine.source = self._source
        self.engine.starting = self._starting
        fork.register(self)

    # --- life cycle --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect to the control plane now instead of at the first call.

        Raises:
            ConfigError: gevent has patched `threading`. MeshClosed: the Mesh has been closed.
        """
        if self.engine.closed:
            raise MeshClosed("the Mesh has been closed")
        self.engine.start()

    def wait_ready(self, *hosts: str, timeout: float = 15.0) -> None:
        """Wait until the configuration of these hosts (`host:port`) and of every Listener known so far is there.

        The first certificates of clusters with TLS belong to it, for the 15 s that calls wait for them.

        timeout: seconds. A host that does not exist counts as answered.

        Raises:
            ConfigTimeout: something is still missing; the text names it. MeshClosed: the Mesh has been closed.
        """
        self.start()
        names = {self.engine.listener_name(host) for host in hosts}
        for name in names:
            self._source.want_listener(name)
        due = self.clock.monotonic() + timeout
        while True:
            woken = threading.Event()
            program = self.engine.program
            missing = first_missing(program, names.union(program.snapshot.listeners), self.clock.monotonic())
            if missing is None:
                return
            left = due - self.clock.monotonic()
            if left <= 0:
                raise self.engine.late(missing, timeout)
            if self.engine.closed:
                raise MeshClosed("the Mesh has been closed")
            self.engine.await_program(woken.set, program)
            woken.wait(left)

    def close(self) -> None:
        """End the connection to the control plane and its thread. Idempotent.

        Calls that wait for configuration fail with MeshClosed; calls under way end as they would have. Close the transports
        first: their connections are theirs.
        """
        self.engine.close()
        if self.doors is not None:
            self.doors.close()
        self._source.close()
        if self._identity is not None:
            self._identity.close()
        if self.access_logs is not None:
            self.access_logs.close()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _starting(self) -> None:
        """At the first call of a process, also of a forked one."""
        with self._attaching:
            if not self._attached:
                from meshlib.observe.attach import attach

                attach(self, self._observe)
                self._attached = True
                if self._asked:
                    self.remember()
                if wanted := self._observe.admin or os.environ.get("MESHLIB_ADMIN"):
                    from meshlib.admin.doors import doors

                    self.doors = doors(self, wanted)
        if self.doors is not None:
            self.doors.open()
        self._start_identity()

    # --- looking at it -----------------------------------------------------------------------------------------------

    @property
    def node(self) -> Node:
        """What this process is to its control plane: the bootstrap's node; with files an empty one."""
        return self._source.node

    @property
    def snapshot(self) -> Snapshot:
        """The configuration in force."""
        return self.engine.program.snapshot

    def status(self) -> tuple[ResourceStatus, ...]:
        """Each resource with its version, state and latest error."""
        return self._source.status()

    @property
    def journal(self) -> Journal:
        """Since when the control plane is connected, and what it was answered last."""
        return self._source.journal

    def encoded(self, kind: Kind, name: str, *, refused: bool = False) -> bytes | None:
        """The bytes of a resource, refused: of its version that was refused last; None where they are not kept."""
        return self._source.encoded(kind, name, refused=refused)

    def remember(self) -> None:
        """Somebody can ask for the last calls: keep them from now on, unless `Observe.recent_calls` has settled that."""
        with self._attaching:
            self._asked = True
            if self._attached and self.recent is None and self._observe.recent_calls is None:
                from meshlib.observe.attach import remember

                remember(self, RECENT_CALLS)

    def admin(
        self, *, token: str | None = None, allow_remote: bool = False, hosts: Iterable[str] = ()
    ) -> Admin:
        """What can be looked at over HTTP: an ASGI and WSGI application, with `serve` for a server of its own.

        See `meshlib.admin.admin.Admin` for the arguments.
        """
        from meshlib.admin.admin import Admin

        return Admin(self, token=token, allow_remote=allow_remote, hosts=hosts)

    # --- identity ----------------------------------------------------------------------------------------------------

    @property
    def identity(self) -> IdentityStore:
        """All certificates and bundles of this Mesh, and what is made of them. Made when something needs it."""
        store = self._identity
        if store is None:
            with self._publishing:
                store = self._identity
                if store is None:
                    store = self._identity = self._make_identity()
        return store

    @property
    def identity_in_use(self) -> IdentityStore | None:
        """`identity`, None when nothing has needed it."""
        return self._identity

    def _make_identity(self) -> IdentityStore:
        from meshlib.identity.store import IdentityStore

        store = IdentityStore(self._own_identity, self._providers, clock=self.clock)
        store.apply(self._newest)
        store.subscribe(self._rotated)
        return store

    def _read_identity(self, given: IdentitySource | str | os.PathLike[str]) -> IdentitySource | None:
        from meshlib.identity.sources import identity_source

        return identity_source(given, self.clock)

    def _read_providers(self, bootstrap: Bootstrap) -> Mapping[str, IdentitySource]:
        from meshlib.identity.provider import certificate_providers

        return certificate_providers(bootstrap.certificate_providers, self.clock)

    def _secure(self, tls: UpstreamTls) -> Security:
        return self.identity.client(tls)

    def _start_identity(self) -> None:
        """Follow certificates from now on. Does nothing when no part of the configuration needs any."""
        self._follow_identity = True
        if self._own_identity is not None or self._identity is not None:
            self.identity.start()

    def _rotated(self) -> None:
        """On any thread."""
        with self._publishing:
            self.engine.rotated()

    def _publish(self, snapshot: Snapshot) -> None:
        with self._publishing:
            self._newest = snapshot
            if self._identity is not None:
                self._identity.apply(snapshot)
            self.engine.publish(snapshot)
        if self._follow_identity and self._identity is not None:
            self._identity.start()

    # --- around a fork -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait for another thread's first call: a child could not import what that is importing. The source pauses by itself."""
        self._held = self._attaching.acquire(timeout=ATTACHING)

    def after_fork_in_parent(self) -> None:
        held, self._held = self._held, False
        if held:
            self._attaching.release()

    def after_fork_in_child(self) -> None:
        self._held = False
        self._attaching = threading.RLock()
        self._publishing = threading.RLock()
        if self._own_random:
            self._random.seed()
        self.engine.renew_locks()
        self._breakers.renew_locks()

    # --- sources -----------------------------------------------------------------------------------------------------

    def _from_files(self, config: Iterable[ConfigSource] | ConfigSource) -> FileSource:
        from meshlib.xds.files import FileSource
        from meshlib.xds.reading import read_files

        found = read_files([config] if isinstance(config, str | os.PathLike | Mapping) else config)
        return FileSource(
            found.decoded,
            on_snapshot=self._publish,
            clock=self.clock,
            registry=self.stats,
            usage=self._usage,
            encoded=found.encoded,
        )

    def _from_control_plane(self, bootstrap: Bootstrap) -> AdsClient:
        from meshlib.observe.loads import LoadCounter
        from meshlib.resources import decode_any
        from meshlib.xds.client import AdsClient

        self.engine.listener_name = bootstrap.listener_name
        self.engine.server_listener_name = bootstrap.server_listener_name
        source = AdsClient(
            bootstrap,
            decode=decode_any,
            on_snapshot=self._publish,
            clock=self.clock,
            random=self._random,
            registry=self.stats,
            usage=self._usage,
            loads=LoadCounter(self.engine).read,
        )
        self.engine.defer = partial(source.call_later, SETTLE_AFTER)
        return source

    def _usage(self, cluster: str) -> int:
        return self.engine.store.cluster(cluster).stats.upstream_rq_total.value


def _explained(call: ObservedCall) -> Decision:
    from meshlib.observe.decision import decision_of

    return decision_of(call)


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, not {value!r}")


_default_lock = threading.Lock()
_default: Mesh | None = None


def default_mesh() -> Mesh:
    """The process's own Mesh, made from the environment at its first use (GRPC_XDS_BOOTSTRAP and its kin).

    Raises:
        ConfigError: the environment gives no bootstrap, or a wrong one.
    """
    global _default
    with _default_lock:
        if _default is None or _default.engine.closed:
            _default = Mesh()
        return _default
