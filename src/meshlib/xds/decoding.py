"""From the resources of a response to what each of them means, decoding only what is new."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from meshlib import proto
from meshlib.errors import ResourceError
from meshlib.runtime.logs import failed
from meshlib.snapshot import Accepted, Kind
from meshlib.snapshot.snapshot import name_of
from meshlib.xds.messages import Packed

__all__ = ["Decode", "Decoding", "ResponseDecoder"]

logger = logging.getLogger("meshlib.xds")

Decode = Callable[[str, bytes, Callable[[], None]], Accepted]
"""`meshlib.resources.decode_any`: type URL, bytes, and a `pause` to call now and then; raises ResourceError."""

LONGEST_TEXT = 4000
"""Characters of a NACK; the whole text travels in a message of the control plane's log."""


@dataclass(slots=True)
class Decoding:
    """A response, decoded.

    results: by name, what is wanted. present: every name in the response. problems: what the NACK has to say, one entry for
    each bad resource. nameless: bytes that are no resource with a name are among them, so absence proves nothing.
    """

    results: dict[str, Accepted | ResourceError] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    nameless: bool = False

    @property
    def text(self) -> str:
        """The text of the NACK."""
        joined = "; ".join(self.problems)
        return (
            joined if len(joined) <= LONGEST_TEXT else joined[: LONGEST_TEXT - 1] + "\N{HORIZONTAL ELLIPSIS}"
        )


class ResponseDecoder:
    """Remembers the bytes of each resource, of its last good and of its latest version: the same bytes mean the same.

    decode: see Decode. pause: called between resources.
    """

    def __init__(self, decode: Decode, pause: Callable[[], None]) -> None:
        self._decode = decode
        self._pause = pause
        self._good: dict[Kind, dict[str, tuple[bytes, Accepted]]] = {kind: {} for kind in Kind}
        self._bad: dict[Kind, dict[str, tuple[bytes, ResourceError]]] = {kind: {} for kind in Kind}

    def decode(self, kind: Kind, resources: Collection[Packed], wanted: Collection[str]) -> Decoding:
        """Decode what is wanted. Of a resource that nobody asked for only the name is read, and that it is one."""
        decoding = Decoding()
        for index, packed in enumerate(resources):
            if packed.error is None and packed.name is not None and packed.name not in wanted:
                name = _true_name(kind, packed.data)
                if name is not None and name not in wanted:
                    decoding.present.add(name)
                    continue
            if decoding.results:
                self._pause()
            self._one(kind, index, packed, decoding)
        return decoding

    def forget(self, kind: Kind, wanted: Collection[str]) -> None:
        """Drop what is remembered of names that are not wanted any longer."""
        for memory in (self._good[kind], self._bad[kind]):
            for name in [name for name in memory if name not in wanted]:
                del memory[name]

    def amend(self, kind: Kind, name: str, amended: Accepted) -> None:
        """The bytes of the good version of this resource mean this from now on."""
        self._good[kind][name] = (self._good[kind][name][0], amended)

    def encoded(self, kind: Kind, name: str, *, refused: bool = False) -> bytes | None:
        """The bytes of a resource's last good version, or of the one that was refused since. From any thread."""
        found = (self._bad if refused else self._good)[kind].get(name)
        return None if found is None else found[0]

    def _one(self, kind: Kind, index: int, packed: Packed, decoding: Decoding) -> None:
        result = packed.error or self._known(kind, packed) or self._try(kind, packed.data)
        name = _name(result) or packed.name
        if isinstance(result, ResourceError) and _true_name(kind, packed.data) is None:
            decoding.nameless = True
        if not name:
            decoding.problems.append(f"resource {index}: {result}")
            return
        if name in decoding.present:
            result = ResourceError("", "is in the response twice", type_url=kind.value, name=name)
        elif isinstance(result, ResourceError):
            self._bad[kind][name] = (packed.data, result)
        else:
            self._good[kind][name] = (packed.data, result)
            self._bad[kind].pop(name, None)
        decoding.present.add(name)
        decoding.results[name] = result
        if isinstance(result, ResourceError):
            decoding.problems.append(f"{_noun(kind)} {name!r}: {result}")

    def _known(self, kind: Kind, packed: Packed) -> Accepted | ResourceError | None:
        if packed.name is None:
            return None
        good = self._good[kind].get(packed.name)
        if good is not None and good[0] == packed.data:
            return good[1]
        bad = self._bad[kind].get(packed.name)
        return bad[1] if bad is not None and bad[0] == packed.data else None

    def _try(self, kind: Kind, data: bytes) -> Accepted | ResourceError:
        try:
            return self._decode(kind.value, data, self._pause)
        except ResourceError as error:
            return error
        except Exception as error:  # noqa: BLE001 - and it is said
            # Our own fault, but a resource must never stop the client: it is rejected as any other bad one.
            failed(logger, "decoding a %s failed", _noun(kind))
            # Not its repr, which may show what was decoded: a key.
            reason = f"meshlib can't decode it: {type(error).__name__}: {error}"
            return ResourceError("", reason, type_url=kind.value)


def _name(result: Accepted | ResourceError) -> str:
    if isinstance(result, ResourceError):
        return result.name
    return name_of(result.resource)


def _true_name(kind: Kind, data: bytes) -> str | None:
    """The name of a well-formed resource, None for bytes that are none."""
    try:
        message = proto.parse(proto.full_name(kind.value), data)
    except proto.DecodeError:
        return None
    name: str = message.cluster_name if kind is Kind.ENDPOINT else message.name
    return name or None


def _noun(kind: Kind) -> str:
    return kind.value.rpartition(".")[2]
