"""TLS to upstreams: what an UpstreamTls has become with the material that there is, and each handshake made with it."""

from __future__ import annotations

import dataclasses
import encodings.idna  # noqa: F401 - not at the first handshake: a fork meanwhile would leave its lock held in the child
import ipaddress
import math
import ssl
from collections.abc import Callable

from meshlib.errors import IdentityError
from meshlib.identity.contexts import ContextCache, ContextSpec
from meshlib.identity.expiry import Life, copy_of
from meshlib.identity.failure import transport_failure
from meshlib.identity.peer import Peer, presented_chain, verified_chain
from meshlib.identity.resolve import NOT_SUPPLIED, Materials, Memo, Resolved, resolve
from meshlib.identity.verify import Verifier
from meshlib.resources.matching import StringKind
from meshlib.resources.tls import SanType, UpstreamTls
from meshlib.routing.authority import without_port

__all__ = ["ClientHandshake", "ClientSecurity"]


USUAL = (("http/1.1",), ("h2",))
"""What transports offer. Contexts with other lists are made when they are asked for first."""


class ClientHandshake:
    """One connection's handshake, made under one epoch.

    context: to wrap with, never changed. server_hostname: the SNI, None for none. not_after: of the own certificate, seconds
    since the epoch, inf without one: the connection is not to be used for new calls after that.
    """

    __slots__ = (
        "_current",
        "_host",
        "_lent",
        "_name",
        "_peer",
        "_ready",
        "context",
        "epoch",
        "not_after",
        "server_hostname",
    )

    def __init__(
        self,
        ready: _Ready,
        current: Callable[[], _Ready],
        context: ssl.SSLContext,
        server_hostname: str | None,
        name: str,
        host: str,
    ) -> None:
        """current: the material in force."""
        self._ready = ready
        self._current = current
        self._peer: Peer | None = None
        self._lent = False
        self._name = name
        self._host = host
        self.context = context
        self.server_hostname = server_hostname
        self.epoch = ready.epoch
        self.not_after = ready.life.not_after

    def lend(self) -> Resolved:
        """The own certificates, and what is trusted: for those who have another TLS library shake hands.

        Whom that lets in is not known here, so that the connection is not `trusted` when anybody is trusted no longer.
        """
        self._lent = True
        return self._ready.resolved

    @property
    def trusted(self) -> bool:
        """The authority that the peer was verified by has not been withdrawn; True until `verify`, which judges by what is in
        force then. What else has changed is told by ClientSecurity.trust_epoch."""
        ready = self._current()
        if ready is self._ready:
            return True
        trust = ready.resolved.trust
        if self._lent:
            return trust.covers(self._ready.resolved.trust)
        return self._peer is None or trust.still_trusts(self._peer)

    @property
    def own(self) -> bytes:
        """The certificate that the server may ask for, DER; empty for none. Of several, the first."""
        svids = self._ready.resolved.svids
        return svids[0].chain[0] if svids else b""

    def verify(self, tls: ssl.SSLObject | ssl.SSLSocket) -> Peer:
        """Who the server is. To be called when the handshake is over, before a byte is written or given to anybody.

        Raises:
            IdentityError: it may not be talked to; close the connection.
        """
        presented, path = presented_chain(tls), verified_chain(tls)
        while True:
            ready = self._current()
            # What OpenSSL has found, it has found among the authorities of before.
            verified = path if ready is self._ready else ()
            self._peer = peer = ready.verifier.check(
                presented, verified, ready.life.now(), sni=self._name, host=self._host
            )
            # Whoever withdraws an authority next sees this peer.
            if self._current() is ready:
                return peer

    def text(self, error: BaseException, tls: ssl.SSLObject | ssl.SSLSocket | None = None) -> str:
        """Envoy's words for what the handshake, `verify` or the first read ended with; empty where it has none.

        tls: the object of the handshake, from which the certificate at fault is known.
        """
        ready = self._ready
        if tls is not None and isinstance(error, ssl.SSLCertVerificationError):
            error = ready.verifier.explain(error, presented_chain(tls), ready.life.now())
        return transport_failure(error, None if tls is None else presented_chain(tls), self._ready.life.now())


@dataclasses.dataclass(frozen=True, slots=True)
class _Ready:
    """Material in force, with what was made of it.

    contexts: by ALPN lists; grows by what is asked for. used: those that handshakes began with; the others are not made again for
    the next material. epoch, trust_epoch: as ClientSecurity's.
    """

    resolved: Resolved
    spec: ContextSpec
    verifier: Verifier
    life: Life
    epoch: int
    trust_epoch: int
    contexts: dict[tuple[str, ...], ssl.SSLContext]
    used: set[tuple[str, ...]] = dataclasses.field(default_factory=set)


