"""How many messages a call has sent and received, and how many bytes they are.

grpcio says neither, but it has each message serialized and deserialized: what does that counts. It runs before whatever follows
from the message, so that a call that is over has counted its last one. A message counts with its prefix and as it is before
compression, of which grpcio tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from meshlib.transport.grpc.judge import PREFIX

__all__ = ["Incoming", "Outgoing", "Tally"]


class Outgoing:
    """A serializer. count: messages that it could serialize. size: their bytes on the wire."""

    __slots__ = ("_serialize", "count", "size")

    def __init__(self, serialize: Callable[[Any], bytes] | None) -> None:
        self._serialize = serialize
        self.count = self.size = 0

    def __call__(self, message: Any) -> Any:
        """Raises what the application's serializer raises. What is no bytes grpcio refuses."""
        data = message if self._serialize is None else self._serialize(message)
        if isinstance(data, bytes):
            self.count += 1
            self.size += PREFIX + len(data)
        return data


class Incoming:
    """A deserializer. count: messages that have come, also those that can't be deserialized. size: their bytes on the wire."""

    __slots__ = ("_deserialize", "count", "size")

    def __init__(self, deserialize: Callable[[bytes], Any] | None) -> None:
        self._deserialize = deserialize
        self.count = self.size = 0

    def __call__(self, data: bytes) -> Any:
        """Raises what the application's deserializer raises."""
        self.count += 1
        self.size += PREFIX + len(data)
        return data if self._deserialize is None else self._deserialize(data)


class Tally:
    """Of one attempt. sent: None where the request is a stream, which attempts share."""

    __slots__ = ("received", "sent")

    def __init__(self, sent: Outgoing | None, received: Incoming) -> None:
        self.sent = sent
        self.received = received
