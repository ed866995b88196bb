"""What is done to the authority before virtual hosts are searched."""

from __future__ import annotations

import re
from collections.abc import Callable

from meshlib.resources.listener import HttpConnectionManager

__all__ = ["ascii_lower", "compile_authority", "port_start", "without_port"]

_PORT = re.compile(":[0-9]+")


def ascii_lower(text: str) -> str:
    """Lower case for A to Z only, as Envoy compares; `str.lower` would also change other letters."""
    if text.isascii():
        return text.lower()
    return text.encode("utf-8", "surrogatepass").lower().decode("utf-8", "surrogatepass")


def port_start(authority: str) -> int:
    """Index of the colon before the port, -1 when there is none. A colon inside the brackets of an IPv6 address is none."""
    colon = authority.rfind(":")
    return colon if colon > authority.rfind("]") else -1


def without_port(authority: str) -> str:
    start = port_start(authority)
    return authority if start < 0 else authority[:start]


def compile_authority(http: HttpConnectionManager) -> Callable[[str], str] | None:
    """What the HttpConnectionManager does to the Host before routing and upstream; None when it leaves it alone.

    strip_trailing_host_dot removes one dot at the end of the host, before the port. strip_any_host_port removes the port.
    """
    strip_dot, strip_port = http.strip_trailing_host_dot, http.strip_any_host_port
    if not (strip_dot or strip_port):
        return None

    def normalise(authority: str) -> str:
        start = port_start(authority)
        host, port = (authority, "") if start < 0 else (authority[:start], authority[start:])
        if strip_dot:
            host = host.removesuffix(".")
        return host if strip_port and _PORT.fullmatch(port) else host + port

    return normalise