class ClientSecurity:
    """See `meshlib.identity.store.IdentityStore.client`. Thread-safe; reads take no lock."""

    __slots__ = ("__weakref__", "_cache", "_now", "_problem", "_ready", "_start", "tls")

    def __init__(
        self, tls: UpstreamTls, cache: ContextCache, now: Callable[[], float], start: Callable[[], None]
    ) -> None:
        """now: seconds since the epoch. start: begins to watch what material comes from, costs nothing when it has."""
        self.tls = tls
        self._cache = cache
        self._now = now
        self._start = start
        self._ready: _Ready | None = None
        self._problem = IdentityError("there is no material yet")

    @property
    def material(self) -> Resolved | None:
        """The own certificates, and what is trusted; None until there is any."""
        ready = self._ready
        return None if ready is None else ready.resolved

    @property
    def epoch(self) -> int:
        """Grows with each rotation: of the own certificate, or of what is trusted, unless only authorities came or went.

        0 until there is material.
        """
        ready = self._ready
        return 0 if ready is None else ready.epoch

    @property
    def trust_epoch(self) -> int:
        """Grows when connections of before are of no more use, whoever is at their other end: we are somebody else, or there is
        more to what is trusted than authorities that came or went. 0 until there is material.
        """
        ready = self._ready
        return 0 if ready is None else ready.trust_epoch

    @property
    def principals(self) -> tuple[str, str]:
        """The URI SAN that we show, and the one that peers must have, for metrics; empty where there is none, or not just one."""
        ready = self._ready
        if ready is None:
            return "", ""
        own = [uri for svid in ready.resolved.svids[:1] for uri in svid.uri_sans[:1]]
        wanted = ready.resolved.trust.match_sans
        exact = (
            len(wanted) == 1
            and wanted[0].san_type is SanType.URI
            and wanted[0].match.kind is StringKind.EXACT
        )
        return own[0] if own else "", wanted[0].match.value if exact else ""

    def handshake(
        self, *, authority: str = "", hostname: str = "", alpn: tuple[str, ...] = ()
    ) -> ClientHandshake:
        """Begin one.

        authority: of the request (`:authority`, or the header that override_auto_sni_header names), hostname: of the endpoint;
        only for the SNI and the names that configurations ask for. alpn: what to offer when the configuration names nothing.

        Raises:
            IdentityError: a secret has not come, the own certificate is over, or the SNI can't be sent.
        """
        self._start()
        ready = self._ready
        if ready is None:
            raise copy_of(self._problem)
        ready.life.check()
        protocols = self.tls.common.alpn or alpn
        ready.used.add(protocols)
        context = ready.contexts.get(protocols)
        if context is None:
            spec = dataclasses.replace(ready.spec, alpn=protocols)
            context = ready.contexts[protocols] = self._cache.get(spec)
        tls = self.tls
        host = without_port(authority) if tls.auto_sni or tls.auto_san_validation else ""
        name = _server_name(tls, host, hostname)
        return ClientHandshake(
            ready,
            self._in_force,
            context,
            name or None,
            name if tls.auto_sni_san_validation else "",
            host.strip("[]") if tls.auto_san_validation else "",
        )

    def _in_force(self) -> _Ready:
        ready = self._ready
        assert ready is not None
        return ready

    def refresh(
        self, materials: Materials, memo: Memo, warn: Callable[[str], None], pause: Callable[[], None]
    ) -> bool:
        """Look at the material again; whether anything has changed for new connections. Only the store calls it, one at a time.

        What can't be used leaves the last good material in force, and is given to warn. pause: called after each context.
        """
        before = self._ready
        try:
            resolved = resolve(self.tls.common, materials, memo)
            if self.tls.auto_sni_san_validation and not resolved.trust.verifies_chain:
                raise IdentityError(
                    "auto_sni_san_validation without a trusted CA is insecure and not allowed",
                    reason=NOT_SUPPLIED,
                    expected="a trusted CA",
                    got="none",
                )
            if before is not None and before.resolved == resolved:
                return False
            self._ready = self._prepare(resolved, before, pause)
        except IdentityError as error:
            if before is not None:
                warn(f"the last good TLS material stays in force: {error}")
            self._problem = error
            return False
        return True

    def _prepare(self, resolved: Resolved, before: _Ready | None, pause: Callable[[], None]) -> _Ready:
        common, trust = self.tls.common, resolved.trust
        epoch = trust_epoch = 1
        if before is not None:
            epoch = before.epoch + (not resolved.keeps(before.resolved))
            kept = epoch == before.epoch or resolved.renews(before.resolved)
            trust_epoch = before.trust_epoch + (not kept)
        verify = trust.verifies_chain and not trust.accept_untrusted
        spec = ContextSpec(
            server=False,
            svids=resolved.svids,
            verify=ssl.CERT_REQUIRED if verify else ssl.CERT_NONE,
            roots=trust.anchors,
            system_roots=trust.system_roots,
            partial_chain=trust.partial_chain,
            ignore_time=trust.allow_expired,
            minimum=common.minimum,
            maximum=common.maximum,
            ciphers=common.cipher_suites,
            curves=common.curves,
            alpn=common.alpn,
        )
        first = (common.alpn,) if common.alpn else USUAL
        # A copy: a call may ask for another list meanwhile.
        asked_for = first if before is None else tuple(before.used) or first
        contexts = {}
        for alpn in asked_for:
            contexts[alpn] = self._cache.get(dataclasses.replace(spec, alpn=alpn))
            pause()
        return _Ready(
            resolved=resolved,
            spec=spec,
            verifier=Verifier(trust, server=False, rsa_usage=self.tls.enforce_rsa_key_usage),
            life=Life(resolved.svids, self._now),
            epoch=epoch,
            trust_epoch=trust_epoch,
            contexts=contexts,
        )

    def __repr__(self) -> str:
        ready = self._ready
        until = (
            "nothing"
            if ready is None
            else "no certificate"
            if math.isinf(ready.life.not_after)
            else "a certificate"
        )
        return f"<ClientSecurity with {until}, epoch {self.epoch}>"


def _server_name(tls: UpstreamTls, host: str, hostname: str) -> str:
    """The SNI, empty for none. An address is never taken from the request."""
    if tls.auto_sni and host and not _is_address(host):
        name = host
    elif tls.auto_host_sni and hostname:
        name = hostname
    else:
        name = tls.sni
    if name:
        try:
            name.encode("idna")
        except UnicodeError:
            raise IdentityError(
                f"{name[:80]!r} can't be sent as SNI", expected="a host name", got=name[:80]
            ) from None
        if name.startswith("."):
            raise IdentityError(f"{name[:80]!r} can't be sent as SNI", expected="a host name", got=name[:80])
    return name


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
