"""The SVIDs in force: one for each entry, renewed at half of its life or when its root no longer signs.

Everybody who asks sees the same SVID of an entry until it is renewed. `version` grows with each change that a caller could see;
watchers hear of it then.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from cryptography import x509

from meshlib.controlplane.ca.authority import Authority
from meshlib.controlplane.ca.callers import Caller, Entry
from meshlib.controlplane.ca.root import CRL_LIFE
from meshlib.controlplane.ca.svid import IssuedSvid

__all__ = ["Identities", "View"]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What one caller may see at one moment.

    svids: in the order of the entries, the first is the default one; empty for a caller without an identity. bundles: trust
    domain -> roots, the CA's own first. revocation_lists: of the CA's own trust domain, empty while nothing is revoked.
    """

    version: int
    trust_domain: str
    svids: tuple[IssuedSvid, ...]
    bundles: Mapping[str, tuple[x509.Certificate, ...]]
    revocation_lists: tuple[x509.CertificateRevocationList, ...]


class Identities:
    """The SVIDs of these entries. Renews nothing by itself: `renew` does, and says when it wants to be called again."""

    def __init__(self, authority: Authority, entries: Iterable[Entry] = ()) -> None:
        """Raises: IdentityError, an entry's id is not one of the authority's trust domain."""
        self.authority = authority
        self._lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []
        self._entries: tuple[Entry, ...] = ()
        self._view = View(
            version=0, trust_domain=authority.trust_domain, svids=(), bundles={}, revocation_lists=()
        )
        self._lists_due = math.inf
        self._svids: dict[Entry, tuple[int, IssuedSvid]] = {}
        self._refresh(changed=True, entries=tuple(entries))
        self._unwatch = authority.watch(self._authority_changed)

    @property
    def version(self) -> int:
        """Grows with each change. Never 0."""
        return self._view.version

    @property
    def entries(self) -> tuple[Entry, ...]:
        return self._entries

    def replace(self, entries: Iterable[Entry]) -> None:
        """Take these entries from now on; SVIDs of those that were there before stay.

        Raises:
            IdentityError: an id is not one of the authority's trust domain; nothing is changed.
        """
        wanted = tuple(entries)
        for entry in wanted:
            self.authority.template(entry.spiffe_id, dns_names=entry.dns_names)
        self._refresh(changed=True, entries=wanted)

    def view(self, caller: Caller | None) -> View:
        """What this caller may see now."""
        with self._lock:
            view, held, entries = self._view, self._svids, self._entries
        svids = tuple(held[entry][1] for entry in entries if entry.admits(caller))
        return replace(view, svids=svids)

    @property
    def next_renewal(self) -> float:
        """When `renew` has something to do again: seconds since the epoch; infinity when there is nothing to renew."""
        return min(self._lists_due, *(svid.renew_at for _, svid in self._svids.values()), math.inf)

    def renew(self) -> None:
        """Issue what is missing, past half of its life, or signed by a root that no longer signs."""
        self._refresh(changed=False)

    def _refresh(self, *, changed: bool, entries: tuple[Entry, ...] | None = None) -> None:
        with self._lock:
            if entries is None:
                entries = self._entries
            now = self.authority.clock.time()
            signing = self.authority.state.root.number
            renewed = {
                entry: (signing, self._issue(entry))
                for entry in entries
                if (held := self._svids.get(entry)) is None or held[0] != signing or held[1].renew_at <= now
            }
            view = View(
                version=self._view.version + 1,
                trust_domain=self.authority.trust_domain,
                svids=(),
                bundles=self.authority.bundles,
                revocation_lists=self.authority.revocation_lists(),
            )
            if view.revocation_lists is not self._view.revocation_lists:
                self._lists_due = now + CRL_LIFE / 2 if view.revocation_lists else math.inf
                changed = True
            if not (renewed or changed):
                return
            kept = {entry: held for entry, held in self._svids.items() if entry in entries}
            self._entries, self._svids, self._view = entries, {**kept, **renewed}, view
        for callback in tuple(self._watchers):
            callback()

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each change, on any thread. Returns what ends that."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    def close(self) -> None:
        """Follow the authority no longer."""
        self._unwatch()

    def _issue(self, entry: Entry) -> IssuedSvid:
        return self.authority.issue(
            entry.spiffe_id,
            dns_names=entry.dns_names,
            ttl=entry.ttl,
            key_type=entry.key_type,
            hint=entry.hint,
        )

    def _authority_changed(self) -> None:
        self._refresh(changed=True)
