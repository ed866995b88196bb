"""Operators of addresses: whole, without the port (and cut to a network), and the port alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from meshlib.resources.format import Operator
from meshlib.routing.format import Factory, Read, Value, plain

__all__ = ["address_operators", "endpoint_id", "host_and_port", "without_port"]


def host_and_port(address: str | None) -> tuple[str | None, int | None]:
    """Of `ip:port` and `[ip]:port`. A path of a Unix socket has no port, and an address may come without one."""
    if address is None:
        return None, None
    if address.count(":") > 1 and not address.startswith("["):
        return address, None
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        return address, None
    return host.removeprefix("[").removesuffix("]"), int(port)


def without_port(name: str) -> str:
    return host_and_port(name)[0] or name


def address_operators(name: str, read: Callable[[Any], str | None]) -> dict[str, Factory]:
    """`NAME_ADDRESS`, `NAME_ADDRESS_WITHOUT_PORT` and `NAME_PORT`."""
    return {
        f"{name}_ADDRESS": plain(read),
        f"{name}_ADDRESS_WITHOUT_PORT": lambda operator: _host(operator, read),
        f"{name}_PORT": plain(lambda facts: host_and_port(read(facts))[1]),
    }


def endpoint_id(read: Callable[[Any], str | None]) -> Factory:
    """`NAME_ADDRESS_ENDPOINT_ID`: only internal addresses have one, which there are none of."""
    return plain(lambda facts: None if read(facts) is None else "")


def _host(operator: Operator, read: Callable[[Any], str | None]) -> Read:
    """`(16)`: of the network with a prefix of that many bits, as in `10.1.0.0/16`."""
    bits = operator.argument
    if not bits:
        return lambda facts: host_and_port(read(facts))[0]

    def network(facts: Any) -> Value:
        host = host_and_port(read(facts))[0]
        try:
            return None if host is None else str(ipaddress.ip_network(f"{host}/{bits}", strict=False))
        except ValueError:
            return None

    return network
