"""What a server says of a call: whose certificate it came with, and how old the connection is by the server's own rotations."""

from __future__ import annotations

from dataclasses import dataclass

import meshlib
from benchmarks.soak.rotations import TRUST_DOMAIN

__all__ = ["CLIENT", "PIECE", "PIECES", "SERVERS", "Question", "Verdict", "judge"]

CLIENT = f"spiffe://{TRUST_DOMAIN}/client"
SERVERS = {"web": f"spiffe://{TRUST_DOMAIN}/web", "rpc": f"spiffe://{TRUST_DOMAIN}/rpc"}
"""By service."""

PIECES = 8
PIECE = b"." * 1024
"""A long answer is so many pieces, and the verdict as the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a call asks for. begun: monotonic, which is one clock for all processes. seconds: that the answer takes; 0: none."""

    begun: float
    seconds: float

    def encode(self) -> str:
        return f"{self.begun!r},{self.seconds!r}"

    @classmethod
    def decode(cls, text: str) -> Question:
        begun, seconds = map(float, text.split(","))
        return cls(begun=begun, seconds=seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """certificate: the caller's fingerprint. age: rotations of the server between the connection's begin and the call's."""

    certificate: str
    age: int

    def encode(self) -> bytes:
        return f"{self.certificate} {self.age}".encode()

    @classmethod
    def decode(cls, answer: bytes) -> Verdict:
        """Raises: ValueError: it is none."""
        certificate, age = answer.decode().split()
        return cls(certificate=certificate, age=int(age))


def judge(age: int) -> Verdict:
    """In a handler. Raises PermissionError: the caller is somebody else."""
    peer = meshlib.current_peer()
    if str(peer.spiffe_id) != CLIENT:
        raise PermissionError(f"called by {peer.spiffe_id}")
    return Verdict(certificate=peer.sha256, age=age)
