"""A blocking connection over TLS: the plaintext one, whose codec speaks through a TLS session, with a handshake before it."""

from __future__ import annotations

import select
from contextlib import suppress

from meshlib.engine.actions import Start
from meshlib.state import Way
from meshlib.transport.http.codec import Codec
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.pool import Pool, Shelf
from meshlib.transport.http.records import TlsCodec
from meshlib.transport.http.sync_connection import DONTWAIT, RECEIVE, SyncConnection, milliseconds
from meshlib.transport.http.tls import TlsSession, begin, cut_short

__all__ = ["SecureSyncConnection"]


class SecureSyncConnection(SyncConnection):
    """connecting: the TCP handshake, or that of TLS, is not over.

    authority: what a request is for; the way says whether the SNI comes from it. expires: with our own certificate, or when a
    successor has taken its place.
    """

    __slots__ = ("_session", "_shaking", "authority")

    def __init__(
        self, pool: Pool, start: Start, way: Way, codec: Codec, shelf: Shelf, authority: str
    ) -> None:
        super().__init__(pool, start, way, codec, shelf)
        self.authority = authority
        self._session: TlsSession | None = None
        self._shaking = False

    def connect(self) -> None:
        """Begin to connect. Raises TransportFailure when that is refused at once, or when there is no certificate to use."""
        self._session = begin(self.way, self.endpoint, self.authority, self.state.count_tls)
        super().connect()

    def _opened(self) -> None:
        """TCP is open."""
        self._opened_at = self.pool.monotonic()
        self._shaking = True
        self._shake(b"")

    def _shake(self, data: bytes) -> None:
        session = self._session
        assert session is not None
        try:
            over = session.shake(data)
        except TransportFailure:
            with suppress(OSError):
                self._socket.send(session.take(), DONTWAIT)
            raise
        if not over:
            self._queue(session.take())
        else:  # what is left to say (TLS 1.3) goes out together with the request
            self._shaking = False
            self.pool.opened(self, session.not_after)
            self.codec = TlsCodec(self.codec, session.records)
            super()._opened()
            self.codec.feed(b"")  # what came together with the end of the handshake

    def _finish_connecting(self, limit: float) -> None:
        if not self._shaking:
            super()._finish_connecting(limit)
            return
        self._poller.modify(self._socket, self.interest())
        try:
            ready = self._poller.poll(milliseconds(limit))
        finally:
            self._poller.modify(self._socket, select.POLLIN)
        if not ready:
            raise TimeoutError
        if self._pending is not None:
            self._send_pending(self._pending)
        try:
            data = self._socket.recv(RECEIVE, DONTWAIT)
        except BlockingIOError:
            return
        except OSError as error:
            raise cut_short(error) from error
        if not data:
            raise cut_short()
        self._shake(data)

    def interest(self) -> int:
        if self._shaking:
            return select.POLLIN if self._pending is None else select.POLLIN | select.POLLOUT
        return super().interest()

    def healthy(self) -> bool:
        return self.expires > self.pool.monotonic() and super().healthy()

    def give_back(self) -> None:
        """As in plaintext, unless trust or the configuration has changed in the meantime, or its time is over."""
        if self.way is self.endpoint.way and self.expires > self.pool.monotonic():
            super().give_back()
        else:
            self.close()

    @property
    def trusted(self) -> bool:
        return self._session is None or self._session.trusted

    def superseded(self) -> tuple[int, float] | None:
        session = self._session
        return None if session is None else session.superseded()

    def settle(self) -> None:
        assert self._session is not None
        self._queue(self._session.take())

    def disconnect(self) -> None:
        session = self._session
        if session is not None and not self.connecting and self._pending is None:
            with suppress(OSError):
                self._socket.send(session.farewell(), DONTWAIT)
        super().disconnect()
