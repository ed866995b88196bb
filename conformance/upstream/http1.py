"""An HTTP/1.1 server over bare asyncio streams that can break off wherever a case wants it to."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from http import HTTPStatus
from typing import TYPE_CHECKING

from conformance.upstream.record import REQUEST_ID, Hit, Record

if TYPE_CHECKING:
    from conformance.upstream.script import Behaviour, Upstream

_BODILESS = frozenset({204, 304})


async def serve_connection(
    upstream: Upstream, record: Record, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer requests on one connection until it ends, by either side or by script."""
    try:
        if upstream.kind == "close":
            return
        if upstream.kind == "silent":
            await reader.read()
            return
        while (hit := await _read_request(upstream.name, reader)) is not None:
            behaviour = record.add(upstream, hit)
            if not await _answer(upstream.name, behaviour, hit, reader, writer):
                return
    except (ConnectionError, asyncio.IncompleteReadError):
        return
    finally:
        writer.close()


async def _read_request(name: str, reader: asyncio.StreamReader) -> Hit | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, version = first.split(" ")
    headers = []
    for line in lines:
        key, _, value = line.partition(":")
        headers.append((key.lower(), value.strip()))
    fields = dict(headers)
    if "chunked" in fields.get("transfer-encoding", ""):
        body = await _read_chunked(reader)
    else:
        body = await reader.readexactly(int(fields.get("content-length", "0")))
    return Hit(
        upstream=name,
        request=fields.get(REQUEST_ID, ""),
        method=method,
        target=target,
        version=version,
        headers=tuple(headers),
        body=body,
    )


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass
    return b"".join(parts)


def response_body(name: str, behaviour: Behaviour, hit: Hit) -> bytes:
    """The body that ``behaviour`` asks for."""
    if behaviour.echo:
        seen = {
            "upstream": name,
            "method": hit.method,
            "target": hit.target,
            "body": hit.body.decode("latin-1"),
        }
        return json.dumps(seen, sort_keys=True).encode()
    if behaviour.size:
        return b"x" * behaviour.size
    return (name if behaviour.body is None else behaviour.body).encode()


async def _answer(
    name: str, behaviour: Behaviour, hit: Hit, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> bool:
    """Play ``behaviour``. Returns whether the connection can take another request."""
    if behaviour.delay:
        await asyncio.sleep(behaviour.delay)
    if behaviour.action == "fin":
        return False
    if behaviour.action == "rst":
        _reset(writer)
        return False
    if behaviour.action == "hang":
        await reader.read()
        return False
    if behaviour.action == "garbage":
        writer.write(b"\x00\x01 this is not HTTP\r\n\r\n")
        await writer.drain()
        await reader.read()
        return False
    body = response_body(name, behaviour, hit)
    bodiless = behaviour.status in _BODILESS or behaviour.status < 200
    writer.write(_head(behaviour, len(body), bodiless))
    if not bodiless and hit.method != "HEAD":
        await _write_body(behaviour, body, writer)
        if behaviour.cut_after is not None:
            if behaviour.cut == "rst":
                _reset(writer)
            return False
    await writer.drain()
    return not (behaviour.close or behaviour.hangup)


def _head(behaviour: Behaviour, length: int, bodiless: bool) -> bytes:
    try:
        reason = HTTPStatus(behaviour.status).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {behaviour.status} {reason}"]
    lines += [f"{name}: {value}" for name, value in behaviour.headers]
    lines += [f"x-many-{number}: {'v' * behaviour.header_size}" for number in range(behaviour.many_headers)]
    if behaviour.chunked:
        lines.append("transfer-encoding: chunked")
    elif not bodiless:
        lines.append(f"content-length: {length}")
    if behaviour.close:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _write_body(behaviour: Behaviour, body: bytes, writer: asyncio.StreamWriter) -> None:
    if behaviour.cut_after is not None:
        body = body[: behaviour.cut_after]
    pieces = [body[i : i + 1] for i in range(len(body))] if behaviour.drip else [body]
    for piece in pieces:
        if behaviour.drip:
            await asyncio.sleep(behaviour.drip)
        if piece:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if behaviour.chunked else piece)
            await writer.drain()
    if behaviour.cut_after is not None:
        # Lets the other side read what was sent before a reset overtakes it.
        await asyncio.sleep(0.05)
    elif behaviour.chunked:
        writer.write(b"0\r\n\r\n")


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    sock: socket.socket = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
