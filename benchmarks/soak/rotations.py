"""What rotates at one end, and how many rotations old its connections are."""

from __future__ import annotations

import hashlib
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from meshlib.identity.store import IdentityStore

__all__ = ["TRUST_DOMAIN", "Rotations", "fingerprint"]

TRUST_DOMAIN = "soak.example"

KEPT = 8
"""Epochs that are remembered: more than can come within the time in which one settles."""

HEARD = 1.0
"""Seconds in which all connections of a process hear of a rotation."""


def fingerprint(certificate: bytes) -> str:
    """Of a certificate in DER, as `InboundPeer.sha256` has it."""
    return hashlib.sha256(certificate).hexdigest()


class Rotations:
    """Follows one identity store. Thread safe.

    epoch: of the TLS in use; grows with each new certificate. settle: a rotation counts against a connection of the other end's
    making when it has been in force for so many seconds: the two ends do not hear of things in the same moment; heard: the same
    for the connections of this process. certificates: fingerprint -> its number, in the order in which they came into force.
    times: when something has changed for handshakes, monotonic: certificates, and each step of a root rotation.
    """

    def __init__(
        self, store: IdentityStore, epoch: Callable[[], int], settle: float, heard: float = HEARD
    ) -> None:
        self._store = store
        self._epoch = epoch
        self._settle = settle
        self._heard = heard
        self._lock = threading.Lock()
        self._history = [(0.0, epoch())]
        self.certificates: dict[str, int] = {}
        self._came: list[float] = []
        self.times: list[float] = []
        self._look(time.monotonic())
        self.close = store.subscribe(self._changed)

    def _changed(self) -> None:
        now = time.monotonic()
        self.times.append(now)
        self._look(now)

    def _look(self, now: float) -> None:
        with self._lock:
            default, epoch = self._store.default, self._epoch()
            if default is not None and default.svids:
                shown = fingerprint(default.svids[0].leaf)
                if shown not in self.certificates:
                    self.certificates[shown] = len(self._came)
                    self._came.append(now)
            if epoch != self._history[-1][1]:
                self._history = [*self._history[-KEPT:], (now, epoch)]

    def settled(self, moment: float) -> int:
        """The epoch that everybody had had the time to hear of at that moment."""
        limit = moment - self._settle
        return next((epoch for at, epoch in reversed(self._history) if at <= limit), self._history[0][1])

    def newest(self, moment: float) -> int:
        """The number of the certificate that all connections of this process had heard of at that moment."""
        return max(bisect_right(self._came, moment - self._heard) - 1, 0)

    def status(self) -> dict[str, Any]:
        """certificates: how many there were. roots: how many are trusted. settled: nothing has changed for a while."""
        default = self._store.default
        bundle = None if default is None else default.bundles.get(TRUST_DOMAIN)
        return {
            "certificates": len(self.certificates),
            "roots": 0 if bundle is None else len(bundle.authorities),
            "epoch": self._epoch(),
            "settled": self.settled(time.monotonic()) == self._epoch(),
        }
