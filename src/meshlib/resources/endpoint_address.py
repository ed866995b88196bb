"""The address in an LbEndpoint message, for endpoints that are not in the plain IPv4 layout."""

from __future__ import annotations

import functools
import socket
from pathlib import Path
from typing import Any

from meshlib.errors import ResourceError
from meshlib.resources.endpoint_wire import parse

__all__ = ["identity", "ip_text", "read_address", "unapplied"]

LONGEST_PIPE = 107
"""Bytes of the path of a Unix socket, on Linux."""

_APPLIED = frozenset({"address", "hostname"})
_SOCKET_APPLIED = frozenset({"address", "port_value"})


def read_address(item: bytes, *, hostnames: bool) -> tuple[str, int, str]:
    """Address, port and hostname of an LbEndpoint; the path, and port 0, for a pipe.

    hostnames: the address may be a name to resolve; otherwise it must be an IP address. Raises ResourceError.
    """
    message = parse(item)
    if message.WhichOneof("host_identifier") != "endpoint":
        raise ResourceError("endpoint", "must be given")
    endpoint = message.endpoint
    if not endpoint.HasField("address"):
        raise ResourceError("endpoint.address", "must be given")
    kind = endpoint.address.WhichOneof("address")
    if kind == "pipe" and not hostnames:
        return _pipe(endpoint.address.pipe.path), 0, str(endpoint.hostname)
    if kind != "socket_address":
        raise ResourceError("endpoint.address", f"a {kind} can't be called" if kind else "must be given")
    place = "endpoint.address.socket_address"
    address = endpoint.address.socket_address
    specifier = address.WhichOneof("port_specifier")
    if specifier != "port_value":
        raise ResourceError(place, f"needs a port_value{' instead of a named_port' if specifier else ''}")
    if address.port_value > 65535:
        raise ResourceError(f"{place}.port_value", "must be at most 65535")
    if not address.address:
        raise ResourceError(f"{place}.address", "must not be empty")
    if address.resolver_name:
        raise ResourceError(f"{place}.resolver_name", "custom resolvers are not supported")
    text = ip_text(address.address)
    if text is None:
        if not hostnames:
            reason = f"{address.address!r} is not an IP address; use type STRICT_DNS or LOGICAL_DNS"
            raise ResourceError(f"{place}.address", reason)
        text = address.address
    return text, int(address.port_value), str(endpoint.hostname)


def _pipe(path: str) -> str:
    """The path of a Unix socket, from the root; `@` and a name for one of Linux's abstract ones."""
    if not path.startswith("@"):
        path = str(Path(path).absolute())
    if len(path.encode("utf-8", "surrogatepass")) > LONGEST_PIPE:
        raise ResourceError("endpoint.address.pipe.path", f"is longer than {LONGEST_PIPE} bytes")
    return path


def unapplied(item: bytes) -> list[str]:
    """The fields of the endpoint that are set and not applied, as paths within the LbEndpoint."""
    endpoint = parse(item).endpoint
    if endpoint.address.WhichOneof("address") == "pipe":
        return ["endpoint.address.pipe.mode"] if endpoint.address.pipe.mode else []
    fields = [f"endpoint.{name}" for name in _names(endpoint) if name not in _APPLIED]
    address = endpoint.address.socket_address
    fields += [f"endpoint.address.socket_address.{n}" for n in _names(address) if n not in _SOCKET_APPLIED]
    return fields


def _names(message: Any) -> list[str]:
    return [descriptor.name for descriptor, _ in message.ListFields()]


@functools.lru_cache(maxsize=1024)
def ip_text(text: str) -> str | None:
    """The canonical text of an IP address as Envoy reads it (IPv6 may have a scope); None when it is none."""
    try:
        return socket.inet_ntop(socket.AF_INET, socket.inet_pton(socket.AF_INET, text))
    except (OSError, ValueError):
        pass
    address, percent, scope = text.partition("%")
    try:
        packed = socket.inet_pton(socket.AF_INET6, address)
    except (OSError, ValueError):
        return None
    return socket.inet_ntop(socket.AF_INET6, packed) + percent + scope


def identity(address: str, port: int) -> bytes:
    """The same bytes for the same address and port; for a plain IPv4 endpoint they are its key on the wire."""
    varint = bytearray()
    rest = port
    while rest > 0x7F:
        varint.append(rest & 0x7F | 0x80)
        rest >>= 7
    varint.append(rest)
    text = address.encode("utf-8", "surrogatepass")
    size = 2 + len(text) + 1 + len(varint)
    if size + 4 > 0x7F:
        return text + b"\x18" + varint
    return bytes((0x0A, size + 4, 0x0A, size + 2, 0x0A, size, 0x12, len(text))) + text + b"\x18" + varint
