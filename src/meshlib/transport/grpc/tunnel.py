"""TLS for an inner channel: C-core connects to a socket of this process, and behind that Python's `ssl` talks to the endpoint.

grpcio can't check a SPIFFE id, and takes a certificate that has no other name for a wrong one. So C-core's connection stays
within the process: it goes to a `Door`, where only this process is let in. Meanwhile one thread connects to the endpoint, shakes
hands and has the peer verified; only then are the two joined (`Pump`), and C-core's first byte is read after that. Whatever goes
wrong closes the door: C-core sees a connection that could not be opened, and `failure` says why.

A tunnel is for one connection. When that is over, the inner channel is of no use, and the next call makes a new one with the
certificate and the trust of that moment. How long it takes new calls is told by its certificate (`aging`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import threading
import weakref
from dataclasses import dataclass
from functools import partial

import grpc

from meshlib.errors import IdentityError
from meshlib.policy.failure import FailureKind
from meshlib.runtime.threads import Timer
from meshlib.state import EndpointState, Handshake, Security
from meshlib.transport.grpc.aging import Aging, Held
from meshlib.transport.grpc.tunnel_door import Door
from meshlib.transport.grpc.tunnel_loop import GONE, IN, OUT, opening_loop, pumping_loop
from meshlib.transport.grpc.tunnel_pump import Pump
from meshlib.transport.http.failure import connect_failure
from meshlib.transport.http.handshakes import Count, count_done, count_failed
from meshlib.transport.http.tls import cut_short

__all__ = ["H2", "Tunnel", "TunnelFailure"]

H2 = "h2"

NOWHERE = "unix:/dev/null"
"""A target that nobody can be listening at."""

_PIECE = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelFailure:
    """Why a connection could not be opened, or ended. reason: Envoy's words, may be empty. error: what is behind it, if anything.

    TERMINATED: after the handshake, as with TLS 1.3 where a server refuses our certificate.
    """

    kind: FailureKind
    reason: str = ""
    error: BaseException | None = None


class Tunnel:
    """One connection to be opened to an endpoint. authority: of its calls; it may be needed for the SNI.

    count: adds to the cluster's TLS counters. name_header: the request header that should name it instead, which a connection
    shared by calls can't do: it is refused.
    target: for C-core. failure: None as long as the connection opens or is open. holder: who is told when the connection has
    aged. Attributes may be read on any thread.
    """

    __slots__ = (
        "_aging",
        "_alarm",
        "_authority",
        "_count",
        "_door",
        "_endpoint",
        "_handshake",
        "_incoming",
        "_joined",
        "_local",
        "_lock",
        "_name_header",
        "_outgoing",
        "_remote",
        "_security",
        "_tls",
        "_unsent",
        "_verified",
        "begun",
        "failure",
        "holder",
        "target",
    )

    told = True
    """C-core may connect at any time: the door is there."""

    def __init__(
        self,
        endpoint: EndpointState,
        security: Security,
        authority: str,
        count: Count,
        name_header: str = "",
    ) -> None:
        self._endpoint = endpoint
        self._security = security
        self._count = count
        self._authority = authority
        self._name_header = name_header
        self.failure: TunnelFailure | None = None
        self.begun = False
        self._lock = threading.Lock()
        self.holder: weakref.ref[Held] | None = None
        self._alarm: Timer | None = None
        self._aging: Aging | None = None
        self._handshake: Handshake | None = None
        self._local: socket.socket | None = None
        self._remote: socket.socket | None = None
        self._tls: ssl.SSLObject | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._unsent = b""
        self._verified = False
        self._joined = False
        self._door: Door | None = None
        self.target = NOWHERE
        try:
            self._door = Door()
            self.target = self._door.target
        except OSError as error:
            self._fail(error)

    def begin(self, limit: float) -> None:
        """Open the connection within `limit` seconds. Idempotent; `failure` may be there at once."""
        with self._lock:
            if self.begun or self.failure is not None:
                return
            self.begun = True
        try:
            if self._name_header:
                raise IdentityError(
                    f"the header {self._name_header!r} can't name the endpoint of gRPC calls",
                    expected="a connection that is named by its authority",
                    got=f"override_auto_sni_header: {self._name_header}",
                )
            self._handshake = self._security.handshake(
                authority=self._authority, hostname=self._endpoint.hostname, alpn=(H2,)
            )
        except IdentityError as error:
            self._fail(error)
            return
        opening_loop().submit(partial(self._connect, limit))

    def credentials(self) -> grpc.ChannelCredentials:
        """For the inner channel: to a socket of this process, behind which there is TLS, so calls may carry credentials."""
        return grpc.local_channel_credentials(grpc.LocalConnectionType.UDS)

    def explain(self, _channel: object) -> None:
        """C-core could not connect. `failure` says why already."""

    async def explain_aio(self, _channel: object) -> None:
        """The same."""

    @property
    def trusted(self) -> bool:
        """The authority that the endpoint was verified by has not been withdrawn."""
        return self._handshake is None or self._handshake.trusted

    def exchange(self) -> None:
        """Certificates may have been renewed. From any thread."""
        aging = self._aging
        if aging is not None and aging.outdated:
            pumping_loop().submit(aging.look)

    def close(self) -> None:
        """The inner channel is closed. What is not open yet is given up; an open connection ends with C-core's. Idempotent."""
        if self._joined or self.failure is not None:
            return
        if self.begun:
            opening_loop().submit(self._abandon)
        else:
            self._abandon()

    def __del__(self) -> None:
        """Its inner channel was dropped before it was used."""
        if not self.begun and self._door is not None:
            self._door.close()

    # --- on the thread that opens connections ------------------------------------------------------------------------

    def _connect(self, limit: float) -> None:
        door = self._door
        if self.failure is not None or door is None:
            return
        try:
            family, address = _address_of(self._endpoint)
            self._remote = remote = socket.socket(family, socket.SOCK_STREAM)
            remote.setblocking(False)
            if family != socket.AF_UNIX:
                remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            number = remote.connect_ex(address)
        except OSError as error:
            self._fail(error)
            return
        if number not in (0, errno.EINPROGRESS):
            self._fail(OSError(number, os.strerror(number)))
            return
        loop = opening_loop()
        loop.watch(door.socket, IN, self._admit, self._fail)
        loop.watch(remote, OUT, self._connected, self._fail)
        self._alarm = loop.later(limit, self._late)

    def _late(self) -> None:
        self._give_up(TunnelFailure(kind=FailureKind.CONNECT_TIMEOUT))

    def _abandon(self) -> None:
        self._give_up(TunnelFailure(kind=FailureKind.CONNECT_FAILED, reason="given up before it was open"))

    def _admit(self, _mask: int) -> None:
        """C-core has come, or a stranger."""
        door = self._door
        assert door is not None
        try:
            local = door.admit()
        except OSError as error:
            self._fail(error)
            return
        if local is not None:
            self._local = local
            self._close_door()
            self._join()

    def _connected(self, _mask: int) -> None:
        """TCP has come up, or has not."""
        remote, handshake = self._remote, self._handshake
        assert remote is not None and handshake is not None
        number = remote.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            self._fail(OSError(number, os.strerror(number)))
            return
        try:
            self._tls = handshake.context.wrap_bio(
                self._incoming, self._outgoing, server_hostname=handshake.server_hostname
            )
        except (ssl.SSLError, ValueError) as error:
            self._fail(error)
            return
        opening_loop().hand_over(remote, self._shake)
        self._shake(OUT)

    def _shake(self, mask: int) -> None:
        """A step of the handshake."""
        remote, tls = self._remote, self._tls
        assert remote is not None and tls is not None
        try:
            if mask & (IN | GONE):
                data = remote.recv(_PIECE)
                if data:
                    self._incoming.write(data)
                else:
                    self._incoming.write_eof()
        except BlockingIOError:
            pass
        except OSError as error:
            self._fail(error)
            return
        try:
            tls.do_handshake()
            done = True
        except ssl.SSLWantReadError:
            done = False
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):
                remote.send(self._outgoing.read())  # the alert
            count_failed(self._count, error)
            self._fail(error)
            return
        if not done or not self._verify(tls):
            if self.failure is None:
                self._speak(remote)
            return
        if self._speak(remote):
            self._verified = True
            # What the endpoint says from now on, an alert for example, is for the pump.
            opening_loop().forget(remote)
            self._join()

    def _speak(self, remote: socket.socket) -> bool:
        """Send what the handshake has to say. False: the connection failed."""
        self._unsent += self._outgoing.read()
        try:
            sent = remote.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(error)
            return False
        self._unsent = self._unsent[sent:]
        opening_loop().change(remote, IN | (OUT if self._unsent else 0))
        return True

    def _verify(self, tls: ssl.SSLObject) -> bool:
        """Before the first byte: nothing that C-core writes has been read yet."""
        handshake = self._handshake
        assert handshake is not None
        try:
            handshake.verify(tls)
        except IdentityError as error:
            count_failed(self._count, error)
            self._fail(error)
            return False
        count_done(self._count, tls)
        try:
            if tls.selected_alpn_protocol() != H2:
                raise IdentityError(
                    f"the endpoint {self._endpoint.key} does not speak HTTP/2 over TLS",
                    expected=f"ALPN {H2}",
                    got=f"ALPN {tls.selected_alpn_protocol() or 'nothing'}",
                )
        except IdentityError as error:
            self._fail(error)
            return False
        return True

    def _join(self) -> None:
        """Both sides are there: from now on bytes are moved."""
        local, remote, tls = self._local, self._remote, self._tls
        if local is None or remote is None or tls is None or not self._verified:
            return
        self._joined = True
        if self._alarm is not None:
            self._alarm.cancel()
        pump = Pump(
            pumping_loop(),
            local,
            remote,
            tls,
            self._incoming,
            self._outgoing,
            ended=self._ended,
            unsent=self._unsent,
        )
        self._local = self._remote = self._tls = None
        pumping_loop().submit(partial(self._run, pump))

    # --- on the thread that moves bytes -----------------------------------------------------------------------------

    def _run(self, pump: Pump) -> None:
        assert self._handshake is not None
        self._aging = Aging(pumping_loop(), self._security, self._handshake, self.holder)
        self._aging.begin()
        pump.start()

    # --- the end -----------------------------------------------------------------------------------------------------

    def _ended(self, error: BaseException | None) -> None:
        """On the thread that moves bytes: the connection is over."""
        if self._aging is not None:
            self._aging.end()
        if isinstance(error, ssl.SSLError):
            count_failed(self._count, error)
        if self.failure is None:
            self.failure = TunnelFailure(
                kind=FailureKind.TERMINATED,
                reason=self._words(error) if error is not None else "",
                error=error,
            )

    def _fail(self, error: BaseException) -> None:
        self._give_up(TunnelFailure(kind=FailureKind.CONNECT_FAILED, reason=self._words(error), error=error))

    def _give_up(self, failure: TunnelFailure) -> None:
        """Unless it is open. The reason is there before C-core can notice."""
        with self._lock:
            if self._joined or self.failure is not None:
                return
            self.failure = failure
        if self._alarm is not None:
            self._alarm.cancel()
        self._close_door()
        for sock in (self._local, self._remote):
            if sock is not None:
                opening_loop().forget(sock)
                sock.close()
        self._local = self._remote = self._tls = None

    def _close_door(self) -> None:
        door, self._door = self._door, None
        if door is not None:
            if self.begun:
                opening_loop().forget(door.socket)
            door.close()

    def _words(self, error: BaseException) -> str:
        """Envoy's."""
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError):
            if self._tls is None:
                return str(connect_failure(error))
            return cut_short(error).reason
        if self._handshake is not None:
            return self._handshake.text(error, self._tls)
        from meshlib.identity.failure import transport_failure  # with `cryptography`: only where TLS is used

        return transport_failure(error)


def _address_of(endpoint: EndpointState) -> tuple[int, str | tuple[str, int]]:
    address = endpoint.address
    if address.startswith("@"):
        return socket.AF_UNIX, "\0" + address[1:]
    if address.startswith("/"):
        return socket.AF_UNIX, address
    return socket.AF_INET6 if ":" in address else socket.AF_INET, (address, endpoint.port)
