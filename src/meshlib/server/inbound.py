"""What a server asks of those who call it: TLS, who may do what, whom it believes about callers before them.

    inbound = Inbound(mesh, rbac="rbac.yaml")                     # the workload's own identity, rules of one's own
    inbound = Inbound(mesh, listener="0.0.0.0:8443")              # TLS, RBAC and the rest from the control plane's Listener

One object for each server; the middleware of every framework (`wsgi`, `asgi`, `grpc`) takes it, and so do the helpers that set
up uvicorn, hypercorn, gunicorn and grpc. It decides; they only bring requests in their own form, as an `Arrival`.

With a listener nothing is served before that has come: a request without rules to judge it by is refused (503).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Protocol

from meshlib.engine.headers import REQUEST_ID
from meshlib.engine.observer import tell
from meshlib.errors import ConfigError, ConfigTimeout, LocalReply
from meshlib.policy.rbac import Verdict
from meshlib.resources.inbound import DownstreamHttp
from meshlib.runtime import fork
from meshlib.runtime.clock import Clock, SystemClock
from meshlib.server import xfcc
from meshlib.server.arrival import Arrival, connection_view, inbound_request, unknown_of
from meshlib.server.authorization import BODY, ChainAuthorization, OwnAuthorization
from meshlib.server.callers import Forwarding, peer_of
from meshlib.server.chains import BAD_PATH, PATH_NORMALIZATION_FAILED, CompiledChain
from meshlib.server.followed import FollowedListener, Misses
from meshlib.server.peer import InboundPeer
from meshlib.server.rbac_source import RbacSource, load_rbac
from meshlib.server.tls import MODES, Addresses, Connection, Mode, ServerContext
from meshlib.server.visit import Visit, inherited, recorded, request_id
from meshlib.stats import Registry

if TYPE_CHECKING:
    from meshlib.identity.server import ServerSecurity
    from meshlib.resources.inbound import FilterChain
    from meshlib.resources.tls import DownstreamTls

__all__ = ["Admission", "Arrival", "Inbound", "ServerMesh"]

logger = logging.getLogger("meshlib.server")

ANSWER = ("content-type", "text/plain")


class ServerMesh(Protocol):
    """What is used of a `meshlib.Mesh`."""

    @property
    def stats(self) -> Registry: ...
    @property
    def identity(self) -> Any: ...
    @property
    def engine(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Admission:
    """What became of a request. refusal: the answer, None when it may pass. xfcc: the header that the application is to see, None
    for none. path: what the application is to see, with the query; None: as it came. chain: the Listener's that took it."""

    peer: InboundPeer
    refusal: LocalReply | None
    details: str
    xfcc: str | None
    path: str | None = None
    chain: FilterChain | None = None


