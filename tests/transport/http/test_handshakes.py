"""By which name of Envoy's a TLS connection counts that has failed."""

from __future__ import annotations

import ssl

import pytest

from meshlib.errors import IdentityError
from meshlib.transport.http.handshakes import count_failed


@pytest.mark.parametrize(
    ("error", "names"),
    [
        (ssl.SSLError(1, "alert"), ["connection_error"]),
        (ssl.SSLCertVerificationError(1, "self-signed"), ["fail_verify_error"]),
        (ssl.SSLEOFError(8, "no close_notify"), []),
        (ssl.SSLZeroReturnError(6, "close_notify"), []),
        (IdentityError("x", reason="KEY_USAGE_BIT_INCORRECT"), ["connection_error"]),
        (IdentityError("x", reason="verify cert failed: verify SAN list"), ["fail_verify_san"]),
        (IdentityError("x", reason="verify cert failed: cert hash and spki"), ["fail_verify_cert_hash"]),
        (IdentityError("x", reason="verify cert failed: X509_verify_cert"), ["fail_verify_error"]),
    ],
)
def test_by_error(error: Exception, names: list[str]) -> None:
    counted: list[str] = []
    count_failed(counted.append, error)
    assert counted == names
