"""SSL contexts, built by hand from what is to be shown and what is to be trusted. A context is never changed once it is in use.

What Python's `ssl` can't do is done after the handshake, in `meshlib.identity.verify`: names, pins, revocation, the
trust domain's own bundle. What is set here is what OpenSSL has to know while it shakes hands.
"""

from __future__ import annotations

import ssl
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Protocol

from meshlib.errors import IdentityError
from meshlib.identity.keyfile import certificate_file
from meshlib.identity.material import Svid
from meshlib.resources.tls import TlsVersion

__all__ = ["ContextCache", "ContextSpec", "RotatingContext", "apply_settings", "build"]

CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-CHACHA20-POLY1305",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
)
"""Envoy's default for TLS 1.2. Those of TLS 1.3 can't be chosen, there as here."""

SECURITY_LEVEL = "@SECLEVEL=2"
"""OpenSSL's: RSA from 2048 bits, no SHA-1."""

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME, which `ssl` does not name."""

_CURVES = {"X25519": "X25519", "P-256": "prime256v1", "P-384": "secp384r1", "P-521": "secp521r1"}
_COMMON = frozenset(("X25519", "P-256"))

_VERSIONS = {TlsVersion.TLSv1_2: ssl.TLSVersion.TLSv1_2, TlsVersion.TLSv1_3: ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSpec:
    """What a context is made of. Equal specs share one context.

    svids: what is shown; several when their keys are of different types; empty for a client that shows nothing.
    verify: whether OpenSSL verifies the peer's chain; ssl.CERT_OPTIONAL (servers): the peer may show none. roots: DER;
    system_roots: the machine's too. partial_chain: a root need not be self-signed. ignore_time: validity is not looked at.
    alpn: in order of preference; empty for none. The rest as in CommonTls.
    """

    server: bool
    svids: tuple[Svid, ...] = ()
    verify: ssl.VerifyMode = ssl.CERT_REQUIRED
    roots: tuple[bytes, ...] = ()
    system_roots: bool = False
    partial_chain: bool = False
    ignore_time: bool = False
    minimum: TlsVersion = TlsVersion.TLS_AUTO
    maximum: TlsVersion = TlsVersion.TLS_AUTO
    ciphers: tuple[str, ...] = ()
    curves: tuple[str, ...] = ()
    prefer_client_ciphers: bool = False
    alpn: tuple[str, ...] = ()


def build(spec: ContextSpec) -> ssl.SSLContext:
    """A new context.

    Raises:
        IdentityError: OpenSSL does not take a cipher, a curve, a certificate or a key; only versions that are no longer
            considered secure are allowed.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if spec.server else ssl.PROTOCOL_TLS_CLIENT)
    apply_settings(context, spec)
    _set_trust(context, spec)
    for svid in spec.svids:
        _load(context, svid)
    return context


def apply_settings(context: ssl.SSLContext, spec: ContextSpec) -> None:
    """All of a spec but its material. Only for a context that is not in use yet. Raises: IdentityError, as `build`."""
    context.check_hostname = False
    context.verify_mode = spec.verify
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_TICKET
    if spec.server:
        context.num_tickets = 0
        if spec.prefer_client_ciphers:
            context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
    else:
        # An end of the stream without close_notify has to be seen: it may be the work of somebody between.
        context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    flags = int(context.verify_flags)
    if spec.partial_chain:
        flags |= int(ssl.VERIFY_X509_PARTIAL_CHAIN)
    if spec.ignore_time:
        flags |= NO_CHECK_TIME
    context.verify_flags = ssl.VerifyFlags(flags)
    _set_versions(context, spec)
    _set_ciphers(context, spec)
    if spec.alpn:
        context.set_alpn_protocols(list(spec.alpn))


class ContextCache:
    """Contexts by what they are made of, as long as somebody uses them. Thread-safe."""

    def __init__(self) -> None:
        self._contexts: weakref.WeakValueDictionary[ContextSpec, ssl.SSLContext] = (
            weakref.WeakValueDictionary()
        )
        self._lock = threading.Lock()

    def get(self, spec: ContextSpec) -> ssl.SSLContext:
        """Raises: IdentityError, as `build`."""
        with self._lock:
            found = self._contexts.get(spec)
            if found is None:
                found = self._contexts[spec] = build(spec)
            return found

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()


