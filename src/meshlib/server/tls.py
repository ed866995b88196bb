"""A TLS context for any server that takes an `ssl.SSLContext`: rotates while it runs, and lets nobody in who was not verified.

`ssl` cannot ask Python about a peer's certificate during the handshake. So the objects that this context makes check the peer
when `do_handshake` ends, before the first byte is read: asyncio's servers (uvicorn, hypercorn, `asyncio.start_server`, with or
without uvloop) and those over blocking sockets (gunicorn, werkzeug) call `do_handshake` and give up when it raises SSLError.

Rotation: key, chain and bundle come from the context that is current when a client says hello (`sni_callback`, which is called
without a server name too). What belongs to a connection before that (TLS versions, whether a certificate is asked for) is taken
over when the context is made.

PERMISSIVE: the first byte decides, as in Istio. A TLS connection begins with a handshake record (0x16), which no HTTP method
does. A plaintext connection then goes through the same objects, untouched and without a peer.

Network filters of a listener are asked at that moment too, with what is known then: over a socket everything, in an event loop
all but the addresses. Who is refused sees the connection end after the handshake, as with Envoy.

What a handshake found out is a `Connection`: an attribute of the TLS object, and, for asyncio, a context variable. A connection's
protocol is connected by the very callback that ends the handshake, so the tasks it starts inherit the variable.
"""

from __future__ import annotations

import socket
import ssl
import weakref
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, cast

from meshlib.errors import ConfigError, IdentityError
from meshlib.policy.rotation import draw

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

    from meshlib.identity.peer import Peer
    from meshlib.resources.tls import SanMatch

__all__ = [
    "CONNECTION",
    "MODES",
    "PLAINTEXT",
    "Connecting",
    "Connection",
    "Mode",
    "Security",
    "ServerContext",
    "connection_of",
]

Mode = Literal["STRICT", "PERMISSIVE", "DISABLE"]
"""STRICT: TLS only. PERMISSIVE: TLS or plaintext, the first byte decides. DISABLE: plaintext only."""

MODES: tuple[Mode, ...] = ("STRICT", "PERMISSIVE", "DISABLE")

_HANDSHAKE = 0x16
"""TLSPlaintext.type of a handshake record (RFC 8446, section 5.1)."""


class Security(Protocol):
    """What identity.store.ServerSecurity offers."""

    @property
    def context(self) -> ssl.SSLContext: ...
    @property
    def epoch(self) -> int: ...
    def outdated(self, epoch: int, lot: float, peer: Peer | None, /) -> bool: ...
    @property
    def own_uris(self) -> tuple[str, ...]: ...
    @property
    def own(self) -> bytes: ...
    def verify(self, tls: Any, /) -> Peer | None: ...
    def configure(self, context: ssl.SSLContext) -> None: ...
    def alert(self, record: bytes, error: ssl.SSLError, /) -> bytes: ...


def _gone() -> None:
    """There is no TLS object to ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What is known of an inbound connection when its handshake is over.

    peer: who showed a certificate, None for a caller without one. server_name: the SNI, empty without one. alpn: the protocol
    that was chosen. own_uris: URI SANs of the server's certificate. epoch: of the server's material at that time. security:
    where that comes from. lot: in [0, 1): when it is exchanged after a renewal, since not all are at once. admitted_by: the rules
    whose network filters let it in; None when they were not asked, or too little was known. version, cipher, chain (DER, as it
    was verified, leaf first) and own (the server's certificate, DER): for access logs, empty where nobody tells. engine: gives
    the TLS object, as long as it lives.
    """

    tls: bool
    peer: Peer | None = None
    server_name: str = ""
    alpn: str = ""
    own_uris: tuple[str, ...] = ()
    epoch: int = 0
    security: Security | None = field(default=None, repr=False, compare=False)
    lot: float = field(default_factory=draw, repr=False, compare=False)
    admitted_by: object = field(default=None, repr=False, compare=False)
    version: str = ""
    cipher: str = ""
    chain: tuple[bytes, ...] = field(default=(), repr=False)
    own: bytes = field(default=b"", repr=False)
    engine: Callable[[], Any] = field(default=_gone, repr=False, compare=False)

    @property
    def outdated(self) -> bool:
        """It is to be closed soon: its peer is trusted no longer, the rules for whom to trust are others, or the server's
        certificate was renewed some time ago."""
        return self.security is not None and self.security.outdated(self.epoch, self.lot, self.peer)

    @property
    def application_protocols(self) -> tuple[str, ...]:
        """What filter chains are chosen by. Python does not tell what the caller offered, only what was chosen."""
        return (self.alpn,) if self.alpn else ()

    def san_matches(self, match: SanMatch) -> bool:
        """Whether one of the names in the peer's certificate matches."""
        if self.peer is None:
            return False
        from cryptography import x509

        from meshlib.identity.names import compile_match, names_of

        names = names_of(x509.load_der_x509_certificate(self.peer.certificate_der))
        return any(map(compile_match(match), names))


