"""The development CA of one trust domain.

A root is replaced in three steps, so that at every moment each SVID in use is trusted by everybody (`Phase`):

    STEADY     one root signs and is trusted
    PREPARED   a second root is trusted, the first one still signs: time for the bundle to reach everybody
    ACTIVATED  the second root signs, both are trusted: time for every SVID to be renewed

and the third step, back to STEADY, takes the first root out of the bundle. Nothing here waits: `rotate` makes one step, and
whoever calls it decides when. Watchers are called after each change, on the thread that made it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from cryptography import x509

from meshlib.controlplane.ca import keys
from meshlib.controlplane.ca.certificates import Template
from meshlib.controlplane.ca.root import BACKDATE, CRL_LIFE, Root, make_root
from meshlib.controlplane.ca.svid import IssuedSvid
from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.spiffe import SpiffeId
from meshlib.runtime.clock import Clock, SystemClock

__all__ = ["DEFAULT_ROOT_TTL", "DEFAULT_TTL", "Authority", "AuthorityState", "Phase"]

DEFAULT_TTL = 3600.0
"""Seconds that an SVID lives."""

DEFAULT_ROOT_TTL = 30 * 24 * 3600.0


class Phase(Enum):
    """Where a root rotation stands; see the module's text."""

    STEADY = "steady"
    PREPARED = "prepared"
    ACTIVATED = "activated"


_NEXT = {Phase.STEADY: Phase.PREPARED, Phase.PREPARED: Phase.ACTIVATED, Phase.ACTIVATED: Phase.STEADY}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityState:
    """All that an Authority knows, immutable; a change makes another one.

    roots: the trusted ones, oldest first, never empty. signing: which of them signs. sequence: grows with each change of the
    bundle. revoked: (root number, serial, time). federated: the authorities of other trust domains, by their name.
    """

    phase: Phase
    roots: tuple[Root, ...]
    signing: int
    sequence: int
    revoked: tuple[tuple[int, int, float], ...]
    federated: Mapping[str, tuple[x509.Certificate, ...]]

    @property
    def root(self) -> Root:
        """The root that signs."""
        return self.roots[self.signing]

    @property
    def bundle(self) -> tuple[x509.Certificate, ...]:
        """The trusted roots, oldest first."""
        return tuple(root.certificate for root in self.roots)


