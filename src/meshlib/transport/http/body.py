"""Streamed request bodies, and what is kept of them for another attempt.

A body that is bytes can be sent as often as needed. A streamed one is kept while it is sent, up to the listener's
`per_connection_buffer_limit_bytes`; a later attempt sends what was kept and then goes on with the source. Beyond the limit
everything that was kept is dropped, and with it the possibility of another attempt (Envoy does the same).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Protocol

from meshlib.transport.http.failure import BodyLengthError

__all__ = ["AsyncUpload", "BodyStream", "ReplayBuffer", "SyncReader", "SyncUpload"]


class ReplayBuffer:
    """What has been read from the application's body, for as long as it may be sent again.

    length: the declared Content-Length, None when the body is chunked. limit: bytes that may be kept, set before the first
    piece is read. exhausted: the application has given all of it.
    """

    __slots__ = ("chunks", "exhausted", "length", "limit", "replayable", "size")

    def __init__(self, length: int | None) -> None:
        self.chunks: list[bytes] = []
        self.length = length
        self.limit = 0
        self.size = 0
        self.replayable = True
        self.exhausted = False

    def add(self, chunk: bytes) -> None:
        """Count, check and keep one piece. Raises BodyLengthError when it exceeds the declared length."""
        self.size += len(chunk)
        if self.length is not None and self.size > self.length:
            raise BodyLengthError("Too much data for declared Content-Length")
        if self.replayable:
            if self.size > self.limit:
                self.replayable = False
                self.chunks.clear()
            else:
                self.chunks.append(chunk)

    def finish(self) -> None:
        """The source has ended. Raises BodyLengthError when something is missing."""
        if self.length is not None and self.size < self.length:
            raise BodyLengthError("Too little data for declared Content-Length")
        self.exhausted = True


class SyncUpload:
    """Gives the pieces of a body to each attempt, through a reader of its own: several may be under way."""

    __slots__ = ("_source", "buffer")

    def __init__(self, source: Iterable[bytes], length: int | None) -> None:
        self._source: Iterator[bytes] = iter(source)
        self.buffer = ReplayBuffer(length)

    def reader(self) -> SyncReader:
        """The body from its beginning. What is not kept is read from the application by one reader at a time."""
        return SyncReader(self)

    def pull(self) -> bytes | None:
        """The application's next piece, never empty; None at the end."""
        buffer = self.buffer
        while not buffer.exhausted:
            chunk = next(self._source, None)
            if chunk is None:
                buffer.finish()
            elif chunk:
                buffer.add(chunk)
                return chunk
        return None


class SyncReader:
    """Where one attempt is in the body."""

    __slots__ = ("_index", "_upload")

    def __init__(self, upload: SyncUpload) -> None:
        self._upload = upload
        self._index = 0

    def next(self) -> bytes | None:
        """The next piece, never empty; None at the end. Raises what the application's iterator raises, or BodyLengthError."""
        buffer = self._upload.buffer
        if buffer.replayable and self._index < len(buffer.chunks):
            piece: bytes | None = buffer.chunks[self._index]
        else:
            piece = self._upload.pull()
        self._index += 1
        return piece


class BodyStream(Protocol):
    """Where an asyncio attempt takes the pieces of its request body."""

    async def send_body(self, data: bytes) -> None:
        """Write one piece and wait until there is room for more. Returns at once when the stream has ended."""

    async def end_body(self) -> None:
        """Write the end of the body."""


class AsyncUpload:
    """Reads the application's body in a task of its own and writes it to whichever attempt is current.

    The task outlives an attempt: cancelling it while the application's iterator waits would end that iterator for good. Once
    the application has given everything, each further attempt gets what was kept from a task of its own, so that several may
    be under way. changed: called when the body is exhausted or broke. error: what the application's iterator raised. steps:
    pieces written so far, to see progress by.
    """

    __slots__ = (
        "_changed",
        "_copies",
        "_index",
        "_source",
        "_stream",
        "_task",
        "_wake",
        "buffer",
        "error",
        "steps",
    )

    def __init__(self, source: AsyncIterable[bytes], length: int | None, changed: Callable[[], None]) -> None:
        self._source: AsyncIterator[bytes] = aiter(source)
        self._changed = changed
        self._index = 0
        self._stream: BodyStream | None = None
        self._task: asyncio.Task[None] | None = None
        self._copies: dict[BodyStream, asyncio.Task[None]] = {}
        self._wake: asyncio.Future[None] | None = None
        self.buffer = ReplayBuffer(length)
        self.error: BaseException | None = None
        self.steps = 0

    def attach(self, stream: BodyStream) -> None:
        """Send the body to this stream, from its beginning."""
        if self.buffer.exhausted:
            self._copies[stream] = asyncio.get_running_loop().create_task(self._copy(stream))
            return
        self._index = 0
        self._stream = stream
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def detach(self, stream: BodyStream | None) -> None:
        """The attempt with this stream is over; what follows waits for the next one."""
        if stream is None:
            return
        if stream is self._stream:
            self._stream = None
        copy = self._copies.pop(stream, None)
        if copy is not None:
            copy.cancel()

    def cancel(self) -> None:
        """The call is over: stop reading and writing."""
        task, self._task, self._stream = self._task, None, None
        if task is not None:
            task.cancel()
        while self._copies:
            self._copies.popitem()[1].cancel()

    async def _copy(self, stream: BodyStream) -> None:
        """Send what was kept, which is all of it."""
        try:
            for chunk in self.buffer.chunks:
                if chunk:
                    await stream.send_body(chunk)
                    self.steps += 1
            await stream.end_body()
        except Exception as error:  # noqa: BLE001 - as in _run
            self.error = error
            self._changed()

    async def _run(self) -> None:
        try:
            while True:
                stream = self._stream
                if stream is None:
                    self._wake = asyncio.get_running_loop().create_future()
                    await self._wake
                    continue
                await self._step(stream)
        except Exception as error:  # noqa: BLE001 - the application's iterator may raise anything; the call raises it again
            self.error = error
            self._changed()

    async def _step(self, stream: BodyStream) -> None:
        buffer = self.buffer
        if buffer.replayable and self._index < len(buffer.chunks):
            data: bytes | None = buffer.chunks[self._index]
        elif buffer.exhausted:
            data = None
        else:
            data = await anext(self._source, None)
            if data is None:
                buffer.finish()
                self._changed()
            else:
                buffer.add(data)
            if self._stream is not stream:
                return
        if data is None:
            self._stream = None
            await stream.end_body()
        else:
            self._index += 1
            if data:
                await stream.send_body(data)
        self.steps += 1
