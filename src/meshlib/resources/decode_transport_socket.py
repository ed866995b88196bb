"""Transport sockets: plaintext because the configuration says so, TLS, or an error. Nothing else is ever taken for plaintext."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from meshlib.resources.decode_tls import decode_downstream_tls, decode_upstream_tls
from meshlib.resources.metadata import scalars
from meshlib.resources.reader import Reader
from meshlib.resources.tls import DownstreamTls, TransportSocketMatch, UpstreamTls

__all__ = ["downstream_socket", "is_plaintext", "transport_socket_matches", "upstream_socket"]

T = TypeVar("T")

_PACKAGE = "envoy.extensions.transport_sockets."
_RAW_BUFFER = _PACKAGE + "raw_buffer.v3.RawBuffer"
_UPSTREAM = _PACKAGE + "tls.v3.UpstreamTlsContext"
_DOWNSTREAM = _PACKAGE + "tls.v3.DownstreamTlsContext"


def upstream_socket(reader: Reader) -> UpstreamTls | None:
    """The transport_socket of a cluster or of a TransportSocketMatch; None for plaintext. Raises ResourceError."""
    return _socket(reader, _UPSTREAM, decode_upstream_tls)


def downstream_socket(reader: Reader) -> DownstreamTls | None:
    """The transport_socket of a filter chain; None for plaintext. Raises ResourceError."""
    return _socket(reader, _DOWNSTREAM, decode_downstream_tls)


def is_plaintext(reader: Reader) -> bool:
    """Whether the message has no transport_socket, or RawBuffer. Does not count as reading it."""
    if not reader.has("transport_socket"):
        return True
    return bool(_type(reader.message.transport_socket.typed_config.type_url) == _RAW_BUFFER)


def transport_socket_matches(reader: Reader) -> tuple[TransportSocketMatch, ...]:
    """Cluster.transport_socket_matches. Raises ResourceError."""
    found = []
    for entry in reader.each("transport_socket_matches"):
        match = entry.child("match")
        if match is not None:
            match.leave("fields")
        found.append(
            TransportSocketMatch(
                name=entry.text("name"),
                match=scalars(entry.message.match),
                tls=upstream_socket(entry),
            )
        )
    return tuple(found)


def _socket(reader: Reader, expected: str, decoder: Callable[[Reader], T]) -> T | None:
    socket = reader.child("transport_socket")
    if socket is None:
        return None
    socket.leave("name")
    config = socket.required("typed_config")
    kind = _type(config.message.type_url)
    if kind not in (_RAW_BUFFER, expected) and not kind.endswith(".TypedStruct"):
        raise reader.fail("transport_socket", _not_implemented(kind))
    content = config.unpacked()
    if content.type_name == _RAW_BUFFER:
        return None
    if content.type_name != expected:
        raise reader.fail("transport_socket", _not_implemented(content.type_name))
    return decoder(content)


def _not_implemented(kind: str) -> str:
    name = kind.rpartition(".")[2] or "an unknown type"
    return f"{name} is not implemented here, and plaintext must not go where another transport was asked for"


def _type(url: str) -> str:
    return url.rpartition("/")[2]
