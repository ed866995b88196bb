"""What happened between this process and its control plane last: for people who ask, never for decisions."""

from __future__ import annotations

from dataclasses import dataclass

from meshlib.snapshot import Kind

__all__ = ["Journal", "Verdict"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """An ACK or a NACK. version: of the response. at: seconds since 1970. reason: of a NACK, empty for an ACK."""

    version: str
    at: float
    reason: str = ""


class Journal:
    """Written by one thread, read by any.

    connected_since: seconds since 1970, None while the control plane has not answered on the stream that is open. streams: how
    many it has answered on so far. acks, nacks: the latest of each type.
    """

    __slots__ = ("acks", "connected_since", "nacks", "streams")

    def __init__(self, connected_since: float | None = None) -> None:
        self.connected_since = connected_since
        self.streams = 0
        self.acks: dict[Kind, Verdict] = {}
        self.nacks: dict[Kind, Verdict] = {}

    def connected(self, at: float) -> None:
        self.connected_since = at
        self.streams += 1

    def disconnected(self) -> None:
        self.connected_since = None

    def accepted(self, kind: Kind, version: str, at: float) -> None:
        self.acks[kind] = Verdict(version=version, at=at)

    def rejected(self, kind: Kind, version: str, at: float, reason: str) -> None:
        self.nacks[kind] = Verdict(version=version, at=at, reason=reason)
