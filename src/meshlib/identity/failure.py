"""Why a TLS connection failed, in Envoy's words (`%UPSTREAM_TRANSPORT_FAILURE_REASON%`), which are those of BoringSSL.

TLS_error:|268435581:SSL_routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED:verify_cert_failed:_...:TLS_error_end
"""

from __future__ import annotations

import datetime as dt
import ssl
from collections.abc import Sequence

from cryptography import x509

from meshlib.errors import IdentityError

__all__ = ["envoys_alert", "refusal_alert", "transport_failure"]

SSL_LIBRARY = 16 << 24
"""BoringSSL's number of its SSL library, in the high byte of an error."""

VERIFY_FAILED = 125

ALERTS = 1000
"""An alert of number n is the reason 1000 + n."""

_ALERTS = {
    10: "SSLV3_ALERT_UNEXPECTED_MESSAGE",
    20: "SSLV3_ALERT_BAD_RECORD_MAC",
    21: "TLSV1_ALERT_DECRYPTION_FAILED",
    22: "TLSV1_ALERT_RECORD_OVERFLOW",
    30: "SSLV3_ALERT_DECOMPRESSION_FAILURE",
    40: "SSLV3_ALERT_HANDSHAKE_FAILURE",
    41: "SSLV3_ALERT_NO_CERTIFICATE",
    42: "SSLV3_ALERT_BAD_CERTIFICATE",
    43: "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    44: "SSLV3_ALERT_CERTIFICATE_REVOKED",
    45: "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    46: "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    47: "SSLV3_ALERT_ILLEGAL_PARAMETER",
    48: "TLSV1_ALERT_UNKNOWN_CA",
    49: "TLSV1_ALERT_ACCESS_DENIED",
    50: "TLSV1_ALERT_DECODE_ERROR",
    51: "TLSV1_ALERT_DECRYPT_ERROR",
    60: "TLSV1_ALERT_EXPORT_RESTRICTION",
    70: "TLSV1_ALERT_PROTOCOL_VERSION",
    71: "TLSV1_ALERT_INSUFFICIENT_SECURITY",
    80: "TLSV1_ALERT_INTERNAL_ERROR",
    86: "TLSV1_ALERT_INAPPROPRIATE_FALLBACK",
    90: "TLSV1_ALERT_USER_CANCELLED",
    100: "TLSV1_ALERT_NO_RENEGOTIATION",
    110: "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
    111: "TLSV1_ALERT_CERTIFICATE_UNOBTAINABLE",
    112: "TLSV1_ALERT_UNRECOGNIZED_NAME",
    113: "TLSV1_ALERT_BAD_CERTIFICATE_STATUS_RESPONSE",
    114: "TLSV1_ALERT_BAD_CERTIFICATE_HASH_VALUE",
    115: "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
    116: "TLSV1_ALERT_CERTIFICATE_REQUIRED",
    120: "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
}

_REASONS = {
    **{name: ALERTS + number for number, name in _ALERTS.items()},
    "APP_DATA_IN_HANDSHAKE": 100,
    "BAD_ECPOINT": 108,
    "BAD_PACKET_LENGTH": 112,
    "BAD_SIGNATURE": 114,
    "CERTIFICATE_VERIFY_FAILED": VERIFY_FAILED,
    "DECODE_ERROR": 137,
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": 139,
    "DIGEST_CHECK_FAILED": 142,
    "HANDSHAKE_FAILURE_ON_CLIENT_HELLO": 154,
    "KEY_USAGE_BIT_INCORRECT": 302,
    "ENCRYPTED_LENGTH_TOO_LONG": 146,
    "HTTPS_PROXY_REQUEST": 155,
    "HTTP_REQUEST": 156,
    "INAPPROPRIATE_FALLBACK": 157,
    "NO_CIPHERS_AVAILABLE": 175,
    "NO_RENEGOTIATION": 182,
    "NO_SHARED_CIPHER": 184,
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": 192,
    "UNEXPECTED_MESSAGE": 223,
    "UNEXPECTED_RECORD": 225,
    "UNSUPPORTED_PROTOCOL": 240,
    "WRONG_CERTIFICATE_TYPE": 241,
    "WRONG_CIPHER_RETURNED": 242,
    "WRONG_CURVE": 243,
    "WRONG_SIGNATURE_TYPE": 245,
    "WRONG_VERSION_NUMBER": 247,
}
"""BoringSSL's numbers of what OpenSSL calls by the same name."""

_RENAMED = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "TLSV1_ALERT_CERTIFICATE_REQUIRED",
    "TLSV1_UNRECOGNIZED_NAME": "TLSV1_ALERT_UNRECOGNIZED_NAME",
    "TLSV1_UNSUPPORTED_EXTENSION": "TLSV1_ALERT_UNSUPPORTED_EXTENSION",
    "TLSV1_CERTIFICATE_UNOBTAINABLE": "TLSV1_ALERT_CERTIFICATE_UNOBTAINABLE",
    "TLSV1_BAD_CERTIFICATE_STATUS_RESPONSE": "TLSV1_ALERT_BAD_CERTIFICATE_STATUS_RESPONSE",
    "TLSV1_BAD_CERTIFICATE_HASH_VALUE": "TLSV1_ALERT_BAD_CERTIFICATE_HASH_VALUE",
    "RECORD_LAYER_FAILURE": "DECRYPTION_FAILED_OR_BAD_RECORD_MAC",
}

