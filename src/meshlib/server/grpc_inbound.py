"""What an Inbound asks of gRPC calls: who the caller is, as C-core says it, and whether it may call.

C-core verifies a caller's chain against the certificates of all trust domains at once, so a federated domain's CA could vouch
for a name of ours. Before a handler runs, the chain is verified again, against the bundle of the caller's own trust domain and
the revocation lists of that moment: once for each connection, since what has been let in is not cut by a rotation. A verdict is
kept as long as it is among the last `KEPT`.
"""

from __future__ import annotations

import logging
import ssl
import threading
from base64 import b64encode
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import grpc

from meshlib.errors import IdentityError, LocalReply
from meshlib.policy.rbac_request import CERTIFICATE, header_property
from meshlib.routing.request import Headers
from meshlib.runtime.logs import Once
from meshlib.server.arrival import Arrival
from meshlib.server.front import origin_of
from meshlib.server.inbound import Admission, Inbound
from meshlib.server.peer import NOBODY
from meshlib.server.tls import UNKNOWN, Connection
from meshlib.server.visit import Visit

if TYPE_CHECKING:
    from meshlib.identity.peer import Peer
    from meshlib.identity.server import ServerSecurity

__all__ = ["ALPN", "KEPT", "Gate", "credentials", "headers_of"]

logger = logging.getLogger("meshlib.server")

_Key = tuple[str, tuple[bytes, ...]]
"""Where a connection comes from, and what was shown on it, PEM."""

ALPN = ("h2",)
PAUSE = 0.05
"""Seconds; see `_Shown`."""

KEPT = 16_384
"""Connections whose verdict is kept."""

_VERSIONS = {b"TLSv1.2": ssl.TLSVersion.TLSv1_2, b"TLSv1.3": ssl.TLSVersion.TLSv1_3}
_UNAUTHENTICATED = Admission(
    NOBODY, LocalReply(401, (), b"the caller's certificate is not accepted"), "unauthenticated_peer", None
)
_CONTENT_TYPE = ("content-type", "application/grpc")
_KEPT_BACK = frozenset(
    header_property(name)
    for name in (
        "endpoint-load-metrics-bin",
        "grpc-accept-encoding",
        "grpc-encoding",
        "grpc-internal-encoding-request",
        "grpc-message",
        "grpc-server-stats-bin",
        "grpc-status",
        "grpc-tags-bin",
        "grpc-timeout",
        "grpc-trace-bin",
        "grpclb_client_stats",
        "lb-cost-bin",
        "te",
        "x-envoy-peer-metadata",
    )
)
"""Headers that C-core reads and shows nobody."""
_NOT_ASKED = _KEPT_BACK | {CERTIFICATE}


class Gate:
    """One Inbound for the interceptors of one server. Thread safe."""

    def __init__(self, inbound: Inbound) -> None:
        self._inbound = inbound
        self._peers: OrderedDict[_Key, Peer | None] = OrderedDict()
        self._lock = threading.Lock()

    def method(self, sent: str) -> str:
        """What the method is to be looked up by."""
        return self._inbound.method(sent)

    def enter(self, method: str, context: Any) -> Visit:
        """Receive the call, in its own context (contextvars)."""
        refused: Admission | None = None
        connection = UNKNOWN
        address, auth = context.peer(), context.auth_context()
        kind = auth.get("transport_security_type", (b"",))[0]
        if kind == b"ssl":
            try:
                connection = self._connection(address, auth)
            except IdentityError as error:
                logger.info("refused a caller of %s: %s", method, error)
                refused = _UNAUTHENTICATED
        remote, local, port = self._addresses(address)
        arrival = Arrival(
            method="POST",
            scheme="http" if kind in (b"", b"insecure") else "https",
            authority=_authority(context),
            path=method,
            headers=headers_of(context.invocation_metadata()),
            connection=connection,
            remote=remote,
            local=local,
            local_port=port,
            unknown=self._unknown(connection),
            remote_port=_port(address),
        )
        remaining = context.time_remaining()
        return self._inbound.receive(
            arrival, "HTTP/2", operation=method, remaining=remaining, refused=refused
        )

    def _unknown(self, connection: Connection) -> frozenset[str]:
        """C-core does not ask for a certificate that is not required: who would have shown one?"""
        asked = not connection.tls or connection.peer is not None
        if asked or not self._inbound.security(ALPN).asks_for_certificate:
            return _KEPT_BACK
        return _NOT_ASKED

    def _connection(self, address: str, auth: Mapping[str, Sequence[bytes]]) -> Connection:
        security = self._inbound.security(ALPN)
        _check_version(auth, security.context)
        names = auth.get("ssl_requested_server_name", ())
        pem = (*auth.get("x509_pem_cert", ()), *auth.get("x509_pem_cert_chain", ()))
        return Connection(
            tls=True,
            peer=self._peer((address, pem)),
            server_name=names[0].decode("latin-1") if names else "",
            alpn=ALPN[0],
            own_uris=security.own_uris,
            own=security.own,
            epoch=security.epoch,
        )

    def _peer(self, key: _Key) -> Peer | None:
        with self._lock:
            if key in self._peers:
                self._peers.move_to_end(key)
                return self._peers[key]
        from meshlib.identity.material import certificates_from_pem

        chain = certificates_from_pem(b"\n".join(key[1])) if key[1] else ()
        found = self._inbound.security(ALPN).verify_chain(tuple(dict.fromkeys(chain)))
        with self._lock:
            self._peers[key] = found
            while len(self._peers) > KEPT:
                self._peers.popitem(last=False)
        return found

    def _addresses(self, peer: str) -> tuple[str | None, str | None, int | None]:
        """Where the call comes from, and where it came to; what C-core does not tell is what the Inbound listens at."""
        host, number = self._inbound.address
        local, port = host or None, number or None
        kind, _, rest = peer.partition(":")
        if kind in ("ipv4", "ipv6"):
            return unquote(rest).rpartition(":")[0].strip("[]"), local, port
        if kind == "unix-abstract":  # of a front, or, if there was none, or it is gone, nobody's
            return origin_of(rest) or None, local, port
        return "" if kind == "unix" else None, local, port


