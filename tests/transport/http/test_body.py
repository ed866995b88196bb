"""Streamed request bodies: what is kept, what is sent again, what is checked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.transport.http.body import AsyncUpload, SyncReader, SyncUpload
from meshlib.transport.http.failure import BodyLengthError
from meshlib.transport.http.sync_connection import BodySlices

PIECES = st.lists(st.binary(max_size=6), max_size=8)


def drain(reader: SyncReader, count: int | None = None) -> list[bytes]:
    pieces: list[bytes] = []
    while count is None or len(pieces) < count:
        piece = reader.next()
        if piece is None:
            break
        pieces.append(piece)
    return pieces


@given(pieces=PIECES, attempts=st.lists(st.integers(0, 8), max_size=4), limit=st.integers(0, 40))
def test_an_attempt_gets_the_whole_body_or_the_body_is_not_replayable(
    pieces: list[bytes], attempts: list[int], limit: int
) -> None:
    upload = SyncUpload(pieces, None)
    upload.buffer.limit = limit
    for taken in attempts:
        drain(upload.reader(), taken)
        if not upload.buffer.replayable:
            assert sum(map(len, pieces)) > limit
            return
    assert b"".join(drain(upload.reader())) == b"".join(pieces)
    assert upload.buffer.exhausted


def test_beyond_the_limit_nothing_is_kept() -> None:
    upload = SyncUpload([b"abc", b"defg", b"h"], None)
    upload.buffer.limit = 5
    reader = upload.reader()
    assert drain(reader, 2) == [b"abc", b"defg"]
    assert not upload.buffer.replayable
    assert upload.buffer.chunks == []
    assert drain(reader) == [b"h"]


@given(pieces=PIECES, order=st.lists(st.integers(0, 2), max_size=40))
def test_readers_do_not_disturb_each_other(pieces: list[bytes], order: list[int]) -> None:
    upload = SyncUpload(pieces, None)
    upload.buffer.limit = 100
    readers = [upload.reader() for _ in range(3)]
    got: list[list[bytes]] = [[], [], []]
    for number in order:
        got[number] += drain(readers[number], 1)
    for number, reader in enumerate(readers):
        assert b"".join(got[number] + drain(reader)) == b"".join(pieces)


@pytest.mark.parametrize(("length", "message"), [(2, "Too much"), (4, "Too little")])
def test_the_declared_length_is_checked(length: int, message: str) -> None:
    upload = SyncUpload([b"a", b"bc"], length)
    upload.buffer.limit = 100
    with pytest.raises(BodyLengthError, match=message):
        drain(upload.reader())


def test_slices_of_a_large_body() -> None:
    body = bytes(range(256)) * 4000
    slices = BodySlices(body)
    pieces = []
    while (piece := slices.next()) is not None:
        pieces.append(piece)
    assert b"".join(pieces) == body
    assert len(pieces) > 1


class Sink:
    """An attempt that takes the body; after `stop_after` pieces it is cancelled."""

    def __init__(self, upload: AsyncUpload, stop_after: int | None = None) -> None:
        self.upload = upload
        self.stop_after = stop_after
        self.pieces: list[bytes] = []
        self.over = asyncio.get_running_loop().create_future()

    async def send_body(self, data: bytes) -> None:
        self.pieces.append(data)
        await asyncio.sleep(0)
        if len(self.pieces) == self.stop_after:
            self.upload.detach(self)
            self.over.set_result("cancelled")

    async def end_body(self) -> None:
        self.over.set_result("complete")


def test_attempts_follow_each_other_in_asyncio() -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[bytes]:
            for piece in (b"a", b"b", b"c", b"d"):
                await asyncio.sleep(0)
                yield piece

        changes: list[None] = []
        upload = AsyncUpload(source(), 4, lambda: changes.append(None))
        upload.buffer.limit = 100
        for stop_after in (1, 3):
            sink = Sink(upload, stop_after)
            upload.attach(sink)
            assert await sink.over == "cancelled"
        last = Sink(upload)
        upload.attach(last)
        assert await last.over == "complete"
        assert last.pieces == [b"a", b"b", b"c", b"d"]
        assert upload.buffer.exhausted
        assert len(changes) == 1
        again = Sink(upload)
        upload.attach(again)
        assert await again.over == "complete"
        assert again.pieces == last.pieces
        upload.cancel()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_attempts_beside_each_other_in_asyncio() -> None:
    """Once the source has ended, an attempt that is slow, or goes away, holds up no other one."""

    async def main() -> None:
        async def source() -> AsyncIterator[bytes]:
            for piece in (b"a", b"b", b"c"):
                yield piece

        exhausted = asyncio.Event()
        upload = AsyncUpload(source(), None, exhausted.set)
        upload.buffer.limit = 100
        first = Sink(upload)
        upload.attach(first)
        await exhausted.wait()
        cancelled, second, third = Sink(upload, 1), Sink(upload), Sink(upload)
        for sink in (cancelled, second, third):
            upload.attach(sink)
        assert await first.over == "complete"
        assert await cancelled.over == "cancelled"
        upload.detach(first)
        for sink in (second, third):
            assert await sink.over == "complete"
            assert sink.pieces == [b"a", b"b", b"c"]
        assert len(cancelled.pieces) < 3
        assert upload.error is None
        upload.cancel()
        await asyncio.sleep(0)

    asyncio.run(main())


def test_an_error_of_the_source_is_kept_for_the_call() -> None:
    async def main() -> None:
        async def source() -> AsyncIterator[bytes]:
            yield b"a"
            raise LookupError

        told = asyncio.Event()
        upload = AsyncUpload(source(), None, told.set)
        upload.attach(Sink(upload))
        await told.wait()
        assert isinstance(upload.error, LookupError)

    asyncio.run(main())
