"""Ports of a gRPC server in each mode."""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Any

from meshlib.server.front import Front, abstract_name
from meshlib.server.grpc_inbound import credentials
from meshlib.server.inbound import Inbound

__all__ = ["Listening", "listen"]


class Listening:
    """A port that a server listens at. `close`, or the end of a `with` block, after the server has stopped: it matters for
    PERMISSIVE only, where connections pass through a thread of ours."""

    def __init__(self, port: int, front: Front | None = None) -> None:
        self.port = port
        self._front = front

    def close(self) -> None:
        """Idempotent."""
        if self._front is not None:
            self._front.close()

    def __enter__(self) -> Listening:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def listen(server: Any, address: str, inbound: Inbound) -> Listening:
    """Have a `grpc.server` or `grpc.aio.server` listen at `host:port` (port 0: any) in the mode of the Inbound; before it starts.

    PERMISSIVE needs abstract Unix sockets (Linux), and each connection passes through a thread of this process.

    Raises:
        RuntimeError: the address can't be bound. ConfigError, ConfigTimeout, IdentityError: as `credentials`.
    """
    mode = inbound.mode
    if mode == "STRICT":
        return Listening(server.add_secure_port(address, credentials(inbound)))
    if mode == "DISABLE":
        return Listening(server.add_insecure_port(address))
    secure = credentials(inbound)
    listening = _bound(address)
    tls, plaintext = abstract_name(), abstract_name()
    try:
        server.add_secure_port(f"unix-abstract:{tls}", secure)
        server.add_insecure_port(f"unix-abstract:{plaintext}")
    except BaseException:
        listening.close()
        raise
    front = Front(listening, tls=tls, plaintext=plaintext)
    return Listening(front.port, front)


def _bound(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((host, int(port)))
    except (OSError, ValueError) as error:
        made.close()
        raise RuntimeError(f"can't listen at {address}: {error}") from None
    return made
