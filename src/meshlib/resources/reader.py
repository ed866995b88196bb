"""Reading a protobuf message so that no field is lost in silence.

A `Reader` wraps one message and notes each field that is asked for. Every Reader of a resource is known to its `Reading`; when
the decoder is done, `Reading.finish` goes through all of them and looks at the fields that are set but were not asked for:
those in `fields.IGNORED` mean nothing to a client, those in `fields.REFUSED` are errors, and all others go into `unsupported`
with their path. So a field of Envoy's that nobody thought of is reported without any code.

Each message has been checked against the limits that Envoy's API states (`rules`) before a decoder sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from google.protobuf import unknown_fields

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources import fields, rules
from meshlib.runtime import regex

__all__ = ["Reader", "Reading"]

T = TypeVar("T")

_MAX_ANY_DEPTH = 16


class Reading:
    """The decoding of one resource: what was read, what is not supported, what deserves a warning."""

    __slots__ = ("_readers", "_unsupported", "warnings")

    def __init__(self) -> None:
        self._readers: list[Reader] = []
        self._unsupported: dict[str, None] = {}
        self.warnings: list[str] = []

    def root(self, message: proto.Message) -> Reader:
        """The Reader of the resource itself. Raises ResourceError when it breaks a rule of Envoy's API."""
        rules.check(message)
        return Reader(message, "", self, 0)

    def add(self, reader: Reader) -> None:
        self._readers.append(reader)

    def unsupported(self, path: str) -> None:
        self._unsupported[path] = None

    def finish(self) -> tuple[str, ...]:
        """The paths of all fields that are set and not applied, in the order of the message. Raises ResourceError."""
        for reader in self._readers:
            reader.report_unread()
        return tuple(self._unsupported)


class Reader:
    """One message at one path. Every method that takes a field name notes that the field has been read."""

    __slots__ = ("_depth", "_read", "message", "path", "reading")

    def __init__(self, message: proto.Message, path: str, reading: Reading, depth: int) -> None:
        self.message: Any = message
        self.path = path
        self.reading = reading
        self._depth = depth
        self._read: set[str] = set()
        reading.add(self)

    @property
    def type_name(self) -> str:
        name: str = self.message.DESCRIPTOR.full_name
        return name

    def at(self, field: str) -> str:
        return f"{self.path}.{field}" if self.path else field

    def fail(self, field: str, reason: str) -> ResourceError:
        """The error to raise; field empty for the message itself."""
        return ResourceError(self.at(field) if field else self.path, reason)

    def unsupported(self, field: str) -> None:
        """The field was read, but what it asks for is not applied."""
        self._read.add(field)
        self.reading.unsupported(self.at(field))

    def leave(self, *names: str) -> None:
        """The fields have been dealt with in another way, or have no meaning beside those that were read."""
        self._read.update(names)

    def has(self, field: str) -> bool:
        """Whether a message, wrapper or oneof field is set. Does not count as reading it."""
        present: bool = self.message.HasField(field)
        return present

    def which(self, oneof: str) -> str | None:
        name: str | None = self.message.WhichOneof(oneof)
        return name

    def value(self, field: str) -> Any:
        """A scalar, or a repeated scalar, as protobuf gives it."""
        self._read.add(field)
        return getattr(self.message, field)

    def text(self, field: str) -> str:
        return str(self.value(field))

    def boxed(self, field: str) -> Any:
        """The value of a wrapper (google.protobuf.UInt32Value and so on); None when it is not set."""
        self._read.add(field)
        return getattr(self.message, field).value if self.message.HasField(field) else None

    def duration(self, field: str) -> float | None:
        """Seconds, None when not set."""
        self._read.add(field)
        if not self.message.HasField(field):
            return None
        duration = getattr(self.message, field)
        seconds: float = duration.seconds + duration.nanos / 1e9
        return seconds

    def enum(self, field: str, values: Mapping[int, T]) -> T:
        number = int(self.value(field))
        if number not in values:
            raise self.fail(field, f"unknown value {number}")
        return values[number]

    def percent(self, field: str) -> float | None:
        """A type.v3.Percent, 0 .. 100; None when not set."""
        child = self.child(field)
        if child is None:
            return None
        value = float(child.value("value"))
        if not 0 <= value <= 100:
            raise child.fail("value", f"{value:g} is not a percentage from 0 to 100")
        return value

    def child(self, field: str) -> Reader | None:
        """The Reader of a message field; None when it is not set."""
        self._read.add(field)
        if not self.message.HasField(field):
            return None
        return Reader(getattr(self.message, field), self.at(field), self.reading, self._depth)

    def required(self, field: str) -> Reader:
        child = self.child(field)
        if child is None:
            raise self.fail(field, "must be given")
        return child

    def each(self, field: str) -> list[Reader]:
        """The Readers of a repeated message field."""
        self._read.add(field)
        place = self.at(field)
        return [
            Reader(item, f"{place}[{index}]", self.reading, self._depth)
            for index, item in enumerate(getattr(self.message, field))
        ]

    def entries(self, field: str) -> list[tuple[str, Reader]]:
        """Keys and Readers of a map of messages, by key."""
        self._read.add(field)
        items = getattr(self.message, field)
        place = self.at(field)
        return [
            (key, Reader(items[key], f"{place}[{_quoted(key)}]", self.reading, self._depth))
            for key in sorted(items)
        ]

    def pattern(self, field: str, *, unanchored: bool = False) -> regex.Regex:
        """A type.matcher.v3.RegexMatcher, compiled."""
        child = self.required(field)
        child.leave("google_re2")  # the engine's limits; deprecated in Envoy
        try:
            return regex.compile(child.text("regex"), unanchored=unanchored)
        except regex.RegexError as error:
            raise child.fail("regex", error.reason) from None

    def unpacked(self, *, checked: bool = True) -> Reader:
        """The message inside, when this is a google.protobuf.Any; the path stays, as in the YAML form.

        checked: against the rules of Envoy's API, which Envoy itself does not do everywhere.
        Raises ResourceError: the type is not known, or the bytes are not of that type.
        """
        self._read.update(("type_url", "value"))
        if self._depth >= _MAX_ANY_DEPTH:
            raise self.fail("", "typed configurations are nested too deep")
        try:
            message = proto.unpack(self.message)
        except proto.UnknownType as error:
            raise self.fail("", f"unknown type {error.type_url!r}") from None
        except proto.DecodeError:
            raise self.fail("", f"not an encoding of {self.message.type_url!r}") from None
        except proto.FieldError as error:
            raise self.fail(error.path, error.reason) from None
        if checked:
            rules.check(message, self.path)
        return Reader(message, self.path, self.reading, self._depth + 1)

    def report_unread(self) -> None:
        """Put what is set and was not read into `unsupported`. Raises ResourceError for what must not be neglected."""
        name = self.type_name
        ignored = fields.IGNORED.get(name, frozenset())
        for descriptor, _ in self.message.ListFields():
            field = descriptor.name
            if field in self._read or field in ignored:
                continue
            refusal = fields.REFUSED.get((name, field))
            if refusal is not None:
                raise self.fail(field, refusal)
            self.reading.unsupported(self.at(field))
        unknown_set: Any = unknown_fields.UnknownFieldSet(self.message)
        if len(unknown_set) and name in fields.STRICT:
            raise self.fail(
                "", f"field {unknown_set[0].field_number} is not known, and a match must not be read in part"
            )
        for unknown in unknown_set:
            self.reading.unsupported(self.at(f"<field {unknown.field_number}>"))


def _quoted(key: str) -> str:
    return '"' + key.replace('"', '\\"') + '"'
