"""What passes between an ASGI server and its application, for whoever wants to know how a request ended.

A response is over when its last part has been sent, though the application may go on in the background. A WebSocket is over when
one of the two closes it, or the application returns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from meshlib.engine.headers import REQUEST_ID
from meshlib.engine.observer import InboundCall
from meshlib.server.visit import Visit

__all__ = ["App", "Receive", "Scope", "Send", "Watch"]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_REQUEST_ID = REQUEST_ID.encode()
_STARTS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))
_Handler = Callable[["Watch", InboundCall, Message], None]


class Watch:
    """`receive` and `send` stand in for the server's. scope: the one that the application has, in which it leaves its route."""

    def __init__(self, visit: Visit, scope: Scope, receive: Receive, send: Send) -> None:
        self._visit = visit
        self._echoed = visit.echoed
        self._record = visit.record or _unread()
        self._scope = scope
        self._root = str(scope.get("root_path", ""))
        self._receive = receive
        self._send = send
        self._trailers = False
        self._gone = False
        self._complete = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._see(_RECEIVED, message)
        return message

    async def send(self, message: Message) -> None:
        if self._echoed is not None and message["type"] in _STARTS:
            kept = [pair for pair in message.get("headers", ()) if bytes(pair[0]).lower() != _REQUEST_ID]
            message = {
                **message,
                "headers": [*kept, (_REQUEST_ID, self._echoed.encode("latin-1", "replace"))],
            }
        await self._send(message)
        self._see(_SENT, message)
        if self._complete:
            self._over()

    def failed(self, error: BaseException) -> None:
        """The application raised this."""
        self._tell_route()
        if isinstance(error, asyncio.CancelledError) or self._gone:
            self._visit.lost()
        else:
            self._visit.failed(error)

    def returned(self) -> None:
        """The application has returned; where the response is not complete then, somebody gave up."""
        self._tell_route()
        if self._gone:
            self._visit.lost()
        else:
            self._visit.over(answered=self._complete)

    def _over(self) -> None:
        self._tell_route()
        self._visit.over()

    def _see(self, handlers: Mapping[str, _Handler], message: Message) -> None:
        handler = handlers.get(message["type"])
        if handler is not None:
            handler(self, self._record, message)

    def _tell_route(self) -> None:
        """What the framework has made of the request."""
        record = self._record
        if not record.operation:
            route = self._scope.get("route")
            path = getattr(route, "path_format", None) or getattr(route, "path", None)
            if isinstance(path, str):
                record.operation = self._mounted_at() + path

    def _mounted_at(self) -> str:
        """Where the application has mounted the part that the route is in, with the names of its parameters."""
        here = str(self._scope.get("root_path", ""))
        below = here[len(self._root) :] if here.startswith(self._root) else ""
        names = {str(value): f"{{{name}}}" for name, value in self._scope.get("path_params", {}).items()}
        return "/".join(names.get(part, part) for part in below.split("/"))

    # --- messages ----------------------------------------------------------------------------------------------------

    def _request_body(self, record: InboundCall, message: Message) -> None:
        record.bytes_received += len(message.get("body", b""))

    def _disconnected(self, record: InboundCall, message: Message) -> None:
        self._gone = not self._complete

    def _start(self, record: InboundCall, message: Message) -> None:
        record.status = message["status"]
        record.response_headers = headers = _texts(message.get("headers", ()))
        record.grpc_status = next((value for name, value in headers if name == "grpc-status"), None)
        self._trailers = bool(message.get("trailers"))

    def _body(self, record: InboundCall, message: Message) -> None:
        record.bytes_sent += len(message.get("body", b""))
        self._complete = not message.get("more_body") and not self._trailers

    def _file(self, record: InboundCall, message: Message) -> None:
        """Extensions `http.response.pathsend` and `zerocopysend`: the server sends a file by itself."""
        lengths = [value for name, value in record.response_headers if name == "content-length"]
        record.bytes_sent += int(lengths[0]) if lengths and lengths[0].isdecimal() else 0
        self._complete = not message.get("more_body") and not self._trailers

    def _trailing(self, record: InboundCall, message: Message) -> None:
        record.response_trailers = (*record.response_trailers, *_texts(message.get("headers", ())))
        record.grpc_status = dict(record.response_trailers).get("grpc-status", record.grpc_status)
        self._complete = not message.get("more_trailers")

    def _accepted(self, record: InboundCall, message: Message) -> None:
        record.status = 101
        record.response_headers = _texts(message.get("headers", ()))

    def _closed(self, record: InboundCall, message: Message) -> None:
        record.status = record.status or 403
        self._complete = True

    def _left(self, record: InboundCall, message: Message) -> None:
        """The other end has closed a WebSocket; one that just went away did not say so (RFC 6455, 7.4.1: 1006)."""
        self._gone = message.get("code", 1005) == 1006
        self._complete = not self._gone

    def _frame_sent(self, record: InboundCall, message: Message) -> None:
        record.bytes_sent += _size(message)

    def _frame_received(self, record: InboundCall, message: Message) -> None:
        record.bytes_received += _size(message)


_RECEIVED: dict[str, _Handler] = {
    "http.request": Watch._request_body,
    "http.disconnect": Watch._disconnected,
    "websocket.receive": Watch._frame_received,
    "websocket.disconnect": Watch._left,
}

_SENT: dict[str, _Handler] = {
    "http.response.start": Watch._start,
    "http.response.body": Watch._body,
    "http.response.pathsend": Watch._file,
    "http.response.zerocopysend": Watch._file,
    "http.response.trailers": Watch._trailing,
    "websocket.accept": Watch._accepted,
    "websocket.close": Watch._closed,
    "websocket.send": Watch._frame_sent,
    "websocket.http.response.start": Watch._start,
    "websocket.http.response.body": Watch._body,
}


def _unread() -> InboundCall:
    """Where nobody wants a record, only when it is over."""
    return InboundCall(
        method="",
        scheme="",
        authority="",
        path="",
        headers=(),
        protocol="",
        remote="",
        started=0.0,
        epoch=0.0,
    )


def _texts(pairs: Any) -> list[tuple[str, str]]:
    return [(bytes(name).decode("latin-1").lower(), bytes(value).decode("latin-1")) for name, value in pairs]


def _size(message: Message) -> int:
    data = message.get("bytes")
    return len(data) if data is not None else len((message.get("text") or "").encode())
