"""A gRPC server without gRPC: over bare HTTP/2, so that a case decides which headers, messages and trailers go out, and when."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import h2.errors
import h2.events
import h2.exceptions

from conformance.upstream.http2 import Http2Connection
from conformance.upstream.record import REQUEST_ID, Hit

if TYPE_CHECKING:
    from conformance.upstream.grpc_script import GrpcAnswer
    from conformance.upstream.script import Behaviour

BREATH = 0.1
"""Seconds that let the other side read what was sent, before what breaks it off."""

_PREFIX = 5
"""Bytes before each message: a flag and four of length."""


class _Call:
    """One stream: what has come of it so far."""

    def __init__(self, hit: Hit) -> None:
        self.hit = hit
        self.messages: list[bytes] = []
        self.ended = False
        self.moved = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._buffer = b""

    def receive(self, data: bytes) -> None:
        """Take bytes of the request."""
        self._buffer += data
        while len(self._buffer) >= _PREFIX:
            end = _PREFIX + int.from_bytes(self._buffer[1:_PREFIX], "big")
            if len(self._buffer) < end:
                return
            self.messages.append(self._buffer[_PREFIX:end])
            self._buffer = self._buffer[end:]
            self.moved.set()

    async def until(self, count: int | None) -> None:
        """Wait for the ``count``-th message, or for the end of the request."""
        while not self.ended and (count is None or len(self.messages) < count):
            self.moved.clear()
            await self.moved.wait()


class GrpcConnection(Http2Connection):
    """One connection. An answer may begin before the request is over."""

    _calls: dict[int, _Call]

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._calls = {}

    async def run(self) -> None:
        """Serve until the connection ends, or a script has ended it."""
        with contextlib.suppress(h2.exceptions.ProtocolError):
            await super().run()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._begin(event.stream_id, [(str(k), str(v)) for k, v in event.headers])
        elif isinstance(event, h2.events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if event.stream_id in self._calls:
                self._calls[event.stream_id].receive(event.data)
        elif isinstance(event, h2.events.WindowUpdated):
            self._credit.set()
        elif isinstance(event, h2.events.StreamEnded) and event.stream_id in self._calls:
            self._calls[event.stream_id].ended = True
            self._calls[event.stream_id].moved.set()
        elif isinstance(event, h2.events.StreamReset):
            self._cancelled(event.stream_id)

    def _begin(self, stream_id: int, fields: list[tuple[str, str]]) -> None:
        pseudo = {key: value for key, value in fields if key.startswith(":")}
        headers = [pair for pair in fields if not pair[0].startswith(":")]
        hit = Hit(
            upstream=self._upstream.name,
            request=dict(headers).get(REQUEST_ID, ""),
            method=pseudo[":method"],
            target=pseudo[":path"],
            version="HTTP/2",
            headers=(("host", pseudo.get(":authority", "")), *headers),
            body=b"",
        )
        behaviour = self._record.add(self._upstream, hit)
        call = self._calls[stream_id] = _Call(hit)
        call.task = asyncio.ensure_future(self._serve(stream_id, call, behaviour))
        self._tasks.add(call.task)
        call.task.add_done_callback(self._ended)
        self._record.running += 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._record.running -= 1

    def _cancelled(self, stream_id: int) -> None:
        call = self._calls.pop(stream_id, None)
        if call is not None and call.task is not None and not call.task.done():
            call.task.cancel()
            self._note(call, cancelled=True)

    def _note(self, call: _Call, *, cancelled: bool = False) -> None:
        """Keep what came of the request in the record."""
        changed = replace(call.hit, body=b"\n".join(call.messages), cancelled=cancelled)
        self._record.amend(call.hit, changed)
        call.hit = changed

    async def _serve(self, stream_id: int, call: _Call, behaviour: Behaviour) -> None:
        answer = behaviour.grpc
        assert answer is not None
        if answer.echo and answer.wait is None:
            await call.until(1)
        else:
            await call.until(answer.wait)
        self._note(call)
        if behaviour.delay:
            await asyncio.sleep(behaviour.delay)
        try:
            over = await self._play(stream_id, call, answer, behaviour.status)
            if over and not call.ended:
                # A gRPC server that is done before the caller says so with a reset after its trailers.
                self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.NO_ERROR)
            await self._flush()
        except (h2.exceptions.ProtocolError, ConnectionError):
            return
        if over:
            self._note(call)
            self._calls.pop(stream_id, None)

    async def _play(self, stream_id: int, call: _Call, answer: GrpcAnswer, status: int) -> bool:
        """Answer. Returns whether the stream is over by our trailers."""
        if answer.moment == "start" and await self._act(stream_id, answer):
            return False
        head = [(":status", str(status)), ("content-type", answer.content_type), *answer.initial]
        if answer.trailers_only:
            self._h2.send_headers(stream_id, [*head, *_trailers(answer)], end_stream=True)
            return True
        self._h2.send_headers(stream_id, head)
        await self._flush()
        if answer.moment == "headers" and await self._act(stream_id, answer):
            return False
        await self._messages(stream_id, call, answer)
        if answer.moment == "messages" and await self._act(stream_id, answer):
            return False
        await self._flush()
        if answer.linger:
            await asyncio.sleep(answer.linger)
        trailers = _trailers(answer)
        if trailers:
            self._h2.send_headers(stream_id, trailers, end_stream=True)
        else:
            self._h2.end_stream(stream_id)
        return True

    async def _messages(self, stream_id: int, call: _Call, answer: GrpcAnswer) -> None:
        if answer.echo:
            sent = 0
            while True:
                await call.until(sent + 1)
                if len(call.messages) == sent:
                    break
                await self._send(stream_id, _framed(call.messages[sent]), end=False)
                await self._flush()
                sent += 1
        for message in answer.messages:
            if answer.gap:
                await asyncio.sleep(answer.gap)
            await self._send(stream_id, _framed(message), end=False)
            await self._flush()

    async def _act(self, stream_id: int, answer: GrpcAnswer) -> bool:
        """Do what ends the stream other than by an answer. Returns whether there was anything to do."""
        if answer.action == "respond":
            return False
        await self._flush()
        if answer.moment != "start":
            await asyncio.sleep(BREATH)
        if answer.action == "rst":
            self._h2.reset_stream(stream_id, h2.errors.ErrorCodes[answer.reset])
            await self._flush()
        elif answer.action == "fin":
            self._writer.close()
        elif answer.action == "goaway":
            self._h2.close_connection(last_stream_id=0)
            await self._flush()
            await asyncio.sleep(BREATH)
            self._writer.close()
        elif answer.action == "garbage":
            self._writer.write(b"\xff" * 64)  # the head of a frame that is far too large
            await self._writer.drain()
        elif answer.action == "hang":
            await asyncio.Event().wait()
        return True


def _framed(message: bytes) -> bytes:
    return b"\x00" + len(message).to_bytes(4, "big") + message


def _trailers(answer: GrpcAnswer) -> list[tuple[str, str]]:
    found = []
    if answer.code is not None:
        found.append(("grpc-status", str(answer.code)))
    if answer.message:
        found.append(("grpc-message", answer.message))
    return [*found, *answer.trailing]
