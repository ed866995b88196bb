"""Where identities come from: one small protocol for files, the Workload API, certificate providers and whatever users write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from meshlib.identity.material import BundleSet, Svid

__all__ = ["IdentitySource", "IdentityUpdate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityUpdate:
    """All that a source knows at this moment; it replaces what was known before.

    svids: the workload's identities, the first one is the default; may be empty (a source of trust only).
    bundles: what to trust, by trust domain, the federated ones too. Empty when the source knows roots without a trust domain.
    roots: certificates (DER) that are trusted whatever the peer's trust domain: a plain CA file. Never used together with
    bundles. error: why the source could not give anything newer, None when all is well; an update with an error and without
    material leaves what is in force in force.
    """

    svids: tuple[Svid, ...] = ()
    bundles: BundleSet = field(default_factory=BundleSet)
    roots: tuple[bytes, ...] = ()
    error: str | None = None

    @property
    def has_material(self) -> bool:
        return bool(self.svids or self.bundles or self.roots)


@runtime_checkable
class IdentitySource(Protocol):
    """Gives identities to an IdentityStore. Made without starting anything.

    After a fork the child calls `start` again, with a callback of its own: a source has to notice that its threads are gone
    (`meshlib.runtime.fork.register`).
    """

    def start(self, on_update: Callable[[IdentityUpdate], None]) -> None:
        """Begin to deliver updates, on any thread, one at a time, the first one soon. Never blocks for long."""

    def close(self) -> None:
        """Deliver nothing any longer, end all threads. Idempotent."""
