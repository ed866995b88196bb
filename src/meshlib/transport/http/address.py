"""Where a socket connects to."""

from __future__ import annotations

import socket

from meshlib.state import EndpointState

__all__ = ["SocketAddress", "socket_address"]

SocketAddress = tuple[socket.AddressFamily, str | tuple[str, int]]


def socket_address(endpoint: EndpointState) -> SocketAddress:
    """Family and address of an endpoint: IPv4, IPv6, or the path of a Unix socket (`@` and a name for an abstract one)."""
    address = endpoint.address
    if address[:1] == "/":
        return socket.AF_UNIX, address
    if address[:1] == "@":
        return socket.AF_UNIX, "\0" + address[1:]
    return socket.AF_INET6 if ":" in address else socket.AF_INET, (address, endpoint.port)