class Authority:
    """Issues X.509-SVIDs of one trust domain. Keys stay in this process's memory. Usable from any thread.

    authority = Authority("example.org", ttl=60)
    svid = authority.issue("spiffe://example.org/web", dns_names=("web.example.org",))
    """

    def __init__(
        self,
        trust_domain: str,
        *,
        ttl: float = DEFAULT_TTL,
        root_ttl: float = DEFAULT_ROOT_TTL,
        key_type: str = keys.DEFAULT_KEY_TYPE,
        root_key_type: str = keys.DEFAULT_KEY_TYPE,
        intermediate: bool = False,
        clock: Clock | None = None,
        state: AuthorityState | None = None,
    ) -> None:
        """`state`: what an earlier Authority of this trust domain knew; without it a first root is made.

        Raises:
            IdentityError: not the name of a trust domain (SPIFFE ID, section 2.1).
            ConfigError: an unknown key type.
        """
        self.trust_domain = SpiffeId.parse(f"spiffe://{trust_domain}").trust_domain
        self.ttl = ttl
        self.key_type = key_type
        self.clock = clock or SystemClock()
        self._root_key_type = root_key_type
        self._root_ttl = root_ttl
        self._intermediate = intermediate
        self._lock = threading.Lock()
        self._watchers: list[Callable[[], None]] = []
        self._lists: tuple[AuthorityState | None, float, tuple[x509.CertificateRevocationList, ...]] = (
            None,
            0.0,
            (),
        )
        self._state = state or AuthorityState(
            phase=Phase.STEADY, roots=(self._new_root(1),), signing=0, sequence=1, revoked=(), federated={}
        )

    @property
    def state(self) -> AuthorityState:
        """What it knows now."""
        return self._state

    @property
    def bundle(self) -> tuple[x509.Certificate, ...]:
        """The roots that peers of this trust domain are to trust, oldest first."""
        return self._state.bundle

    @property
    def bundles(self) -> dict[str, tuple[x509.Certificate, ...]]:
        """Trust domain -> roots: its own first, then the federated ones by name."""
        state = self._state
        return {self.trust_domain: state.bundle, **dict(sorted(state.federated.items()))}

    def template(
        self, spiffe_id: str, *, dns_names: tuple[str, ...] = (), ttl: float | None = None
    ) -> Template:
        """The template of a correct SVID that begins to live now.

        Raises:
            IdentityError: not a SPIFFE ID with a path, or of another trust domain.
        """
        parsed = SpiffeId.parse(spiffe_id)
        if parsed.trust_domain != self.trust_domain:
            raise IdentityError(
                f"{spiffe_id} is not of the trust domain {self.trust_domain}",
                expected=self.trust_domain,
                got=parsed.trust_domain,
                trust_domain=self.trust_domain,
            )
        if not parsed.path:
            raise IdentityError(
                f"{spiffe_id} is the id of a trust domain, not of a workload", trust_domain=self.trust_domain
            )
        now = self.clock.time()
        return Template(
            uris=(spiffe_id,),
            dns_names=dns_names,
            common_name=dns_names[0] if dns_names else "",
            not_before=now - BACKDATE,
            not_after=min(now + (self.ttl if ttl is None else ttl), self._state.root.not_after),
        )

    def issue(
        self,
        spiffe_id: str,
        *,
        dns_names: tuple[str, ...] = (),
        ttl: float | None = None,
        key_type: str | None = None,
        hint: str = "",
    ) -> IssuedSvid:
        """A new key and an SVID for it, signed by the present root.

        Raises:
            IdentityError: as `template` does.
            ConfigError: an unknown key type.
        """
        return self.issue_from(
            self.template(spiffe_id, dns_names=dns_names, ttl=ttl), key_type=key_type, hint=hint
        )

    def issue_from(self, template: Template, *, key_type: str | None = None, hint: str = "") -> IssuedSvid:
        """Whatever the template says, right or wrong: for tests of those who must refuse it."""
        key = keys.generate(key_type or self.key_type)
        return IssuedSvid(
            spiffe_id=template.uris[0] if len(template.uris) == 1 else "",
            chain=self._state.root.sign(template, key),
            key=key,
            issued_at=self.clock.time(),
            not_after=float(int(template.not_after)),
            hint=hint,
        )

    def rotate(self) -> Phase:
        """Make the next step of a root rotation and say where it leads; three steps are a whole rotation."""
        with self._lock:
            state = self._state
            phase = _NEXT[state.phase]
            if phase is Phase.PREPARED:
                new = self._new_root(state.roots[-1].number + 1)
                state = replace(state, roots=(*state.roots, new), sequence=state.sequence + 1)
            elif phase is Phase.ACTIVATED:
                state = replace(state, signing=len(state.roots) - 1)
            else:
                state = replace(state, roots=state.roots[-1:], signing=0, sequence=state.sequence + 1)
            self._state = replace(state, phase=phase)
        self._tell()
        return phase

    def federate(self, trust_domain: str, roots: Iterable[x509.Certificate]) -> None:
        """Tell everybody to trust these roots for this other trust domain, and only for it. No roots: no longer.

        Raises:
            ConfigError: it is this trust domain.
            IdentityError: not the name of a trust domain.
        """
        name = SpiffeId.parse(f"spiffe://{trust_domain}").trust_domain
        if name == self.trust_domain:
            raise ConfigError(f"{name} is the CA's own trust domain; nothing to federate with")
        with self._lock:
            federated = {**self._state.federated, name: tuple(roots)}
            if not federated[name]:
                del federated[name]
            self._state = replace(self._state, federated=federated, sequence=self._state.sequence + 1)
        self._tell()

    def revoke(self, svid: IssuedSvid) -> None:
        """Put the SVID on its root's revocation list. One that none of the trusted roots signed is none of our business."""
        with self._lock:
            state = self._state
            for root in state.roots:
                if root.signer[0].subject == svid.leaf.issuer:
                    entry = (root.number, svid.serial, self.clock.time())
                    self._state = replace(state, revoked=(*state.revoked, entry))
        self._tell()

    def revocation_lists(self) -> tuple[x509.CertificateRevocationList, ...]:
        """A list of every CA of the trusted roots, or none at all while nothing has been revoked."""
        state, now = self._state, self.clock.time()
        if not state.revoked:
            return ()
        made_from, made_at, lists = self._lists
        if made_from is not state or now - made_at >= CRL_LIFE / 2:
            lists = tuple(
                crl
                for root in state.roots
                for crl in root.revocation_lists(
                    tuple((serial, at) for number, serial, at in state.revoked if number == root.number), now
                )
            )
            self._lists = (state, now, lists)
        return lists

    def watch(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after each change. Returns what ends that."""
        self._watchers.append(callback)
        return lambda: self._watchers.remove(callback) if callback in self._watchers else None

    def _new_root(self, number: int) -> Root:
        return make_root(
            self.trust_domain,
            number,
            key_type=self._root_key_type,
            now=self.clock.time(),
            ttl=self._root_ttl,
            intermediate=self._intermediate,
        )

    def _tell(self) -> None:
        for callback in tuple(self._watchers):
            callback()
