"""An HTTP/2 server (prior knowledge, no TLS) for clusters that ask for HTTP/2 upstream."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.errors
import h2.events

from conformance.upstream.http1 import response_body
from conformance.upstream.record import REQUEST_ID, Hit, Record

if TYPE_CHECKING:
    from conformance.upstream.script import Behaviour, Upstream


class _Stream:
    def __init__(self, headers: list[tuple[str, str]]) -> None:
        self.headers = headers
        self.body = bytearray()


class Http2Connection:
    """One connection: streams are collected whole, then answered as the script says."""

    def __init__(
        self, upstream: Upstream, record: Record, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._upstream = upstream
        self._record = record
        self._reader = reader
        self._writer = writer
        self._h2 = h2.connection.H2Connection(
            config=h2.config.H2Configuration(
                client_side=False,
                header_encoding="utf-8",
                validate_inbound_headers=False,  # whatever the other side sends is recorded
            )
        )
        self._streams: dict[int, _Stream] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._credit = asyncio.Event()

    async def run(self) -> None:
        """Serve until the connection ends."""
        self._h2.initiate_connection()
        try:
            await self._flush()
            while data := await self._reader.read(65536):
                for event in self._h2.receive_data(data):
                    self._handle(event)
                await self._flush()
        except ConnectionError:
            return
        finally:
            for task in tuple(self._tasks):
                task.cancel()
            self._writer.close()

    def _handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._streams[event.stream_id] = _Stream([(str(k), str(v)) for k, v in event.headers])
        elif isinstance(event, h2.events.DataReceived):
            self._streams[event.stream_id].body += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.WindowUpdated):
            self._credit.set()
        elif isinstance(event, h2.events.StreamEnded):
            task = asyncio.ensure_future(self._answer(event.stream_id, self._streams.pop(event.stream_id)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _answer(self, stream_id: int, stream: _Stream) -> None:
        pseudo = {key: value for key, value in stream.headers if key.startswith(":")}
        headers = [pair for pair in stream.headers if not pair[0].startswith(":")]
        hit = Hit(
            upstream=self._upstream.name,
            request=dict(headers).get(REQUEST_ID, ""),
            method=pseudo[":method"],
            target=pseudo[":path"],
            version="HTTP/2",
            headers=(("host", pseudo.get(":authority", "")), *headers),
            body=bytes(stream.body),
        )
        behaviour = self._record.add(self._upstream, hit)
        if behaviour.delay:
            await asyncio.sleep(behaviour.delay)
        if behaviour.action == "hang":
            return
        if behaviour.action == "fin":
            self._writer.close()
            return
        if behaviour.action == "rst":
            self._h2.reset_stream(stream_id, h2.errors.ErrorCodes.INTERNAL_ERROR)
        else:
            await self._respond(stream_id, behaviour, hit)
        await self._flush()

    async def _respond(self, stream_id: int, behaviour: Behaviour, hit: Hit) -> None:
        body = response_body(self._upstream.name, behaviour, hit)
        headers = [(":status", str(behaviour.status)), *behaviour.headers, ("content-length", str(len(body)))]
        empty = hit.method == "HEAD" or not body
        self._h2.send_headers(stream_id, headers, end_stream=empty)
        if not empty:
            await self._send(stream_id, body, end=True)

    async def _send(self, stream_id: int, body: bytes, *, end: bool) -> None:
        """Send ``body`` as the other side gives credit for it."""
        while body:
            room = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if not room:
                self._credit.clear()
                await self._flush()
                await self._credit.wait()
                continue
            piece, body = body[:room], body[room:]
            self._h2.send_data(stream_id, piece, end_stream=end and not body)

    async def _flush(self) -> None:
        self._writer.write(self._h2.data_to_send())
        await self._writer.drain()
