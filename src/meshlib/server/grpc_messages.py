"""How many messages of a gRPC call a server has taken and given, and how many bytes they are.

grpcio tells neither. It has a handler deserialize requests and serialize responses, and an interceptor makes a handler for each
call: so what deserializes and serializes belongs to that call, and counts. Where grpcio serializes a response after the handler
is done, or ahead of it (a blocking generator on an asyncio server), the handler does it itself and hands on a `Ready`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from meshlib.transport.grpc.judge import PREFIX
from meshlib.transport.grpc.tally import Incoming, Outgoing

if TYPE_CHECKING:
    from meshlib.engine.observer import InboundCall

__all__ = ["AsyncMessages", "Messages", "Ready"]


class Ready:
    """A response that is serialized already. error: that it could not be, and why."""

    __slots__ = ("data", "error")

    def __init__(self, data: Any, error: Exception | None = None) -> None:
        self.data = data
        self.error = error


class Messages:
    """Of one call on a blocking server. read, write: for grpcio.

    broken: a response could not be serialized. The call ends with `failure` then, of google.rpc.Code, if it has set no other.
    """

    __slots__ = ("_sent", "broken", "read")

    failure = "13"

    def __init__(
        self, deserialize: Callable[[bytes], Any] | None, serialize: Callable[[Any], bytes] | None
    ) -> None:
        self.read = Incoming(deserialize)
        self._sent = Outgoing(serialize)
        self.broken = False

    def write(self, response: Any) -> Any:
        if type(response) is not Ready:
            response = self._serialized(response)
        if response.error is not None:
            raise response.error
        return response.data

    def _serialized(self, response: Any) -> Ready:
        try:
            data = self._data(response)
        except Exception as error:  # noqa: BLE001 - grpcio's to report
            self.broken = True
            return Ready(None, error)
        self.broken = not isinstance(data, bytes)
        return Ready(data)

    def _data(self, response: Any) -> Any:
        return self._sent(response)

    def last(self, response: Any, code: str) -> Any:
        """The one response of a handler, as the handler hands it to grpcio. code: of google.rpc.Code, set by the handler."""
        return self._serialized(response)

    def next(self, response: Any) -> Any:
        """One response of a blocking generator. None ends the stream of a blocking server."""
        return response if response is None else self._serialized(response)

    def tell(self, record: InboundCall) -> None:
        read, sent = self.read, self._sent
        record.messages_received, record.bytes_received = read.count, read.size
        record.messages_sent, record.bytes_sent = sent.count, sent.size


class AsyncMessages(Messages):
    """On a server of `grpc.aio`. It encodes text, and sends an empty message in place of the response if the status is not OK."""

    __slots__ = ()

    failure = "2"

    def _data(self, response: Any) -> Any:
        return self._sent(response.encode() if isinstance(response, str) else response)

    def last(self, response: Any, code: str) -> Any:
        if code == "0":
            return self._serialized(response)
        self._sent.count += 1
        self._sent.size += PREFIX
        return response
