"""TLS to callers: what a DownstreamTls, or the workload's own identity, has become with the material that there is."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Sequence

from meshlib.errors import IdentityError
from meshlib.identity.contexts import ContextCache, ContextSpec, RotatingContext, apply_settings
from meshlib.identity.expiry import Life, copy_of
from meshlib.identity.failure import envoys_alert
from meshlib.identity.material import to_pem
from meshlib.identity.peer import Peer, presented_chain, verified_chain
from meshlib.identity.resolve import Materials, Memo, Resolved, resolve, resolve_default
from meshlib.identity.source import IdentityUpdate
from meshlib.identity.trust import Trust
from meshlib.identity.verify import Verifier
from meshlib.policy.rotation import within
from meshlib.resources.tls import CertificateValidation, DownstreamTls

__all__ = ["ServerSecurity"]


@dataclasses.dataclass(frozen=True, slots=True)
class _Ready:
    """Material in force, with what was made of it.

    exchanged: from when to when (seconds since the epoch) connections of the epoch before this one are exchanged, since only the
    certificate was renewed; None: at once.
    """

    resolved: Resolved
    verifier: Verifier
    life: Life
    epoch: int
    context: ssl.SSLContext
    exchanged: tuple[float, float] | None


class ServerSecurity:
    """See `meshlib.identity.store.IdentityStore.server`. Thread-safe; reads take no lock.

    tls None: the workload's default identity is shown, and every caller needs a certificate of a trust domain whose bundle it
    has. context: for a server that takes one once; what it makes is always of this moment (`current`).
    """

    __slots__ = ("__weakref__", "_cache", "_now", "_problem", "_ready", "_start", "alpn", "context", "tls")

    def __init__(
        self,
        tls: DownstreamTls | None,
        cache: ContextCache,
        now: Callable[[], float],
        start: Callable[[], None],
        alpn: tuple[str, ...] = (),
    ) -> None:
        """now: seconds since the epoch. alpn: what is offered when the configuration names nothing."""
        self.tls = tls
        self.alpn = alpn if tls is None else tls.common.alpn or alpn
        self._cache = cache
        self._now = now
        self._start = start
        self._ready: _Ready | None = None
        self._problem = IdentityError("there is no material yet")
        self.context = RotatingContext(self)
        self.configure(self.context)

    def configure(self, context: ssl.SSLContext) -> None:
        """Give a context that makes its own objects all settings but the material, which its `sni_callback` brings.

        Raises:
            IdentityError: OpenSSL does not take one of them.
        """
        apply_settings(context, self._spec())

    @property
    def material(self) -> Resolved | None:
        """The own certificates, and what is trusted; None until there is any."""
        ready = self._ready
        return None if ready is None else ready.resolved

    @property
    def epoch(self) -> int:
        """As ClientSecurity.epoch."""
        ready = self._ready
        return 0 if ready is None else ready.epoch

    def outdated(self, epoch: int, lot: float, peer: Peer | None) -> bool:
        """Whether a connection of this epoch is to be exchanged. lot: in [0, 1), drawn once for the connection.

        At once when its peer is trusted no longer, or anything but authorities has changed in what is trusted; at a time of its
        own when the certificate was renewed (`policy.rotation`).
        """
        ready = self._ready
        if ready is None:
            return False
        if peer is not None and not ready.resolved.trust.still_trusts(peer):
            return True
        if ready.epoch == epoch:
            return False
        if ready.exchanged is None or ready.epoch != epoch + 1:
            return True
        begin, end = ready.exchanged
        return self._now() >= begin + lot * (end - begin)

    @property
    def not_after(self) -> float:
        """The end of the own certificate, seconds since the epoch; 0 while there is none."""
        ready = self._ready
        return 0.0 if ready is None else ready.life.not_after

    @property
    def current(self) -> ssl.SSLContext | None:
        """The context for a handshake that begins now; None when there is nothing to show: the handshake has to fail.

        A certificate that is over is still shown when a configuration names it, as Envoy does: it is the caller who refuses it.
        The workload's own identity is not.
        """
        self._start()
        ready = self._ready
        if ready is None:
            return None
        try:
            ready.life.check()
        except IdentityError as error:
            self._problem = error
            if self.tls is None:
                return None
        return ready.context

    def verify(self, tls: ssl.SSLObject | ssl.SSLSocket) -> Peer | None:
        """Who the caller is, when the handshake is over; None when it shows no certificate and need not.

        Raises:
            IdentityError: it may not be served; close the connection.
        """
        # A session that is resumed says what was verified once, under the trust of that time.
        verified = () if tls.session_reused else verified_chain(tls)
        return self._check(presented_chain(tls), verified)

    def alert(self, record: bytes, error: ssl.SSLError) -> bytes:
        """What to send to a caller whose handshake failed with this error, where OpenSSL would send this record."""
        ready = self._ready
        return envoys_alert(
            record, error, spiffe=ready is not None and ready.resolved.trust.bundles is not None
        )

    def verify_chain(self, chain: Sequence[bytes]) -> Peer | None:
        """The same for a server whose TLS is not Python's (grpc). chain: DER, leaf first, as the caller sent it; may be empty."""
        return self._check(chain, ())

    def pem(self) -> tuple[bytes, bytes, bytes]:
        """Private key, certificate chain and trusted certificates, PEM: for grpc's server credentials, and nothing else.

        The certificates are those of all trust domains: `verify_chain` has to follow.

        Raises:
            IdentityError: there is nothing to show, or, of the workload's own identity, it is over.
        """
        self._start()
        ready = self._ready
        if ready is None or not ready.resolved.svids:
            raise copy_of(self._problem)
        if self.tls is None:
            ready.life.check()
        svid = ready.resolved.svids[0]
        return svid.private_key.reveal(), svid.chain_pem(), to_pem(ready.resolved.trust.anchors)

    @property
    def own_uris(self) -> tuple[str, ...]:
        """URI SANs of the certificate that callers are shown; empty while there is none."""
        ready = self._ready
        return ready.resolved.svids[0].uri_sans if ready is not None and ready.resolved.svids else ()

    @property
    def own(self) -> bytes:
        """The certificate that callers are shown, DER; empty while there is none. Of several, the first."""
        ready = self._ready
        return ready.resolved.svids[0].chain[0] if ready is not None and ready.resolved.svids else b""

    @property
    def requires_certificate(self) -> bool:
        """A caller without a certificate is refused.

        As in Envoy not only by require_client_certificate: the SPIFFE validator, matchers for names and pins do it, too.
        """
        ready = self._ready
        return self._verify_mode(None if ready is None else ready.resolved.trust) is ssl.CERT_REQUIRED

    @property
    def asks_for_certificate(self) -> bool:
        """A caller may show a certificate, which is verified then."""
        ready = self._ready
        return self._verify_mode(None if ready is None else ready.resolved.trust) is not ssl.CERT_NONE

    def _check(self, chain: Sequence[bytes], verified: Sequence[bytes]) -> Peer | None:
        ready = self._ready
        if ready is None:
            raise copy_of(self._problem)
        if not chain:
            if not self.requires_certificate:
                return None
            raise IdentityError(
                "the caller has shown no certificate",
                expected="a certificate",
                got="none",
                reason="no certificate",
            )
        return ready.verifier.check(chain, verified, ready.life.now())

    def refresh(
        self, materials: Materials, memo: Memo, default: IdentityUpdate | None, warn: Callable[[str], None]
    ) -> bool:
        """As ClientSecurity.refresh. default: of the workload."""
        before = self._ready
        try:
            common = None if self.tls is None else self.tls.common
            resolved = resolve_default(default) if common is None else resolve(common, materials, memo)
            if before is not None and before.resolved == resolved:
                return False
            self._ready = self._prepare(resolved, before)
        except IdentityError as error:
            if before is not None:
                warn(f"the last good TLS material stays in force: {error}")
            self._problem = error
            return False
        return True

    def _prepare(self, resolved: Resolved, before: _Ready | None) -> _Ready:
        trust = resolved.trust
        mode = self._verify_mode(trust)
        if mode is not ssl.CERT_NONE and (trust.accept_untrusted or not trust.verifies_chain):
            raise IdentityError(
                "a server can't ask for certificates that it does not verify: give a trusted CA"
            )
        epoch, exchanged = 1, None
        if before is not None and resolved.keeps(before.resolved):
            epoch, exchanged = before.epoch, before.exchanged
        elif before is not None:
            epoch = before.epoch + 1
            exchanged = self._time_of(before) if resolved.renews(before.resolved) else None
        spec = dataclasses.replace(
            self._spec(),
            verify=mode,
            svids=resolved.svids,
            roots=trust.anchors,
            system_roots=trust.system_roots,
            ignore_time=trust.allow_expired,
        )
        return _Ready(
            resolved=resolved,
            verifier=Verifier(trust, server=True),
            life=Life(resolved.svids, self._now),
            epoch=epoch,
            context=self._cache.get(spec),
            exchanged=exchanged,
        )

    def _time_of(self, before: _Ready) -> tuple[float, float]:
        now = self._now()
        time = within(before.life.not_after - now)
        return now + time, now + 2 * time

    def _verify_mode(self, trust: Trust | None = None) -> ssl.VerifyMode:
        """trust: None while it is not known. As in Envoy, a caller needs a certificate where more than its chain is looked at."""
        if self.tls is None or self.tls.require_client_certificate:
            return ssl.CERT_REQUIRED
        common = self.tls.common
        if common.validation is None and common.validation_secret is None:
            return ssl.CERT_NONE
        if _looks_closer(common.validation) if trust is None else trust.wants_certificate:
            return ssl.CERT_REQUIRED
        return ssl.CERT_OPTIONAL

    def _spec(self) -> ContextSpec:
        """All that is known without material."""
        if self.tls is None:
            return ContextSpec(server=True, verify=self._verify_mode(), partial_chain=True, alpn=self.alpn)
        common = self.tls.common
        return ContextSpec(
            server=True,
            verify=self._verify_mode(),
            partial_chain=True,
            minimum=common.minimum,
            maximum=common.maximum,
            ciphers=common.cipher_suites,
            curves=common.curves,
            prefer_client_ciphers=self.tls.prefer_client_ciphers,
            alpn=self.alpn,
        )

    def __repr__(self) -> str:
        return f"<ServerSecurity epoch {self.epoch}>"


def _looks_closer(validation: CertificateValidation | None) -> bool:
    """As Trust.wants_certificate, by what the configuration itself says."""
    return validation is not None and bool(
        validation.spiffe is not None
        or validation.match_sans
        or validation.certificate_hashes
        or validation.certificate_spkis
    )