class Moment(Protocol):
    """What a RotatingContext follows."""

    @property
    def current(self) -> ssl.SSLContext | None:
        """The context for a handshake that begins now; None: it has to fail."""


class RotatingContext(ssl.SSLContext):
    """What a server is given once and keeps: each connection is made with the context of its moment.

    Sessions are cached in a context, so one that began before a rotation is never resumed after it. Whoever makes objects of
    this context itself, as a subclass of `ssl.SSLObject` does, gets key, chain and trust of the moment by the `sni_callback`,
    which is called without a server name too; everything else (`verify_mode`, versions, ...) is that of this context then.
    """

    _moment: Moment

    def __new__(cls, moment: Moment) -> RotatingContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self, moment: Moment) -> None:
        self._moment = moment
        self.sni_callback = self._greeted

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        current = self._moment.current
        wrap = super().wrap_socket if current is None else current.wrap_socket
        return wrap(*args, **options)

    def wrap_bio(self, *args: Any, **options: Any) -> ssl.SSLObject:
        current = self._moment.current
        wrap = super().wrap_bio if current is None else current.wrap_bio
        return wrap(*args, **options)

    def _greeted(self, tls: Any, name: str | None, context: ssl.SSLContext) -> int | None:
        current = self._moment.current
        if current is None:
            return ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
        tls.context = current
        return None


def _set_versions(context: ssl.SSLContext, spec: ContextSpec) -> None:
    highest = spec.maximum
    if highest is TlsVersion.TLS_AUTO:
        highest = TlsVersion.TLSv1_3 if spec.server else TlsVersion.TLSv1_2
        highest = max(highest, spec.minimum)
    lowest = max(spec.minimum, TlsVersion.TLSv1_2)
    if highest < lowest:
        raise IdentityError(
            f"tls_params allow no version that is secure: the highest is {highest.name}",
            expected="TLS 1.2 or 1.3",
            got=highest.name,
        )
    context.minimum_version = _VERSIONS[lowest]
    context.maximum_version = _VERSIONS[highest]


def _set_ciphers(context: ssl.SSLContext, spec: ContextSpec) -> None:
    names = [name for item in spec.ciphers or CIPHERS for name in item.strip("[]").split("|")]
    try:
        context.set_ciphers(":".join([*names, SECURITY_LEVEL]))
    except ssl.SSLError:
        raise IdentityError(f"none of these cipher suites is known: {', '.join(names)}") from None
    _set_curves(context, spec.curves)


def _set_curves(context: ssl.SSLContext, curves: tuple[str, ...]) -> None:
    """`ssl` takes one curve. Of several, OpenSSL's own list stands in where none in it is weaker than the weakest of them."""
    unknown = [name for name in curves if name not in _CURVES]
    if unknown:
        raise IdentityError(
            f"the curve {unknown[0]} is not known", expected=", ".join(_CURVES), got=unknown[0]
        )
    if curves and (len(curves) == 1 or not _COMMON.intersection(curves)):
        context.set_ecdh_curve(_CURVES[curves[0]])


def _set_trust(context: ssl.SSLContext, spec: ContextSpec) -> None:
    if spec.roots:
        try:
            context.load_verify_locations(cadata=b"".join(spec.roots))
        except ssl.SSLError as error:
            raise IdentityError(f"a trusted certificate can't be used: {error.reason}") from None
    if spec.system_roots:
        context.set_default_verify_paths()


def _load(context: ssl.SSLContext, svid: Svid) -> None:
    with certificate_file(svid.chain_pem(), svid.private_key) as (path, password):
        try:
            context.load_cert_chain(path, password=password)
        except ssl.SSLError as error:
            raise IdentityError(f"OpenSSL does not take the certificate: {error.reason}") from None