class Inbound:
    """See the module's text.

    mesh: gives the identity, the Listener, and the registry of counters; None: plaintext, or TLS that somebody else ends.
    listener: the address that the Listener is for, which the bootstrap's `server_listener_resource_name_template` makes a name
    of (without one, it is the name); TLS, RBAC, path normalization, x-forwarded-for and x-forwarded-client-cert are as it says.
    rbac: rules of one's own instead: the filter's configuration as a file, a dictionary or a dataclass. mode: STRICT, PERMISSIVE
    or DISABLE; without it what the listener has filter chains for, else STRICT. tls: what is shown and asked for; None for the
    workload's identity and a certificate of a domain that it trusts. trusted: whose x-forwarded-client-cert is believed.
    forward_client_cert, client_cert_details: the header that the application sees, as the HttpConnectionManager's fields; without
    them it sees that of trusted callers only. address: `ip:port` where the server listens, for rules about destinations where the
    server can't tell (gRPC).

    Thread safe, and usable in the children of a fork.

    Raises:
        ConfigError: arguments that do not go together, or rules with a mistake.
    """

    def __init__(
        self,
        mesh: ServerMesh | None = None,
        *,
        listener: str | None = None,
        rbac: RbacSource | None = None,
        mode: Mode | None = None,
        tls: DownstreamTls | None = None,
        trusted: xfcc.TrustedPeers | None = None,
        forward_client_cert: xfcc.Mode | None = None,
        client_cert_details: Sequence[xfcc.Detail] = (),
        address: str | None = None,
        random: Random | None = None,
    ) -> None:
        if listener is not None and (rbac is not None or tls is not None or forward_client_cert is not None):
            raise ConfigError(
                "with listener= its own TLS, RBAC and x-forwarded-client-cert count: leave out the rest"
            )
        if listener is not None and mesh is None:
            raise ConfigError("listener= needs a mesh")
        if mode is not None and mode not in MODES:
            raise ConfigError(f"mode must be one of {', '.join(map(repr, MODES))}, not {mode!r}")
        self._mesh = mesh
        self.clock: Clock = SystemClock() if mesh is None else mesh.engine.clock
        self._mode = mode
        self._tls = tls
        self._forwarding = Forwarding(
            trusted or xfcc.TrustedPeers(), forward_client_cert, tuple(client_cert_details)
        )
        self._address = None if address is None else _split(address)
        self._own_random = random is None
        self._random = random or Random()
        registry = Registry() if mesh is None else mesh.stats
        self._own = None if rbac is None else OwnAuthorization(load_rbac(rbac), registry)
        self._misses = Misses()
        self._listener: FollowedListener | None = None
        if listener is not None and mesh is not None:
            name = mesh.engine.server_listener_name(listener)
            self._listener = FollowedListener(mesh, name, self._random, self._misses)
        self._securities: dict[tuple[str, ...], ServerSecurity] = {}
        self._contexts: dict[tuple[str, ...], ServerContext] = {}
        self._started = 0
        self._lock = threading.Lock()
        fork.register(self)

    # --- around a fork -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Nothing to wait for."""

    def after_fork_in_parent(self) -> None:
        """All goes on."""

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        if self._listener is not None:
            self._listener.renew_lock()
        if self._own_random:
            self._random.seed()

    # --- TLS ---------------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """STRICT, PERMISSIVE or DISABLE. Waits for the listener, when that decides.

        Raises:
            ConfigTimeout: the listener has not come.
        """
        if self._mode is not None:
            return self._mode
        if self._listener is None:
            return "DISABLE" if self._mesh is None else "STRICT"
        chains = self._listener.awaited().chains
        with_tls = [chain.tls is not None for chain in chains]
        return "STRICT" if all(with_tls) else "PERMISSIVE" if any(with_tls) else "DISABLE"

    def security(self, alpn: tuple[str, ...] = ()) -> ServerSecurity:
        """The identity that callers are shown, and who may connect. alpn: what is offered when the configuration names nothing.

        Raises:
            ConfigError: there is no mesh, or the listener has several TLS configurations. ConfigTimeout: as `mode`.
        """
        if self._mesh is None:
            raise ConfigError("TLS needs a mesh, which has the identity: Inbound(mesh, ...)")
        found = self._securities.get(alpn)
        if found is None:
            made: ServerSecurity = self._mesh.identity.server(self._downstream_tls(), alpn=alpn)
            with self._lock:
                found = self._securities.setdefault(alpn, made)
        return found

    def context(self, alpn: tuple[str, ...] = ("http/1.1",)) -> ServerContext | None:
        """For a server that takes an `ssl.SSLContext`; None when the mode is DISABLE. The same object for the same alpn.

        Raises:
            ConfigError, ConfigTimeout: as `security`.
        """
        mode = self.mode
        if mode == "DISABLE":
            return None
        security = self.security(alpn)
        with self._lock:
            found = self._contexts.get(alpn)
            if found is None:
                connecting = None if self._listener is None else self._connecting
                found = self._contexts[alpn] = ServerContext(security, mode, connecting)
        return found

    def _downstream_tls(self) -> DownstreamTls | None:
        if self._listener is None:
            return self._tls
        several = {chain.tls for chain in self._listener.awaited().chains if chain.tls is not None}
        if len(several) > 1:
            raise ConfigError(
                f"the Listener {self._listener.name!r} has filter chains with different TLS: one server shows one"
            )
        return next(iter(several), None)

    def wait_ready(self, timeout: float = 15.0) -> None:
        """Wait for the listener, and, unless the mode is DISABLE, for a certificate to show. timeout: seconds, for each of them.

        Raises:
            ConfigTimeout: one of them has not come. ConfigError: the files have no such listener.
        """
        if self._listener is not None:
            self._listener.awaited(timeout)
        if self.mode == "DISABLE":
            return
        assert self._mesh is not None
        clock, store = self._mesh.engine.clock, self._mesh.identity
        security = self.security()
        due = clock.monotonic() + timeout
        woken = threading.Event()
        forget = store.subscribe(woken.set)
        try:
            store.start()
            while security.epoch == 0:
                left = due - clock.monotonic()
                if left <= 0:
                    raise ConfigTimeout(f"there is no certificate to show after {timeout:.3g} s")
                woken.wait(left)
                woken.clear()
        finally:
            forget()

    # --- requests ----------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Where the server listens, as it was given or as the listener says; for servers that do not tell."""
        if self._address is None and self._listener is not None:
            resource = self._listener.resource()
            return _split(resource.address) if resource is not None and resource.address else ("", 0)
        return self._address or ("", 0)

    def receive(
        self,
        arrival: Arrival,
        protocol: str,
        *,
        operation: str = "",
        remaining: float | None = None,
        refused: Admission | None = None,
    ) -> Visit:
        """A request has arrived, and this is its context: judge it, and tell whoever watches that it has begun.

        protocol: as in `HTTP/1.1`. operation: the method of a gRPC call. remaining: seconds that the caller goes on waiting,
        where the server has read that already. refused: it has been judged.
        """
        mesh, clock = self._mesh, self.clock
        if mesh is not None and self._started != os.getpid():
            self._start(mesh.engine)
        now = clock.monotonic()
        admission = refused or self.admit(arrival)
        context = inherited(arrival.headers, now, remaining)
        if mesh is None:
            context.request_id = request_id(context.request_id, None, envoy=False, random=self._random)
            return Visit(admission, context, None, clock, ())
        engine, chain = mesh.engine, admission.chain
        edge = chain is not None and chain.downstream.use_remote_address
        if edge or arrival.connection.peer is None:
            context.forced = False  # who is not known can't ask for a trace
        context.request_id = request_id(
            context.request_id, chain, envoy=engine.envoy_headers, random=engine.random
        )
        observers = engine.observers
        if not observers.inbound:
            return Visit(admission, context, None, clock, ())
        name = "" if self._listener is None else self._listener.name
        record = recorded(arrival, admission, protocol, operation, name, clock, now)
        record.forced = context.forced
        if context.request_id is not None and record.first(REQUEST_ID) != context.request_id:
            kept = (pair for pair in record.headers if pair[0] != REQUEST_ID)
            record.headers = [*kept, (REQUEST_ID, context.request_id)]
        tell(observers.inbound_begun, record)
        return Visit(admission, context, record, clock, observers.inbound_over)

    def _start(self, engine: Any) -> None:
        """At the first request of a process: whoever is to observe requests subscribes when the Mesh starts."""
        self._started = os.getpid()
        if not engine.closed:
            try:
                engine.start()
            except (
                ConfigError
            ) as error:  # gevent: the control plane is out of reach, which is no reason to answer nobody
                logger.error("the Mesh of this server does not start: %s", error)

    def admit(self, arrival: Arrival) -> Admission:
        """Who is calling, and whether the request may pass."""
        rules: OwnAuthorization | ChainAuthorization | None = self._own
        http: DownstreamHttp | None = None
        path: str | None = None
        refused: Verdict | None = None
        took: FilterChain | None = None
        peer = peer_of(arrival)
        unknown = unknown_of(arrival)
        if not arrival.path.startswith("/") and (self._own is not None or self._listener is not None):
            return Admission(peer, BAD_PATH, "absolute_path_rejected", None)  # Flask takes `admin` for /admin
        if self._listener is not None:
            chain = self._listener.chain(arrival, unknown)
            if isinstance(chain, str):
                return Admission(peer, _plain(503, chain), chain.replace(" ", "_"), None)
            rules, http, took = chain.rules, chain.http, chain.chain
            if chain.rules is not None and arrival.connection.admitted_by is not chain.rules:
                refused = chain.rules.check_connection(connection_view(arrival, unknown))
            normal, answer = chain.enter(arrival.path, arrival.headers)
            if answer is not None and refused is None:
                logger.debug(
                    "answered %s %s: %s", arrival.method, _no_query(arrival), PATH_NORMALIZATION_FAILED
                )
                return Admission(peer, answer, PATH_NORMALIZATION_FAILED, None, None, took)
            if chain.normalise is not None:
                path = normal
                arrival = replace(arrival, path=normal)
        peer, shown = self._forwarding.apply(arrival, peer, http)
        if rules is None:
            return Admission(peer, None, "", shown, path, took)
        if refused is None:
            refused = rules.check(inbound_request(arrival, http, shown, unknown))
        if refused is None:
            return Admission(peer, None, "", shown, path, took)
        if refused.unknown:
            self._misses.tell(refused.unknown)
        logger.debug("refused %s %s: %s", arrival.method, _no_query(arrival), refused.details)
        return Admission(peer, _plain(403, BODY), refused.details, shown, None, took)

    def method(self, sent: str) -> str:
        """The path of a gRPC method as the application is to see it: normal where the listener asks for that."""
        compiled = None if self._listener is None else self._listener.current()
        return sent if compiled is None else compiled.method(sent)

    def _connecting(self, connection: Connection, addresses: Addresses) -> Connection | None:
        """For a connection that is not used yet; what can't be told now, `admit` tells when a request comes."""
        assert self._listener is not None
        arrival = Arrival("", "https" if connection.tls else "http", "", "", [], connection, *addresses)
        unknown = unknown_of(arrival)
        compiled = self._listener.current()
        chain = None if compiled is None else compiled.find(arrival, unknown)
        if not isinstance(chain, CompiledChain) or chain.rules is None:
            return connection
        may = chain.rules.connect(connection_view(arrival, unknown))
        if may is None:
            return connection
        if may:
            return replace(connection, admitted_by=chain.rules)
        logger.debug("closed a connection that the network filters of %s refuse", self._listener.name)
        return None


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ConfigError(f"address must be ip:port, not {address!r}")
    return host.strip("[]"), int(port)


def _plain(status: int, body: str) -> LocalReply:
    return LocalReply(status, (("content-length", str(len(body))), ANSWER), body.encode())


def _no_query(arrival: Arrival) -> str:
    """The path for the log: a query may hold a secret."""
    return arrival.path.partition("?")[0]