_VERIFY_WORDS = {
    18: "self signed certificate",
    19: "self signed certificate in certificate chain",
    24: "invalid CA certificate",
    26: "unsupported certificate purpose",
    79: "invalid CA certificate",
}
"""X509_V_ERR codes whose text differs between OpenSSL and BoringSSL."""

_AT_THE_END = frozenset((2, 19, 20))
"""Codes that are about the last certificate of the chain."""

_NOT_YET, _EXPIRED = 9, 10


def transport_failure(
    error: BaseException, chain: Sequence[bytes] | None = None, now: float | None = None
) -> str:
    """Envoy's text for what a handshake, or the first read after it, ended with; empty where Envoy gives none.

    chain: what the peer sent, DER, leaf first, empty when it had sent none yet, None when that is not known; now, seconds since
    the epoch. They tell which certificate is at fault.
    Envoy gives no text for a connection that just ends, and the system's words for an OSError are the transport's own matter.
    """
    if isinstance(error, IdentityError):
        if error.reason.startswith("verify cert failed"):
            return _text(VERIFY_FAILED, f"CERTIFICATE_VERIFY_FAILED:{error.reason}")
        if error.reason in _REASONS:
            return _text(_REASONS[error.reason], error.reason)
        return f"TLS_error:{_underscored(' ' + (error.reason or error.message))}"
    if isinstance(error, ssl.SSLCertVerificationError):
        depth = _depth(error.verify_code, chain or (), now)
        words = _VERIFY_WORDS.get(error.verify_code, error.verify_message)
        return _text(
            VERIFY_FAILED,
            "CERTIFICATE_VERIFY_FAILED:verify cert failed: X509_verify_cert: certificate verification error "
            f"at depth {depth}: {words}",
        )
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)):
        return ""
    if isinstance(error, ssl.SSLError):
        reason = getattr(error, "reason", None) or ""  # there only when OpenSSL has made the error
        name = _RENAMED.get(reason, reason)
        if name == "SSLV3_ALERT_HANDSHAKE_FAILURE" and chain == ():
            # BoringSSL says so when the alert is the first thing that it hears.
            return _joined(name, "HANDSHAKE_FAILURE_ON_CLIENT_HELLO")
        if name in _REASONS:
            return _text(_REASONS[name], name)
        return f"TLS_error:_{_underscored(name or 'unknown')}"
    return ""


def refusal_alert(error: IdentityError) -> bytes:
    """The TLS 1.2 record that tells a peer why it is refused, with the alert that Envoy sends for the same reason.

    Not encrypted: only for a handshake in which nothing that is has been sent yet.
    """
    number = next((alert for words, alert in _REFUSALS if words in error.reason), _CERTIFICATE_UNKNOWN)
    return bytes((_ALERT, 3, 3, 0, 2, _FATAL, number))


def envoys_alert(record: bytes, error: ssl.SSLError, *, spiffe: bool) -> bytes:
    """The record with which OpenSSL refuses a caller's certificate, with the alert that Envoy chooses.

    spiffe: the SPIFFE validator is in force. What is no alert in the clear (TLS 1.3 encrypts it), or is about something else,
    stays as it is.
    """
    if (
        len(record) != _ALERT_SIZE
        or record[0] != _ALERT
        or not isinstance(error, ssl.SSLCertVerificationError)
    ):
        return record
    if spiffe:
        return record[:-1] + bytes((_CERTIFICATE_UNKNOWN,))
    return record[:-1] + bytes((_CERTIFICATE_EXPIRED,)) if error.verify_code == _NOT_YET else record


_ALERT, _FATAL, _CERTIFICATE_UNKNOWN = 21, 2, 46
_ALERT_SIZE, _CERTIFICATE_EXPIRED = 7, 45
"""ContentType and AlertLevel of RFC 5246, and the alert for everything that has none of its own."""

_REFUSALS = (
    ("certificate revoked", 44),
    ("certificate has expired", 45),
    ("certificate chain too long", 48),
    ("cert hash and spki", 114),
)
"""Envoy's words for a refusal and the number of the alert, where it is not certificate_unknown."""


def _text(reason: int, words: str) -> str:
    return f"TLS_error:{_one(reason, words)}:TLS_error_end"


def _joined(*names: str) -> str:
    return f"TLS_error:{''.join(_one(_REASONS[name], name) for name in names)}:TLS_error_end"


def _one(reason: int, words: str) -> str:
    return f"|{SSL_LIBRARY + reason}:SSL_routines:OPENSSL_internal:{_underscored(words)}"


def _underscored(words: str) -> str:
    return words.replace(" ", "_")


def _depth(code: int, chain: Sequence[bytes], now: float | None) -> int:
    if code in _AT_THE_END:
        return max(len(chain) - 1, 0)
    if code in (_NOT_YET, _EXPIRED) and now is not None:
        moment = dt.datetime.fromtimestamp(now, dt.UTC)
        for depth, der in enumerate(chain):
            certificate = x509.load_der_x509_certificate(der)
            if not certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc:
                return depth
    return 0
