"""HTTP/1.1: a request as bytes, and a response out of bytes (RFC 9112). httptools parses; what it leaves open is decided here.

httptools (llhttp) never completes the answer to HEAD, so that one is complete at its headers and the parser is replaced. It
has no call for the end of the connection: a body that lasts until the peer closes ends in `H1Codec.end`. It takes
headers of any size: Envoy's limits, 100 headers and 80 KiB, are enforced here. Bytes after a complete response make the
connection useless for another request, but do not touch the response.
"""

from __future__ import annotations

import re

import httptools

from meshlib.transport.http.failure import InvalidRequest, TransportFailure, protocol_failure, terminated
from meshlib.transport.http.interned import CODING, LENGTH, forms, once
from meshlib.transport.http.message import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    OutgoingRequest,
    RawHeaders,
    Response,
    content_length,
)

__all__ = ["H1Codec"]

_HOST = b"Host"
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"))
_TARGET = re.compile(rb"[\x21-\x7e\x80-\xff]+").fullmatch


def _is_chunked(headers: RawHeaders) -> bool:
    return any(
        len(name) == 17 and name.lower() == b"transfer-encoding" and value.lower().endswith(b"chunked")
        for name, value in headers
    )


class H1Codec:
    """Writes the requests of one connection and parses their responses, one after the other.

    start, body and end_body give the bytes to send; feed takes what arrives, end says that the peer closed. `reusable` is
    valid once the response is complete. start raises InvalidRequest; feed and end raise TransportFailure.
    """

    __slots__ = (
        "_after",
        "_bodyless",
        "_chunked",
        "_fields",
        "_interim",
        "_limit",
        "_parser",
        "response",
        "reusable",
    )

    survives_input = False
    blocked = False
    outgoing = False

    def __init__(self) -> None:
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._bodyless = False
        self._chunked = False
        self._interim = False
        self._limit = 0
        self.reusable = True
        self.response = Response()
        self.response.complete = True
        self._after: list[bytes] = []  # fields that come after the headers
        self._fields = self._after

    def start(self, request: OutgoingRequest, *, inline: bool = True) -> bytes:
        """The request line and the headers, with the framing header that a body needs, and with `inline` the body.

        Nothing that the application supplies can add a line: each part is checked for line ends.
        """
        method, path, body = request.method, request.path, request.body
        if method not in _METHODS and not _METHOD(method):
            raise InvalidRequest(f"not a method: {method!r}")
        if not _TARGET(path):
            raise InvalidRequest(f"the request target has characters that are not allowed: {path!r}")
        host, _, _, error = forms[_HOST, request.authority]
        if host is None:
            raise InvalidRequest(error)
        block = request.block
        kinds = block.kinds
        if block.error:
            raise InvalidRequest(block.error)
        framing = b""
        self._chunked = bool(kinds & CODING) and _is_chunked(request.headers)
        if not kinds & LENGTH and not self._chunked:
            if body is None:
                self._chunked = True
                framing = b"Transfer-Encoding: chunked\r\n"
            elif body:
                framing = b"Content-Length: %d\r\n" % len(body)
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        self._bodyless = method == b"HEAD"
        self._interim = False
        self._limit = MAX_HEADER_BYTES
        self.reusable = False
        self.response = response = Response()
        self._fields = response.fields
        if request.extra:
            framing += once(request.extra)
        head = b"%b %b HTTP/1.1\r\n%b%b%b\r\n" % (method, path, host, block.lines, framing)
        if body is not None and inline and (body or self._chunked):
            return b"".join((head, self.body(body), self.end_body()))
        return head

    def body(self, data: bytes) -> bytes:
        """One piece of the body as it is sent."""
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked and data else data

    def end_body(self) -> bytes:
        return b"0\r\n\r\n" if self._chunked else b""

    def feed(self, data: bytes) -> None:
        response = self.response
        if response.complete or self._parser is None:
            self.reusable = False
            return
        if response.status == 0:
            self._limit -= len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise protocol_failure("the peer switched protocols without being asked") from None
        except httptools.HttpParserError as error:
            self.reusable = False
            if not response.complete:
                raise _failure(error) from None
        if response.status == 0:
            if self._limit < 0:
                raise protocol_failure("response headers are larger than 80 KiB")
        elif self._after and not response.complete:
            self._check_trailers()

    def end(self) -> None:
        """The peer closed its side: the end of a body without a length, otherwise a response cut short."""
        response = self.response
        self.reusable = False
        if response.complete:
            return
        if response.status == 0:
            raise terminated()
        if content_length(response.headers) is not None or _is_chunked(response.headers):
            raise protocol_failure("the connection ended before the body was complete")
        response.complete = True

    def abort(self) -> TransportFailure:
        """The connection was reset. Envoy calls it a protocol error when the body had a length that was not reached."""
        response = self.response
        self.reusable = False
        if response.status and (
            content_length(response.headers) is not None or _is_chunked(response.headers)
        ):
            return protocol_failure("the connection was reset before the body was complete")
        return terminated()

    def consumed(self, count: int) -> None:
        """HTTP/1.1 has no flow control of its own."""

    def take_outgoing(self) -> bytes:
        return b""

    def close(self) -> None:
        """Let go of the parser, which refers back to this object."""
        self._parser = None

    # Called by httptools.

    def on_message_begin(self) -> None:
        if self.response.complete:
            self.reusable = False

    def on_status(self, reason: bytes) -> None:
        if not self.response.complete:
            self.response.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields += (name, value)

    def on_headers_complete(self) -> None:
        response, parser = self.response, self._parser
        if response.complete or parser is None:
            return
        status = parser.get_status_code()
        if status < 200:
            self._interim_response(status)
            return
        version = parser.get_http_version()
        if version != "1.1":
            if version != "1.0":
                raise protocol_failure(f"HTTP version {version} in the status line")
            response.version = b"HTTP/1.0"
        fields = response.fields
        if len(fields) > 2 * MAX_HEADERS:
            raise protocol_failure("more than 100 response headers")
        if self._limit < 0 and sum(map(len, fields)) > MAX_HEADER_BYTES:
            raise protocol_failure("response headers are larger than 80 KiB")
        response.status = status
        self._fields = self._after
        if self._bodyless:
            self.reusable = _keeps_alive(response)
            self._parser = None
            response.complete = True

    def _check_trailers(self) -> None:
        if len(self._after) > 2 * MAX_HEADERS:
            raise protocol_failure("more than 100 trailers")

    def _interim_response(self, status: int) -> None:
        if status == 101:
            raise protocol_failure("the peer switched protocols without being asked")
        self._interim = True
        self.response.fields.clear()
        self.response.reason = b""

    def on_body(self, data: bytes) -> None:
        response = self.response
        if response.complete:
            self.reusable = False
        else:
            response.chunks.append(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
            return
        response, parser = self.response, self._parser
        if not response.complete and parser is not None:
            if self._after:
                self._check_trailers()
                response.trailing = tuple(self._after)
                self._after.clear()
            response.complete = True
            self.reusable = parser.should_keep_alive()


def _failure(error: Exception) -> TransportFailure:
    """What a callback raised (httptools wraps it), or what the parser found."""
    cause = error.__context__
    return cause if isinstance(cause, TransportFailure) else protocol_failure(str(error))


def _keeps_alive(response: Response) -> bool:
    options: list[bytes] = []
    for name, value in response.headers:
        if name.lower() == b"connection":
            options += [option.strip() for option in value.lower().split(b",")]
    return b"close" not in options and (response.version == b"HTTP/1.1" or b"keep-alive" in options)
