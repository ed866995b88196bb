"""The request messages of a client stream, kept as long as another attempt may need them.

The application's iterator is read once, by whichever attempt comes first to the end of what has been read; every attempt begins
with what is kept. Once an attempt is accepted, or more than `limit` bytes would be kept, nothing is kept any longer; in the
second case the request can't be sent again. grpcio reads an attempt's messages on a thread of its own, so that of an attempt
that was given up may be inside the application's iterator when the next attempt begins: what it brings is not lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from math import inf
from typing import Any

__all__ = ["OverrunError", "Requests", "SerializeError"]


class OverrunError(Exception):
    """An attempt that was left behind (hedging) needs a message that is kept no longer."""


class SerializeError(Exception):
    """The application's serializer failed."""


class Requests:
    """limit: bytes that may be kept. exhausted: called once, when the application's iterator is at its end.

    read, read_bytes: how many messages the application has given, and their size.
    """

    def __init__(
        self,
        source: Iterable[Any],
        serialize: Callable[[Any], bytes] | None,
        exhausted: Callable[[], None],
    ) -> None:
        self._source = iter(source)
        self._serialize = serialize
        self._exhausted = exhausted
        self._changed = threading.Condition(threading.Lock())
        self._kept: list[bytes] = []
        self._first = 0  # the number of the first message that is kept
        self._bytes = 0
        self._reading = False
        self._over = False
        self._only: object | None = None
        self._newest: object | None = None
        self.limit: float = inf
        self.read = self.read_bytes = 0

    @property
    def replayable(self) -> bool:
        """Whether another attempt can begin with the first message."""
        return self._first == 0

    def commit(self, reader: object) -> None:
        """Only this reader goes on."""
        with self._changed:
            self._only = reader
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody goes on."""
        self.commit(_NOBODY)

    def messages(self, reader: object) -> Iterator[bytes]:
        """For one attempt. Raises SerializeError, OverrunError, and what the application's iterator raises."""
        self._newest = reader
        return self._messages(reader)

    def _messages(self, reader: object) -> Iterator[bytes]:
        number = 0
        while True:
            if self._only is reader and not self._reading and not self._kept:
                yield from self._rest(reader)
                return
            with self._changed:
                while not self._have(number, reader):
                    self._changed.wait()
                if self._only is not None and self._only is not reader:
                    return
                if number < self._first:
                    raise OverrunError
                message = self._take(number, reader)
                if message is None:
                    if self._over:
                        return
                    self._reading = True
            if message is None:
                message = self._read(number, reader)
                if message is None:
                    return
            number += 1
            yield message

    def _rest(self, reader: object) -> Iterator[bytes]:
        """What follows once this reader is the only one: nothing is kept, and nobody else reads."""
        source, serialized = self._source, self._serialized
        while self._only is reader:
            try:
                item = next(source)
            except StopIteration:
                self._over = True
                self._exhausted()
                return
            yield serialized(item)

    def _have(self, number: int, reader: object) -> bool:
        """Whether this reader need not wait: for the message, or for whoever reads it."""
        if self._only is not None and self._only is not reader:
            return True
        return number < self._first + len(self._kept) or self._over or not self._reading

    def _take(self, number: int, reader: object) -> bytes | None:
        index = number - self._first
        if index >= len(self._kept):
            return None
        message = self._kept[index]
        if self._only is reader:
            del self._kept[: index + 1]
            self._first = number + 1
        return message

    def _read(self, number: int, reader: object) -> bytes | None:
        """The next message of the application, kept; None at the end."""
        message: bytes | None = None
        over = True
        try:
            item = next(self._source)
            message = self._serialized(item)
            over = False
        except StopIteration:
            self._exhausted()
        finally:
            with self._changed:
                self._reading = False
                self._over = over
                if message is not None:
                    self._keep(message, reader)
                self._changed.notify_all()
        return message

    def _serialized(self, item: Any) -> bytes:
        message: bytes = item
        if self._serialize is not None:
            try:
                message = self._serialize(item)
            except Exception as error:
                raise SerializeError("Exception serializing request!") from error
        self.read += 1
        self.read_bytes += len(message)
        return message

    def _keep(self, message: bytes, reader: object) -> None:
        if self._only is reader:  # nobody else will ask
            self._first += len(self._kept) + 1
            self._kept.clear()
            return
        if (
            self._only is not None or self._newest is not reader
        ):  # it was given up: another one waits for the message
            self._kept.append(message)
            return
        self._bytes += len(message)
        if self._bytes > self.limit:
            self._first += len(self._kept) + 1
            self._kept.clear()
            self._bytes = 0
            self.limit = -1
        else:
            self._kept.append(message)


_NOBODY = object()
