"""The conformance suite's TLS cases, client and server both here, without a socket: who may connect, and what is said of it.

What an Envoy does in each of them was measured (conformance/tls/cases.yaml); the differences are those of docs/differences.md.
"""

from __future__ import annotations

import pytest

from conformance.tls.case import PLAINTEXT, SILENT, TlsCase, load
from conformance.tls.materials import upstream
from meshlib.errors import IdentityError
from meshlib.identity.failure import transport_failure
from meshlib.identity.store import IdentityStore
from meshlib.resources.tls import DownstreamTls, UpstreamTls
from tests.identity.tls import join
from tests.resources.building import decode_cluster

CASES, MATERIALS = load()
BOTH = [case for case in CASES if case.client != PLAINTEXT and case.server != SILENT]

STRICTER = {
    "server-with-two-uris",
    "spiffe-server-two-uris",
    "spiffe-client-two-uris",
}
"""Refused here: an X.509-SVID has exactly one URI."""

LOOSER = {
    "server-with-a-p384-key",
    "server-with-an-ed25519-key",
}
"""Accepted here: OpenSSL has more curves and signatures than Envoy's default."""

ALERT = "TLS_error:|{}:SSL_routines:OPENSSL_internal:{}:TLS_error_end"
AFTERWARDS = ""
"""Refused by the server when the handshake is over: the client hears no alert, but the end of the connection."""

OTHER_WORDS = {
    "client-expired": "TLS_error:_own_certificate_has_expired",
    "client-expired-tls13": "TLS_error:_own_certificate_has_expired",
    # OpenSSL chooses other alerts than Envoy.
    "client-not-yet-valid": ALERT.format(268436498, "SSLV3_ALERT_BAD_CERTIFICATE"),
    "spiffe-client-domain-unknown": ALERT.format(268436504, "TLSV1_ALERT_UNKNOWN_CA"),
    "client-revoked": AFTERWARDS,
    "client-san-mismatch": AFTERWARDS,
    "spiffe-client-forged": AFTERWARDS,
    "spiffe-client-without-id": AFTERWARDS,
    "spiffe-client-without-san": AFTERWARDS,
    "spiffe-client-upper-case": AFTERWARDS,
}


def configs(case: TlsCase) -> tuple[UpstreamTls, DownstreamTls]:
    assert not isinstance(case.client, str)
    assert not isinstance(case.server, str)
    client = decode_cluster(transport_socket=upstream(case.client, MATERIALS)).tls
    server = decode_cluster(transport_socket=upstream(case.server, MATERIALS)).tls
    assert client is not None
    assert server is not None
    return client, DownstreamTls(
        common=server.common, require_client_certificate=case.server.get("require", False)
    )


def call(case: TlsCase) -> tuple[str, bool]:
    """The client's transport failure text, and whether both would go on."""
    client, server = configs(case)
    security = IdentityStore().client(client)
    secured = IdentityStore().server(server)
    try:
        handshake = security.handshake()
    except IdentityError as error:
        return transport_failure(error), False
    ends = join(handshake.context, secured.context, handshake.server_hostname)
    if "client" in ends.errors:
        return handshake.text(ends.errors["client"], ends.client), False
    try:
        handshake.verify(ends.client)
    except IdentityError as error:
        return handshake.text(error, ends.client), False
    if "server" in ends.errors:
        return "", False
    try:
        secured.verify(ends.server)
    except IdentityError:
        return "", False
    return "", True


@pytest.mark.parametrize("case", BOTH, ids=lambda case: case.name)
def test_who_may_connect_and_what_is_said(case: TlsCase) -> None:
    text, connected = call(case)
    if case.name in STRICTER:
        assert case.connects
        assert not connected
    elif case.name in LOOSER:
        assert not case.connects
        assert connected
    elif case.name in OTHER_WORDS:
        assert not case.connects
        assert not connected
        assert text == OTHER_WORDS[case.name]
    else:
        assert connected is case.connects
        assert text == case.expected["transport"]