PLAINTEXT = Connection(tls=False)
"""A connection of a PERMISSIVE server that is not TLS."""

UNKNOWN = Connection(tls=False)
"""A connection that no ServerContext has seen: plaintext, or TLS that says nothing about who is there."""

CONNECTION: ContextVar[Connection] = ContextVar("meshlib_inbound_connection", default=UNKNOWN)
"""The connection that an asyncio server's callback or task belongs to."""


Addresses = tuple["str | None", "str | None", "int | None"]
"""The caller's address, and where it came to; as in an `Arrival`."""

Connecting = Callable[[Connection, Addresses], "Connection | None"]
"""What network filters say of a connection: the connection to go on with, None for one that is to be closed."""

_UNTOLD: Addresses = (None, None, None)


class _Inbound:
    """What the TLS objects of a ServerContext have in common."""

    server: ServerContext
    connection: Connection | None = None
    server_name = ""


class InboundObject(_Inbound, ssl.SSLObject):
    """For event loops. Once `do_handshake` has returned, the peer has been verified.

    An event loop whose handshake fails closes at once, and drops the alert that tells the caller why. So a failure is put off
    until the caller has more to say, or closes, or the loop's handshake timeout has passed: a loop that is asked to wait sends
    what there is to send first.
    """

    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO
    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            if not self.outgoing.pending:
                raise
            self.outgoing.write(self.server.alert(self.outgoing.read(), error))
            self._failure = error
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the alert is to be sent") from error
        try:
            found = self.server.verified(self)
        except ssl.SSLCertVerificationError as error:
            self._refuse(error)
        try:
            self.connection = self.server.admitted(found, _UNTOLD)
        except ssl.SSLError as error:
            with suppress(ssl.SSLError):
                self.unwrap()
            self._failure = error
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "close_notify is to be sent") from error
        CONNECTION.set(self.connection)

    def _refuse(self, error: ssl.SSLCertVerificationError) -> NoReturn:
        """The caller is not the right one, though its handshake is over for OpenSSL.

        With TLS 1.2 it is not yet over for the caller: our Finished waits to be sent. An alert goes out in its place, in the
        clear as everything until then, and the caller sees a handshake that has failed, as Envoy would have let it fail.
        """
        cause = error.__cause__
        if not isinstance(cause, IdentityError) or self.version() != "TLSv1.2" or not self.outgoing.pending:
            raise error
        from meshlib.identity.failure import refusal_alert

        self.outgoing.read()
        self.outgoing.write(refusal_alert(cause))
        self._failure = error
        raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the alert is to be sent") from error


class PermissiveObject(InboundObject):
    """The same, or, when the first byte is not TLS, a plaintext stream through the same two buffers."""

    _plaintext: bool | None = None

    def do_handshake(self) -> None:
        if self._plaintext is None:
            self._plaintext = self._looks_plain()
        if self._plaintext:
            self.connection = self.server.admitted(PLAINTEXT, _UNTOLD)
            CONNECTION.set(self.connection)
        else:
            super().do_handshake()

    def _looks_plain(self) -> bool:
        begin = self.incoming.read()
        if not begin:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the caller has not said anything yet")
        self.incoming.write(begin)  # a MemoryBIO has no way to look at what is in it
        return begin[0] != _HANDSHAKE

    def read(self, len: int | None = 1024, buffer: WriteableBuffer | None = None) -> Any:  # noqa: A002 - the name that ssl gave it
        if not self._plaintext:
            return (
                super().read(cast("int", len), buffer)
                if buffer is not None
                else super().read(cast("int", len))
            )
        data = self.incoming.read(1024 if len is None else len)
        if not data and not self.incoming.eof:
            raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "nothing to read yet")
        if buffer is None:
            return data
        size = data.__len__()  # the name is taken by a parameter
        memoryview(buffer)[:size] = data
        return size

    def write(self, data: ReadableBuffer) -> int:
        return self.outgoing.write(data) if self._plaintext else super().write(data)

    def pending(self) -> int:
        return self.incoming.pending if self._plaintext else super().pending()

    def unwrap(self) -> None:
        if not self._plaintext:
            super().unwrap()

    def getpeercert(self, binary_form: bool = False) -> Any:
        return None if self._plaintext else super().getpeercert(binary_form)


