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
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING, Any, Protocol, cast

from meshlib.errors import ConfigError, ConfigTimeout, LocalReply
from meshlib.policy.rbac import Verdict
from meshlib.resources.inbound import DownstreamHttp
from meshlib.runtime import fork
from meshlib.server import xfcc
from meshlib.server.arrival import Arrival, connection_view, inbound_request, unknown_of
from meshlib.server.authorization import BODY, ChainAuthorization, OwnAuthorization
from meshlib.server.chains import BAD_PATH, PATH_NORMALIZATION_FAILED, CompiledChain, CompiledListener
from meshlib.server.peer import NOBODY, InboundPeer
from meshlib.server.rbac_source import RbacSource, load_rbac
from meshlib.server.tls import MODES, Addresses, Connection, Mode, ServerContext
from meshlib.snapshot import Snapshot
from meshlib.stats import Registry

if TYPE_CHECKING:
    from meshlib.identity.server import ServerSecurity
    from meshlib.resources.inbound import InboundListener
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
    for none. path: what the application is to see, with the query; None: as it came."""

    peer: InboundPeer
    refusal: LocalReply | None
    details: str
    xfcc: str | None
    path: str | None = None


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
        self._name = listener
        if listener is not None and mesh is not None:
            self._name = mesh.engine.server_listener_name(listener)
        self._mode = mode
        self._tls = tls
        self._trusted = trusted or xfcc.TrustedPeers()
        self._forward = forward_client_cert
        self._details = tuple(client_cert_details)
        self._address = None if address is None else _split(address)
        self._random = random or Random()
        registry = Registry() if mesh is None else mesh.stats
        self._own = None if rbac is None else OwnAuthorization(load_rbac(rbac), registry)
        self._compiled: CompiledListener | None = None
        self._securities: dict[tuple[str, ...], ServerSecurity] = {}
        self._contexts: dict[tuple[str, ...], ServerContext] = {}
        self._following = 0
        self._missed: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()
        fork.register(self)

    # --- around a fork -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Nothing to wait for."""

    def after_fork_in_parent(self) -> None:
        """All goes on."""

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()

    # --- TLS ---------------------------------------------------------------------------------------------------------

    @property
    def mode(self) -> Mode:
        """STRICT, PERMISSIVE or DISABLE. Waits for the listener, when that decides.

        Raises:
            ConfigTimeout: the listener has not come.
        """
        if self._mode is not None:
            return self._mode
        if self._name is None:
            return "DISABLE" if self._mesh is None else "STRICT"
        chains = self._listener().chains
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
                connecting = None if self._name is None else self._connecting
                found = self._contexts[alpn] = ServerContext(security, mode, connecting)
        return found

    def _downstream_tls(self) -> DownstreamTls | None:
        if self._name is None:
            return self._tls
        several = {chain.tls for chain in self._listener().chains if chain.tls is not None}
        if len(several) > 1:
            raise ConfigError(
                f"the Listener {self._name!r} has filter chains with different TLS: one server shows one"
            )
        return next(iter(several), None)

    def wait_ready(self, timeout: float = 15.0) -> None:
        """Wait for the listener, and, unless the mode is DISABLE, for a certificate to show. timeout: seconds, for each of them.

        Raises:
            ConfigTimeout: one of them has not come. ConfigError: the files have no such listener.
        """
        if self._name is not None:
            self._listener(timeout)
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

    def _listener(self, timeout: float = 15.0) -> InboundListener:
        assert self._mesh is not None
        assert self._name is not None
        engine = self._mesh.engine
        self._follow()
        due = engine.clock.monotonic() + timeout
        while True:
            woken = threading.Event()
            program = engine.program
            found: InboundListener | None = program.snapshot.inbound_listener(self._name)
            if found is not None:
                return found
            if program.snapshot.complete:
                raise ConfigError(f"there is no Listener {self._name!r} that a server can use")
            left = due - engine.clock.monotonic()
            if left <= 0:
                late: ConfigTimeout = engine.late(f"Listener {self._name!r}", timeout)
                raise late
            engine.await_program(woken.set, program)
            woken.wait(left)

    # --- requests ----------------------------------------------------------------------------------------------------

    @property
    def address(self) -> tuple[str, int]:
        """Where the server listens, as it was given or as the listener says; for servers that do not tell."""
        if self._address is None and self._name is not None and self._mesh is not None:
            listener = self._mesh.engine.program.snapshot.inbound_listener(self._name)
            return _split(listener.address) if listener is not None and listener.address else ("", 0)
        return self._address or ("", 0)

    def admit(self, arrival: Arrival) -> Admission:
        """Who is calling, and whether the request may pass."""
        rules: OwnAuthorization | ChainAuthorization | None = self._own
        http: DownstreamHttp | None = None
        path: str | None = None
        refused: Verdict | None = None
        peer = self._peer(arrival)
        unknown = unknown_of(arrival)
        if not arrival.path.startswith("/") and (self._own is not None or self._name is not None):
            return Admission(peer, BAD_PATH, "absolute_path_rejected", None)  # Flask takes `admin` for /admin
        if self._name is not None:
            chain = self._chain(arrival, unknown)
            if isinstance(chain, str):
                return Admission(peer, _plain(503, chain), chain.replace(" ", "_"), None)
            rules, http = chain.rules, chain.http
            if chain.rules is not None and arrival.connection.admitted_by is not chain.rules:
                refused = chain.rules.check_connection(connection_view(arrival, unknown))
            normal, answer = chain.enter(arrival.path, arrival.headers)
            if answer is not None and refused is None:
                logger.debug("answered %s %s: %s", arrival.method, arrival.path, PATH_NORMALIZATION_FAILED)
                return Admission(peer, answer, PATH_NORMALIZATION_FAILED, None)
            if chain.normalise is not None:
                path = normal
                arrival = replace(arrival, path=normal)
        seen = ",".join(value for name, value in arrival.headers if name == xfcc.HEADER) or None
        shown = None
        if seen is not None or http is not None or self._forward is not None:
            peer, shown = self._forwarded(arrival, peer, seen, http)
        if rules is None:
            return Admission(peer, None, "", shown, path)
        if refused is None:
            refused = rules.check(inbound_request(arrival, http, shown, unknown))
        if refused is None:
            return Admission(peer, None, "", shown, path)
        if refused.unknown:
            self._miss(refused.unknown)
        logger.debug("refused %s %s: %s", arrival.method, arrival.path, refused.details)
        return Admission(peer, _plain(403, BODY), refused.details, shown)

    def method(self, sent: str) -> str:
        """The path of a gRPC method as the application is to see it: normal where the listener asks for that."""
        compiled = None if self._name is None else self._current()
        return sent if compiled is None else compiled.method(sent)

    def _miss(self, unknown: tuple[str, ...]) -> None:
        """Say once that rules ask for what is not known."""
        if unknown not in self._missed:
            self._missed.add(unknown)
            logger.warning(
                "a request is refused since this server does not tell what its rules depend on: %s",
                ", ".join(unknown),
            )

    def _peer(self, arrival: Arrival) -> InboundPeer:
        connection = arrival.connection
        address = arrival.remote or ""
        peer = connection.peer
        if peer is None:
            if not address and not connection.tls:
                return NOBODY
            return InboundPeer(tls=connection.tls, address=address)
        return InboundPeer(
            spiffe_id=peer.spiffe_id,
            uri_sans=peer.uri_sans,
            dns_sans=peer.dns_sans,
            subject=peer.subject,
            certificate=peer.certificate_der,
            sha256=peer.sha256,
            tls=True,
            address=address,
        )

    def _forwarded(
        self, arrival: Arrival, peer: InboundPeer, seen: str | None, http: DownstreamHttp | None
    ) -> tuple[InboundPeer, str | None]:
        """The peer with what it is trusted to say about callers before it, and the header for the application."""
        trusted = self._trusted.trusts(
            None if peer.spiffe_id is None else str(peer.spiffe_id), arrival.remote or None
        )
        if trusted and seen is not None:
            try:
                peer = replace(peer, forwarded=xfcc.parse(seen))
            except xfcc.XfccError as error:
                logger.warning("a trusted peer sent a wrong %s: %s", xfcc.HEADER, error)
                seen = None
        mode, details = self._forward, self._details
        if http is not None:
            mode = cast("xfcc.Mode", http.forward_client_cert.name)
            told = http.client_cert_details
            details = tuple(name for name in xfcc.DETAILS if getattr(told, name))
        if mode is None:
            return peer, seen if trusted else None
        return peer, xfcc.forwarded(mode, seen, self._element(arrival.connection, details))

    def _element(self, connection: Connection, details: Sequence[xfcc.Detail]) -> xfcc.XfccElement | None:
        peer = connection.peer
        if peer is None:
            return None
        chain = [ssl.DER_cert_to_PEM_cert(der) for der in peer.chain_der] if details else []
        return xfcc.describe(
            peer,
            own_uris=connection.own_uris,
            details=details,
            cert=chain[0] if chain else "",
            chain="".join(chain),
        )

    # --- the listener ------------------------------------------------------------------------------------------------

    def _connecting(self, connection: Connection, addresses: Addresses) -> Connection | None:
        """For a connection that is not used yet; what can't be told now, `admit` tells when a request comes."""
        arrival = Arrival("", "https" if connection.tls else "http", "", "", [], connection, *addresses)
        unknown = unknown_of(arrival)
        compiled = self._current()
        chain = None if compiled is None else compiled.find(arrival, unknown)
        if not isinstance(chain, CompiledChain) or chain.rules is None:
            return connection
        may = chain.rules.connect(connection_view(arrival, unknown))
        if may is None:
            return connection
        if may:
            return replace(connection, admitted_by=chain.rules)
        logger.debug("closed a connection that the network filters of %s refuse", self._name)
        return None

    def _chain(self, arrival: Arrival, unknown: frozenset[str]) -> CompiledChain | str:
        """The filter chain that the connection belongs to; or why there is none."""
        compiled = self._current()
        if compiled is None:
            return "no configuration for this listener"
        chain = compiled.find(arrival, unknown)
        if chain is None:
            return "no filter chain matches"
        if isinstance(chain, frozenset):
            self._miss(tuple(sorted(chain)))
            return "no filter chain can be chosen"
        return "no route configuration" if chain.waits else chain

    def _current(self) -> CompiledListener | None:
        """The listener of this moment; None when there is none."""
        assert self._mesh is not None
        self._follow()
        snapshot: Snapshot = self._mesh.engine.program.snapshot
        compiled = self._compiled
        if compiled is None or compiled.snapshot is not snapshot:
            compiled = self._compile(snapshot)
        return compiled

    def _follow(self) -> None:
        """Ask for the listener, and have the mesh keep up to date: cheap when that has been done, also in a forked child."""
        assert self._mesh is not None
        engine = self._mesh.engine
        if self._following != (here := os.getpid()) and not engine.closed:
            engine.start()
            engine.source.want_listener(self._name)
            self._following = here

    def _compile(self, snapshot: Snapshot) -> CompiledListener | None:
        assert self._mesh is not None
        assert self._name is not None
        listener = snapshot.inbound_listener(self._name)
        if listener is None:
            return None
        before = self._compiled
        with self._lock:
            made = CompiledListener(listener, snapshot, before, self._mesh.stats, self._random)
            self._compiled = made
        return made


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise ConfigError(f"address must be ip:port, not {address!r}")
    return host.strip("[]"), int(port)


def _plain(status: int, body: str) -> LocalReply:
    return LocalReply(status, (("content-length", str(len(body))), ANSWER), body.encode())
