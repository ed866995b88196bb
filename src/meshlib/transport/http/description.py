"""What access logs show of a connection that a request goes over (`engine.attempt.Attempt.connection`).

Taken down when the first request is about to be sent that somebody logs so, and kept for those that follow: the connection may
be gone when the line is written.
"""

from __future__ import annotations

import itertools
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meshlib.transport.http.tls import TlsSession

__all__ = ["Description", "TlsDescription", "describe"]

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsDescription:
    """version: as in `TLSv1.3`. cipher: OpenSSL's name. server_name: the SNI, empty for none. peer: the certificates that the
    other end has shown, DER, leaf first; own: the one that it may have asked for, empty for none. engine: the TLS object itself,
    None where it has gone.
    """

    version: str
    cipher: str
    server_name: str
    peer: tuple[bytes, ...] = field(repr=False)
    own: bytes = field(repr=False)
    engine: Any = field(default=None, repr=False, compare=False)

    @property
    def session_id(self) -> str:
        """Hexadecimal, empty where there is none, as in TLS 1.3.

        Costs 0.4 ms: Python copies the session with its certificates.
        """
        engine = None if self.version == "TLSv1.3" else self.engine
        session = None if engine is None else engine.session
        return "" if session is None else session.id.hex()


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """number: of the connections that are described in this process, from 1. local: `ip:port` of this end, None for a Unix
    socket. tls: None in plaintext. begun, opened, secured: monotonic seconds: when it began to connect, when that was done, and
    when the handshake of TLS was over (None in plaintext).
    """

    number: int
    local: str | None
    tls: TlsDescription | None
    begun: float
    opened: float
    secured: float | None


def describe(
    sock: socket.socket, session: TlsSession | None, begun: float, opened: float, ready: float
) -> Description:
    """An open connection. session: of its TLS, after the handshake, which was over when it was ready."""
    return Description(
        number=next(_numbers),
        local=_local(sock),
        tls=None if session is None else session.describe(),
        begun=begun,
        opened=opened,
        secured=None if session is None else ready,
    )


def _local(sock: socket.socket) -> str | None:
    if sock.family == socket.AF_UNIX:
        return None
    try:
        host, port, *_ = sock.getsockname()
    except OSError:  # it has ended in the meantime
        return None
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
