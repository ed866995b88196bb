"""What is counted of TLS handshakes, by the names of Envoy's statistics below `cluster.<name>.ssl.`, whatever the transport."""

from __future__ import annotations

import ssl
from collections.abc import Callable

from meshlib.errors import IdentityError

__all__ = ["Count", "count_done", "count_failed"]

NOT_FOR_SIGNING = "KEY_USAGE_BIT_INCORRECT"
"""Of a certificate whose key usage has no digital signature: BoringSSL refuses it by itself, before anybody verifies it."""

Count = Callable[[str], None]
"""Adds one to the counter of this name."""


def count_done(count: Count, tls: ssl.SSLObject) -> None:
    """The handshake is over, and the peer is verified."""
    count("handshake")
    count(f"versions.{tls.version()}")
    cipher = tls.cipher()
    if cipher is not None:
        count(f"ciphers.{cipher[0]}")


def count_failed(count: Count, error: Exception) -> None:
    """The handshake failed with this error, or what was read after it: of OpenSSL, or of the peer's verification.

    With TLS 1.3 a server refuses its caller by an alert that comes after the handshake. A peer that closes or resets the
    connection is not counted.
    """
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLCertVerificationError):
        if not isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError):
            count("connection_error")
        return
    reason = error.reason if isinstance(error, IdentityError) else ""
    if reason == NOT_FOR_SIGNING:
        count("connection_error")
    elif "SAN" in reason:
        count("fail_verify_san")
    else:
        count("fail_verify_cert_hash" if "cert hash" in reason else "fail_verify_error")
