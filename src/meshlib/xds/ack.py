"""The state-of-the-world protocol: what to send, and which version and nonce it carries.

One `Subscriptions` serves the life of the client, over any number of streams. For each type it knows the names that are
wanted, the version that was accepted last (kept over streams) and the nonce of the latest response (of this stream only). The
rules, in the order of a type's life:

    state of the type on this stream     event                     request
    -----------------------------------  ------------------------  ------------------------------------------------
    nothing sent                         names wanted              names, last accepted version, no nonce
    nothing sent                         no names wanted           none: an empty first request would ask for all
    sent                                 names change              names, last accepted version, latest nonce
    sent                                 response accepted (ACK)   names, its version, its nonce
    sent                                 response rejected (NACK)  names, last accepted version, its nonce, the error
    nothing sent                         response                  none: it answers nothing that we asked
    any                                  stream ends               none; nonces are forgotten, versions stay

A type that is not known is rejected with its own nonce and no names. The first request of a stream carries the node.
Sources: "xDS REST and gRPC protocol" of Envoy's documentation; gRFC A27.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Request", "Subscriptions"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A DiscoveryRequest. error: why the response with this nonce is rejected, None otherwise. first: carries the node."""

    type_url: str
    names: tuple[str, ...] = ()
    version: str = ""
    nonce: str = ""
    error: str | None = None
    first: bool = False


class _Type:
    __slots__ = ("names", "nonce", "sent", "version")

    def __init__(self) -> None:
        self.version = ""
        self.nonce = ""
        self.names: tuple[str, ...] = ()
        self.sent = False


class Subscriptions:
    """See the module's text. `connected` begins a stream and `disconnected` ends it; nothing is sent between."""

    def __init__(self, type_urls: Iterable[str]) -> None:
        self._types = {url: _Type() for url in type_urls}
        self._connected = False
        self._first = True

    def connected(self) -> None:
        self._connected = True
        self._first = True

    def disconnected(self) -> None:
        self._connected = False
        for state in self._types.values():
            state.nonce = ""
            state.names = ()
            state.sent = False

    def subscribed(self, type_url: str) -> tuple[str, ...]:
        """The names in the latest request of this stream."""
        return self._types[type_url].names

    def expects(self, type_url: str) -> bool:
        """Something was asked of this type on this stream, so that a response to it may come."""
        return type_url in self._types and self._types[type_url].sent

    def subscribe(self, type_url: str, names: Iterable[str]) -> Request | None:
        """The request that changes the names; None when there is nothing to say."""
        state = self._types[type_url]
        wanted = tuple(names)
        if not self._connected or not (state.sent or wanted):
            return None
        if state.sent and set(wanted) == set(state.names):
            return None
        return self._request(type_url, state, wanted)

    def accept(self, type_url: str, version: str, nonce: str, names: Iterable[str]) -> Request:
        """The ACK. names: those wanted now, which may have changed by what was accepted."""
        state = self._types[type_url]
        state.version, state.nonce = version, nonce
        return self._request(type_url, state, tuple(names))

    def reject(self, type_url: str, nonce: str, error: str, names: Iterable[str] = ()) -> Request:
        """The NACK."""
        state = self._types.get(type_url)
        if state is None:
            return self._take_first(Request(type_url=type_url, nonce=nonce, error=error))
        state.nonce = nonce
        return self._request(type_url, state, tuple(names), error)

    def _request(
        self, type_url: str, state: _Type, names: tuple[str, ...], error: str | None = None
    ) -> Request:
        state.names, state.sent = names, True
        return self._take_first(
            Request(type_url=type_url, names=names, version=state.version, nonce=state.nonce, error=error)
        )

    def _take_first(self, request: Request) -> Request:
        if not self._first:
            return request
        self._first = False
        return Request(
            type_url=request.type_url,
            names=request.names,
            version=request.version,
            nonce=request.nonce,
            error=request.error,
            first=True,
        )