class InboundSocket(_Inbound, ssl.SSLSocket):
    """For blocking servers. The handshake is done, and the peer verified, before anything is read or written.

    A plaintext connection (PERMISSIVE) is an `ssl.SSLSocket` after `unwrap`: a socket like any other.
    """

    do_handshake_on_connect: bool
    _connected: bool
    _sslobj: Any

    def do_handshake(self, block: bool = False) -> None:
        if self.connection is not None:
            return
        if self.server.permissive and self._looks_plain():
            self._sslobj = None
            self.connection = self.server.admitted(PLAINTEXT, self._addresses())
            return
        super().do_handshake(block)
        self.connection = self.server.admitted(self.server.verified(self), self._addresses())

    def _addresses(self) -> Addresses:
        try:
            remote, local = self.getpeername(), self.getsockname()
        except OSError:  # the caller has gone
            return _UNTOLD
        if self.family == socket.AF_UNIX:
            return "", "", 0
        return str(remote[0]), str(local[0]), int(local[1])

    def _looks_plain(self) -> bool:
        try:
            begin = socket.socket.recv(self, 1, socket.MSG_PEEK)
        except BlockingIOError:
            raise ssl.SSLWantReadError(
                ssl.SSL_ERROR_WANT_READ, "the caller has not said anything yet"
            ) from None
        return bool(begin) and begin[0] != _HANDSHAKE

    def read(self, len: int = 1024, buffer: WriteableBuffer | None = None) -> Any:  # noqa: A002 - the name that ssl gave it
        self.do_handshake()
        if self._sslobj is None:
            return (
                socket.socket.recv(self, len)
                if buffer is None
                else socket.socket.recv_into(self, buffer, len)
            )
        return super().read(len, cast("Any", buffer))

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        self.do_handshake()
        return super().send(data, flags)


class ServerContext(ssl.SSLContext):
    """The context for one server. security: where its material comes from, and who may connect.

    mode: STRICT or PERMISSIVE; with DISABLE a server gets no context at all. connecting: asked after each handshake.
    """

    permissive: bool

    def __new__(
        cls, security: Security, mode: Mode = "STRICT", connecting: Connecting | None = None
    ) -> ServerContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(
        self, security: Security, mode: Mode = "STRICT", connecting: Connecting | None = None
    ) -> None:
        if mode not in ("STRICT", "PERMISSIVE"):
            raise ConfigError(f"a TLS context is for mode 'STRICT' or 'PERMISSIVE', not {mode!r}")
        self._security = security
        self._connecting = connecting
        self.permissive = mode == "PERMISSIVE"
        self.sslobject_class = PermissiveObject if self.permissive else InboundObject
        self.sslsocket_class = InboundSocket
        security.configure(self)
        self.sni_callback = self._greeted

    def _greeted(self, tls: Any, name: str | None, context: ssl.SSLContext) -> int | None:
        tls.server_name = name or ""
        choose = cast("Any", self._security.context.sni_callback)
        answer: int | None = None if choose is None else choose(tls, name, context)
        return answer

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        made = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        assert isinstance(made, InboundObject)
        made.server = self
        made.incoming, made.outgoing = incoming, outgoing
        return made

    def wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        made = super().wrap_socket(sock, server_side, False, suppress_ragged_eofs, server_hostname, session)
        assert isinstance(made, InboundSocket)
        made.server = self
        made.do_handshake_on_connect = do_handshake_on_connect  # of the sockets that a listening one accepts
        if do_handshake_on_connect and made._connected:
            try:
                made.do_handshake()
            except BaseException:
                made.close()
                raise
        return made

    def alert(self, record: bytes, error: ssl.SSLError) -> bytes:
        """What to send instead of OpenSSL's own alert."""
        return self._security.alert(record, error)

    def verified(self, tls: InboundObject | InboundSocket) -> Connection:
        """The connection of a finished handshake. Raises: ssl.SSLCertVerificationError, when the peer may not connect."""
        # Read before the peer is looked at: what changes meanwhile makes the connection outdated.
        epoch = self._security.epoch
        try:
            peer = self._security.verify(tls)
        except IdentityError as error:
            raise ssl.SSLCertVerificationError(ssl.SSL_ERROR_SSL, str(error)) from error
        from meshlib.identity.peer import verified_chain  # needs cryptography, as whatever has verified it

        cipher = tls.cipher()
        return Connection(
            tls=True,
            peer=peer,
            server_name=tls.server_name,
            version=tls.version() or "",
            cipher="" if cipher is None else cipher[0],
            engine=weakref.ref(tls),  # which has this as an attribute
            chain=() if peer is None else verified_chain(tls),
            own=self._security.own,
            alpn=tls.selected_alpn_protocol() or "",
            own_uris=self._security.own_uris,
            epoch=epoch,
            security=self._security,
        )

    def admitted(self, connection: Connection, addresses: Addresses) -> Connection:
        """The connection, when the network filters do not refuse it. Raises: ssl.SSLError."""
        found = connection if self._connecting is None else self._connecting(connection, addresses)
        if found is None:
            raise ssl.SSLError(ssl.SSL_ERROR_SSL, "the network filters of the listener refuse the connection")
        return found


def connection_of(tls: object) -> Connection:
    """The Connection of a socket or TLS object of a ServerContext; UNKNOWN for any other, which has no peer to speak of."""
    found = getattr(tls, "connection", None) if isinstance(tls, _Inbound) else None
    return UNKNOWN if found is None else found
