"""Asyncio connections over TLS: the plaintext ones, with a session between them and the bare transport of the event loop.

The loop gives records to `data_received`, which passes the plaintext on to the class below; what that writes to its `transport`
goes through `_Sealed`. asyncio's own TLS is left out: it would add a second protocol object, its own buffers and a turn of
the loop to each answer.
"""

from __future__ import annotations

import asyncio
import ssl

from meshlib.transport.http.async_connection import AsyncConnection, AsyncSocket
from meshlib.transport.http.async_h2 import AsyncH2Connection
from meshlib.transport.http.failure import TransportFailure
from meshlib.transport.http.records import Records
from meshlib.transport.http.tls import begin, cut_short

__all__ = ["SecureConnection", "SecureH2Connection"]


class _Sealed:
    """Takes plaintext where the event loop's transport takes records."""

    __slots__ = (
        "_raw",
        "_records",
        "abort",
        "get_write_buffer_size",
        "is_closing",
        "pause_reading",
        "resume_reading",
    )

    def __init__(self, raw: asyncio.Transport, records: Records) -> None:
        self._raw = raw
        self._records = records
        self.abort = raw.abort
        self.get_write_buffer_size = raw.get_write_buffer_size
        self.is_closing = raw.is_closing
        self.pause_reading = raw.pause_reading
        self.resume_reading = raw.resume_reading

    def write(self, data: bytes) -> None:
        try:
            self._raw.write(self._records.seal(data))
        except ssl.SSLError:
            self._raw.abort()


class _Secure(AsyncSocket):
    """What the two classes below have in common."""

    # No slots: they inherit from this one beside one that has slots.
    _raw: asyncio.Transport | None = None
    _shaken: asyncio.Future[None] | None = None

    async def _open(self, authority: str) -> None:
        self._session = session = begin(self.way, self.endpoint, authority, self.state.count_tls)
        self._shaken = shaken = self.loop.create_future()
        await super()._open(authority)
        await shaken
        self.pool.opened(self, session.not_after)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        assert self._session is not None
        self._raw = transport
        self.transport = _Sealed(transport, self._session.records)
        self._shake(b"")

    def _shake(self, data: bytes) -> bool:
        """Go on with the handshake. True when it is over."""
        session, raw, shaken = self._session, self._raw, self._shaken
        assert session is not None
        assert raw is not None
        try:
            over = session.shake(data)
        except TransportFailure as failure:
            raw.write(session.take())
            self._shaking_failed(failure)
            raw.abort()  # nothing that this peer says is read any more
            return False
        if not over:
            raw.write(session.take())
        elif shaken is not None:  # what is left to say (TLS 1.3) goes out together with the request
            self._shaken = None
            if not shaken.done():
                shaken.set_result(None)
        return over

    def _shaking_failed(self, failure: TransportFailure) -> None:
        shaken, self._shaken = self._shaken, None
        if self.failure is None:
            self.failure = failure
        if shaken is not None and not shaken.done():
            shaken.set_exception(failure)

    def data_received(self, data: bytes) -> None:
        session, raw = self._session, self._raw
        assert session is not None
        assert raw is not None
        shaking = self._shaken is not None
        if shaking:
            if not self._shake(data):
                return
            data = b""  # something may have come together with the end of the handshake
        records = session.records
        plain = records.open(data)
        if plain:
            super().data_received(plain)
        if records.outgoing.pending and not shaking:
            raw.write(records.take())
        if records.over:
            raw.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if self._shaken is not None:
            self._shaking_failed(cut_short(error if isinstance(error, OSError) else None))
        elif error is None and self._session is not None and not self._session.records.ended:
            error = ConnectionResetError("the connection ended without a TLS close_notify")
        super().connection_lost(error)

    def disconnect(self) -> None:
        raw, session = self._raw, self._session
        if (
            self.opened
            and raw is not None
            and session is not None
            and not self.loop.is_closed()
            and not raw.is_closing()
            and not raw.get_write_buffer_size()
        ):
            raw.write(session.farewell())
        super().disconnect()

    @property
    def trusted(self) -> bool:
        return self._session is None or self._session.trusted

    def superseded(self) -> tuple[int, float] | None:
        session = self._session
        return None if session is None else session.superseded()

    def settle(self) -> None:
        assert self._session is not None
        if self._raw is not None and self._session.records.outgoing.pending:
            self._raw.write(self._session.take())

    @property
    def expired(self) -> bool:
        return self.expires <= self.pool.monotonic()


class SecureConnection(_Secure, AsyncConnection):
    """HTTP/1.1."""

    def healthy(self) -> bool:
        return not self.expired and super().healthy()

    def give_back(self) -> None:
        """As in plaintext, unless trust or the configuration has changed in the meantime, or its time is over."""
        if self.way is self.endpoint.way and not self.expired:
            super().give_back()
        else:
            self.close()


class SecureH2Connection(_Secure, AsyncH2Connection):
    """HTTP/2."""

    @property
    def credit(self) -> int:
        return 0 if self.expired else super().credit
