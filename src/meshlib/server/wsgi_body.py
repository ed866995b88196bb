"""The response of a WSGI application: it is made in the context of its request, and somebody wants to know when it is over.

It is over when there is nothing left to iterate over, or when the server closes it earlier, since its caller has gone. A list and
a file (`wsgi.file_wrapper`) go to the server as they are, which looks at their type: a list is over at once, a file when it is
closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from typing import Any

from meshlib.engine.headers import REQUEST_ID
from meshlib.server.visit import Visit, content_length

__all__ = ["Place", "Watch", "body_of"]

_END: Any = object()


class Place:
    """The context (contextvars) of a request: one of its own, or, context None, the thread's, restored after each step."""

    def __init__(self, visit: Visit, context: Context | None) -> None:
        self._visit = visit
        self._context = context
        self._tokens = visit.enter()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A step of the response, after the application has returned."""
        if self._context is not None:
            return self._context.run(function, *arguments)
        tokens = self._visit.enter()
        try:
            return function(*arguments)
        finally:
            self._visit.leave(tokens)

    def leave(self) -> None:
        """The application has returned."""
        if self._context is None:
            self._visit.leave(self._tokens)


class Watch:
    """What is learnt of one response. start_response: the server's."""

    def __init__(self, visit: Visit, environ: dict[str, Any], start_response: Callable[..., Any]) -> None:
        self._visit = visit
        self._environ = environ
        self._start_response = start_response
        if visit.record is not None:
            visit.record.bytes_received = content_length(visit.record.headers)

    def start_response(self, status: str, headers: list[tuple[str, str]], *error: Any) -> Any:
        record, echoed = self._visit.record, self._visit.echoed
        if echoed is not None:
            headers = [*(pair for pair in headers if pair[0].lower() != REQUEST_ID), (REQUEST_ID, echoed)]
        if record is not None:
            record.status = int(status[:3])
            record.response_headers = [(name.lower(), value) for name, value in headers]
            rule = getattr(self._environ.get("werkzeug.request"), "url_rule", None)
            record.operation = getattr(rule, "rule", "")  # Flask's, gone when it has answered
        write = self._start_response(status, headers, *error)

        def counted(data: bytes) -> Any:
            self.sent(len(data))
            return write(data)

        return counted

    def sent(self, size: int) -> None:
        record = self._visit.record
        if record is not None:
            record.bytes_sent += size

    def failed(self, error: BaseException) -> None:
        self._visit.failed(error)

    def over(self) -> None:
        """Everything has been sent."""
        self._visit.over()

    def closed(self) -> None:
        """By the server, before everything was sent, if not all that was promised is there."""
        record = self._visit.record
        if record is None or record.method == "HEAD":
            self._visit.over()
            return
        promised = content_length(record.response_headers)
        if promised and record.bytes_sent >= promised:
            self._visit.over()
        else:
            self._visit.lost()

    def file(self) -> None:
        """The server has sent a file by itself."""
        record = self._visit.record
        if record is not None and not record.bytes_sent:
            record.bytes_sent = content_length(record.response_headers)
        self.over()


def body_of(
    body: Iterable[bytes], environ: dict[str, Any], place: Place, watch: Watch | None
) -> Iterable[bytes]:
    """What the server is given in its place."""
    if isinstance(body, (list, tuple)):
        if watch is not None:
            watch.sent(sum(map(len, body)))
            watch.over()
        return body
    wrapper = environ.get("wsgi.file_wrapper")
    if isinstance(wrapper, type) and isinstance(body, wrapper):
        if watch is not None:
            _at_close(body, watch)
        return body
    return _Body(body, place, watch)


def _at_close(body: Any, watch: Watch) -> None:
    """Hear of the end of a file, if its class lets us; else it counts as over now."""
    close: Callable[[], object] | None = getattr(body, "close", None)

    def closed() -> None:
        try:
            if close is not None:
                close()
        finally:
            watch.file()

    try:
        body.close = closed
    except AttributeError:
        watch.file()


class _Body:
    """Iterated over and closed in the context of its request, on whatever thread."""

    def __init__(self, body: Iterable[bytes], place: Place, watch: Watch | None) -> None:
        self._body = body
        self._place = place
        self._watch = watch
        self._iterator: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        watch = self._watch
        try:
            if self._iterator is None:
                self._iterator = self._place.run(iter, self._body)
            chunk: bytes = self._place.run(next, self._iterator, _END)
        except BaseException as error:
            if watch is not None:
                self._place.run(watch.failed, error)
            raise
        if chunk is _END:
            if watch is not None:
                self._place.run(watch.over)
            raise StopIteration
        if watch is not None:
            watch.sent(len(chunk))
        return chunk

    def close(self) -> None:
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._place.run(close)
        finally:
            if self._watch is not None:
                self._place.run(self._watch.closed)