def _check_version(auth: Mapping[str, Sequence[bytes]], context: ssl.SSLContext) -> None:
    """Raises: IdentityError: a TLS version that the configuration does not allow, which C-core can't be told."""
    spoken = auth.get("ssl_tls_version", (b"an unknown version",))[0]
    version = _VERSIONS.get(spoken, 0)
    lowest, highest = context.minimum_version, context.maximum_version
    if lowest == ssl.TLSVersion.TLSv1_3 > version or highest == ssl.TLSVersion.TLSv1_2 < (version or 1 << 16):
        raise IdentityError(
            f"the caller speaks {spoken.decode()}",
            expected=f"{lowest.name} to {highest.name}",
            got=spoken.decode(),
        )


def _authority(context: Any) -> str | None:
    """The `:authority`, where grpcio knows it: the blocking server does."""
    host = getattr(getattr(getattr(context, "_rpc_event", None), "call_details", None), "host", None)
    return host.decode("latin-1") if isinstance(host, bytes) else host


def _port(peer: str) -> int:
    kind, _, rest = peer.partition(":")
    port = unquote(rest).rpartition(":")[2]
    return int(port) if kind in ("ipv4", "ipv6") and port.isdecimal() else 0


def headers_of(metadata: Sequence[tuple[str, str | bytes]]) -> Headers:
    """As rules and records see it; C-core keeps some headers back."""
    found: Headers = [_CONTENT_TYPE]
    for name, value in metadata:
        found.append((name, value if isinstance(value, str) else b64encode(value).decode().rstrip("=")))
    return found


def credentials(inbound: Inbound) -> grpc.ServerCredentials:
    """For `server.add_secure_port`, of any number of ports and servers: key, chain and trust of the moment of each handshake.

    A caller needs a certificate when the configuration asks for one; else C-core does not even ask. The interceptor
    (`MeshInterceptor(inbound)`) has to be there too: it verifies callers against their own trust domain.

    Raises:
        ConfigError, ConfigTimeout: as Inbound.wait_ready. IdentityError: there is no certificate to show.
    """
    inbound.wait_ready()
    return _Credentials(inbound.security(ALPN))


class _Credentials(grpc.ServerCredentials):  # type: ignore[misc]
    """Credentials that are others for each port that takes them.

    C-core says neither which port it asks for, nor keeps apart what it was told for each: of two ports with the same credentials
    only one would learn of a rotation. Each port takes `_credentials` once.
    """

    def __init__(self, security: ServerSecurity) -> None:
        """Raises: IdentityError: there is no certificate to show."""
        self._security = security
        self._spare = [self._made()]

    @property
    def _credentials(self) -> Any:
        try:
            made = self._spare.pop()
        except IndexError:
            made = self._made()
        return made._credentials

    def _made(self) -> grpc.ServerCredentials:
        shown = _Shown(self._security)
        return grpc.dynamic_ssl_server_credentials(
            shown.first, shown.changed, shown.security.requires_certificate
        )


class _Shown:
    """What C-core shows callers of one port. It asks at each handshake whether that has changed.

    C-core frees what it has shown until then as soon as it is told of something new, even when another thread is just setting
    up a handshake with it (grpc/grpc#36693): the server would crash, or speak without ALPN. So it is told once for each rotation,
    and only when whoever was at that step, which takes microseconds, has had `PAUSE` seconds to finish it. Nobody begins it
    meanwhile: C-core asks under a lock.
    """

    def __init__(self, security: ServerSecurity) -> None:
        """Raises: IdentityError: there is no certificate to show."""
        self.security = security
        self._material = security.material
        self.first = self._configuration()
        self._lacking = Once()

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """None: nothing has."""
        material = self.security.material
        try:
            if material is self._material and self.security.current is not None:
                return None
            configuration = self._configuration()
        except IdentityError as error:  # what callers are shown then is over, and they refuse it
            if self._lacking(str(error)):
                logger.error("a gRPC server has no certificate to show: %s", error)
            return None
        threading.Event().wait(PAUSE)
        self._material = material
        return configuration

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        key, chain, roots = self.security.pem()
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)
