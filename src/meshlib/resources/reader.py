"""Reading a protobuf message so that no field is lost in silence.

A `Reader` wraps one message and notes each field that is asked for. When a message has been read, its Reader, and those
of the messages in it, look at the fields that are set but were not asked for: those in `fields.IGNORED` mean nothing to
a client, those in `fields.REFUSED` are errors, and all others go into `unsupported` with their path. So a field of
Envoy's that nobody thought of is reported without any code.

Each message has been checked against the limits that Envoy's API states (`rules`) before a decoder sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from google.protobuf import unknown_fields

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.resources import fields, rules
from meshlib.runtime import regex

__all__ = ["Reader", "Reading"]

T = TypeVar("T")

_MAX_ANY_DEPTH = 16


def _no_pause() -> None:
    return


class Reading:
    """The decoding of one resource: what is not supported, what deserves a warning.

    pause is called between parts of a large resource, so that the thread can let others run.
    """

    __slots__ = ("_roots", "_unsupported", "pause", "warnings")

    def __init__(self, pause: Callable[[], None] = _no_pause) -> None:
        self._roots: list[Reader] = []
        self._unsupported: dict[str, None] = {}
        self.pause = pause
        self.warnings: list[str] = []

    def root(self, message: proto.Message, path: str = "") -> Reader:
        """The Reader of a message that stands at path. Raises ResourceError when it breaks a rule of Envoy's API."""
        rules.check(message, path)
        reader = Reader(message, None, path, reading=self, unknown=_has_unknown_fields(message))
        self._roots.append(reader)
        return reader

    def unsupported(self, path: str) -> None:
        self._unsupported[path] = None

    def finish(self) -> tuple[str, ...]:
        """The paths of all fields that are set and not applied. Raises ResourceError."""
        for root in self._roots:
            root.report()
        return tuple(self._unsupported)


