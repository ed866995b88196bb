"""Listener: a client's, a server's, or one that is both.

An api_listener is a client's. So is a socket Listener with one plaintext filter chain whose filters a client can apply, as Envoy
runs it for the same application; a server may use it as well. All others (TLS, several filter chains, RBAC) are a server's.
"""

from __future__ import annotations

from meshlib import proto
from meshlib.resources.decode_http import HTTP_CONNECTION_MANAGER, decode_http_connection_manager
from meshlib.resources.decode_inbound import decode_inbound, decode_plain_chain
from meshlib.resources.decode_transport_socket import is_plaintext
from meshlib.resources.filters import RBAC
from meshlib.resources.inbound import InboundListener
from meshlib.resources.listener import HttpConnectionManager, Listener
from meshlib.resources.metadata import packed
from meshlib.resources.reader import Reader

__all__ = ["decode_listener"]

_BUFFER_LIMIT = 1024 * 1024


def decode_listener(reader: Reader) -> Listener | InboundListener:
    """config.listener.v3.Listener. Raises ResourceError."""
    if reader.has("api_listener"):
        reader.leave("filter_chains", "default_filter_chain")  # Envoy and gRPC take the api_listener then
        return _listener(reader, _api_listener(reader))
    chains = reader.items("filter_chains")
    default = reader.child("default_filter_chain")
    if not chains and default is None:
        raise reader.fail("", "has neither an api_listener nor a filter chain")
    only = default if not chains else chains[0] if len(chains) == 1 and default is None else None
    if only is None or not _for_clients(only):
        reader.leave("per_connection_buffer_limit_bytes")
        return decode_inbound(reader, chains, default)
    inbound, http = decode_plain_chain(reader, only, default=default is not None)
    return _listener(reader, http, inbound)


def _listener(
    reader: Reader, http: HttpConnectionManager, inbound: InboundListener | None = None
) -> Listener:
    limit = reader.boxed("per_connection_buffer_limit_bytes")
    return Listener(
        name=reader.text("name"),
        http=http,
        per_connection_buffer_limit_bytes=_BUFFER_LIMIT if limit is None else limit,
        inbound=inbound,
        metadata=packed(reader.message.metadata),
    )


def _api_listener(reader: Reader) -> HttpConnectionManager:
    config = reader.required("api_listener").required("api_listener")
    content = config.unpacked()
    if content.type_name != HTTP_CONNECTION_MANAGER:
        raise config.fail("", f"expected an HttpConnectionManager, got {content.type_name}")
    return decode_http_connection_manager(content)


def _for_clients(chain: Reader) -> bool:
    """Whether a client can apply what this filter chain says."""
    message = chain.message
    if not is_plaintext(chain) or len(message.filters) != 1:
        return is_plaintext(chain) and not message.filters
    config = message.filters[0].typed_config
    if config.type_url.rpartition("/")[2] != HTTP_CONNECTION_MANAGER:
        return True  # an error, which names the filter
    return not _asks_callers(config.value)


def _asks_callers(manager: bytes) -> bool:
    """Whether an HTTP filter of the HttpConnectionManager is RBAC, also in a TypedStruct."""
    name = RBAC.encode()
    if name not in manager:
        return False
    try:
        filters = proto.parse(HTTP_CONNECTION_MANAGER, manager).http_filters
    except proto.DecodeError:
        return False  # an error, which the decoder finds
    return any(
        each.typed_config.type_url.endswith(f"/{RBAC}")
        or (each.typed_config.type_url.endswith(".TypedStruct") and name in each.typed_config.value)
        for each in filters
    )