class Reader:
    """One message at one path. Every method that takes a field name notes that the field has been read."""

    __slots__ = (
        "_children",
        "_depth",
        "_fields",
        "_index",
        "_left",
        "_name",
        "_parent",
        "_unknown",
        "message",
        "reading",
    )

    def __init__(
        self,
        message: proto.Message,
        parent: Reader | None,
        name: str,
        index: int | str | None = None,
        *,
        reading: Reading,
        unknown: bool,
        depth: int = 0,
    ) -> None:
        self.message: Any = message
        self.reading = reading
        self._parent = parent
        self._name = name
        self._index = index
        self._depth = depth
        self._unknown = unknown
        self._fields: dict[str, Any] = {field.name: value for field, value in self.message.ListFields()}
        self._left = set(self._fields)
        self._children: list[Reader] = []

    @property
    def path(self) -> str:
        """Where the message stands, in proto field names; empty for the resource itself."""
        path = "" if self._parent is None else self._parent.path
        if self._name:
            path = f"{path}.{self._name}" if path else self._name
        if self._index is None:
            return path
        return f"{path}[{self._index}]" if isinstance(self._index, int) else f"{path}[{_quoted(self._index)}]"

    @property
    def type_name(self) -> str:
        name: str = self.message.DESCRIPTOR.full_name
        return name

    def at(self, field: str) -> str:
        path = self.path
        return f"{path}.{field}" if path else field

    def fail(self, field: str, reason: str) -> ResourceError:
        """The error to raise; field empty for the message itself."""
        return ResourceError(self.at(field) if field else self.path, reason)

    def unsupported(self, field: str) -> None:
        """The field was read, but what it asks for is not applied."""
        self._left.discard(field)
        self.reading.unsupported(self.at(field))

    def leave(self, *names: str) -> None:
        """The fields have been dealt with in another way, or have no meaning beside those that were read."""
        self._left.difference_update(names)

    def has(self, field: str) -> bool:
        """Whether a field is set. Does not count as reading it."""
        return field in self._fields

    def which(self, oneof: str) -> str | None:
        name: str | None = self.message.WhichOneof(oneof)
        return name

    def text(self, field: str) -> str:
        self._left.discard(field)
        return str(self._fields.get(field, ""))

    def number(self, field: str) -> int:
        self._left.discard(field)
        return int(self._fields.get(field, 0))

    def flag(self, field: str) -> bool:
        self._left.discard(field)
        return bool(self._fields.get(field, False))

    def value(self, field: str) -> Any:
        """A scalar of any type, its default when it is not set."""
        self._left.discard(field)
        return getattr(self.message, field)

    def values(self, field: str) -> tuple[Any, ...]:
        """A repeated scalar."""
        self._left.discard(field)
        return tuple(self._fields.get(field, ()))

    def boxed(self, field: str) -> Any:
        """The value of a wrapper (google.protobuf.UInt32Value and so on); None when it is not set."""
        self._left.discard(field)
        wrapper = self._fields.get(field)
        return None if wrapper is None else wrapper.value

    def duration(self, field: str) -> float | None:
        """Seconds, None when not set."""
        self._left.discard(field)
        duration = self._fields.get(field)
        if duration is None:
            return None
        seconds: float = duration.seconds + duration.nanos / 1e9
        return seconds

    def enum(self, field: str, values: Mapping[int, T]) -> T:
        number = self.number(field)
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
        self._left.discard(field)
        message = self._fields.get(field)
        return None if message is None else self._keep(message, field, None)

    def required(self, field: str) -> Reader:
        child = self.child(field)
        if child is None:
            raise self.fail(field, "must be given")
        return child

    def each(self, field: str) -> Iterator[Reader]:
        """The Readers of a repeated message field, one after the other: each must be read before the next is taken."""
        self._left.discard(field)
        for index, item in enumerate(self._fields.get(field, ())):
            reader = self._sub(item, field, index)
            yield reader
            reader.report()

    def items(self, field: str) -> list[Reader]:
        """The Readers of a repeated message field."""
        self._left.discard(field)
        return [self._keep(item, field, index) for index, item in enumerate(self._fields.get(field, ()))]

    def entries(self, field: str) -> list[tuple[str, Reader]]:
        """Keys and Readers of a map of messages, by key."""
        self._left.discard(field)
        items = self._fields.get(field)
        return [] if items is None else [(key, self._keep(items[key], field, key)) for key in sorted(items)]

    def _sub(self, message: proto.Message, field: str, index: int | str | None) -> Reader:
        return Reader(
            message, self, field, index, reading=self.reading, unknown=self._unknown, depth=self._depth
        )

    def _keep(self, message: proto.Message, field: str, index: int | str | None) -> Reader:
        child = self._sub(message, field, index)
        self._children.append(child)
        return child

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
        self._left.clear()
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
        unknown = _has_unknown_fields(message)
        content = Reader(message, self, "", reading=self.reading, unknown=unknown, depth=self._depth + 1)
        self._children.append(content)
        return content

    def report(self) -> None:
        """Put what is set and was not read into `unsupported`. Raises ResourceError for what must not be neglected."""
        if self._left:
            self._report_unread()
        if self._unknown:
            self._report_unknown()
        for child in self._children:
            child.report()
        self._children.clear()

    def _report_unread(self) -> None:
        name = self.type_name
        ignored = fields.IGNORED.get(name, frozenset())
        for field in self._fields:
            if field not in self._left or field in ignored:
                continue
            refusal = fields.REFUSED.get((name, field))
            if refusal is not None:
                raise self.fail(field, refusal)
            self.reading.unsupported(self.at(field))

    def _report_unknown(self) -> None:
        unknown: Any = unknown_fields.UnknownFieldSet(self.message)
        if len(unknown) and self.type_name in fields.STRICT:
            reason = (
                f"field {unknown[0].field_number} is not known, and this message must not be read in part"
            )
            raise self.fail("", reason)
        for field in unknown:
            self.reading.unsupported(self.at(f"<field {field.field_number}>"))


def _has_unknown_fields(message: Any) -> bool:
    """Whether there is a field that the descriptors do not have, at any depth (but for the content of an Any)."""
    copy = type(message)()
    copy.CopyFrom(message)
    copy.DiscardUnknownFields()
    return bool(copy.ByteSize() != message.ByteSize())


def _quoted(key: str) -> str:
    return '"' + key.replace('"', '\\"') + '"'
