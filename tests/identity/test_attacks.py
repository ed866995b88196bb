"""Peers that must not get through. Each test acts as a transport does, and looks at what the other side has read: nothing."""

from __future__ import annotations

import ssl
from collections.abc import Callable

import pytest
from cryptography import x509

from meshlib.errors import IdentityError
from meshlib.identity.client import ClientSecurity
from meshlib.identity.server import ServerSecurity
from meshlib.resources.tls import CertificateValidation, TlsVersion
from tests.identity.ca import CA_USAGE, CLIENT, SERVER, Issued, TestCA, make_key, usage
from tests.identity.configs import bare_client, bare_server, client, match, roots, server, spiffe
from tests.identity.tls import Ends, join

SECRET = b"GET /secret HTTP/1.1\r\n\r\n"
ANSWER = b"the answer"

OWN = "spiffe://td.example/ns/a/sa/own"
GOOD = "spiffe://td.example/ns/a/sa/srv"

CA = TestCA("td.example")
FEDERATED = TestCA("federated.example")
STRANGER = TestCA("stranger.example")
SELF_KEY = make_key()

NAME_CONSTRAINT = x509.NameConstraints(
    permitted_subtrees=[x509.UniformResourceIdentifier("other.example")], excluded_subtrees=None
)


def self_signed() -> Issued:
    own = TestCA("td.example", ca=False, key_usage=usage("digital_signature"), key=SELF_KEY)
    return Issued(certificate=own.certificate, private=SELF_KEY)


def as_leaf(ca: TestCA) -> Issued:
    return Issued(certificate=ca.certificate, private=ca.key)


FORGED: dict[str, Callable[[], Issued]] = {
    "wrong trust domain, unknown CA": lambda: STRANGER.issue("spiffe://stranger.example/ns/a/sa/srv"),
    "right id, unknown CA": lambda: STRANGER.issue(GOOD),
    "right id, signed by a federated domain's CA": lambda: FEDERATED.issue(GOOD),
    "federated id, signed by the own domain's CA": lambda: CA.issue("spiffe://federated.example/ns/a/sa/srv"),
    "no SAN": CA.issue,
    "a DNS name only": lambda: CA.issue(dns=["srv.example"]),
    "two URI SANs, the good one first": lambda: CA.issue(GOOD, "spiffe://td.example/other"),
    "two URI SANs, the good one last": lambda: CA.issue("spiffe://td.example/other", GOOD),
    "two URI SANs, one of another scheme": lambda: CA.issue("https://td.example/x", GOOD),
    "the same URI SAN twice": lambda: CA.issue(GOOD, GOOD),
    "expired": lambda: CA.issue(GOOD, starts=-7200, lifetime=-3600),
    "not yet valid": lambda: CA.issue(GOOD, starts=3600, lifetime=7200),
    "self-signed": self_signed,
    "a signature of another key": lambda: CA.issue(GOOD, signer=make_key()),
    "a CA as a leaf": lambda: as_leaf(CA.intermediate()),
    "the root itself": lambda: as_leaf(CA),
    "a leaf that says it is a CA": lambda: CA.issue(GOOD, ca=True),
    "key usage of a CA": lambda: CA.issue(GOOD, key_usage=CA_USAGE),
    "key usage with keyCertSign": lambda: CA.issue(
        GOOD, key_usage=usage("digital_signature", "key_cert_sign")
    ),
    "key usage with cRLSign": lambda: CA.issue(GOOD, key_usage=usage("digital_signature", "crl_sign")),
    "an unknown critical extension": lambda: CA.issue(
        GOOD,
        extensions=[
            (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.99999.1"), b"\x05\0"), True)
        ],
    ),
    "below a CA that may not sign": lambda: CA.intermediate(key_usage=usage("crl_sign")).issue(GOOD),
    "below a CA that is none": lambda: CA.intermediate(ca=False).issue(GOOD),
    "below another leaf": lambda: CA.intermediate(ca=False, key_usage=usage("digital_signature")).issue(GOOD),
    "below too many CAs": lambda: CA.intermediate(path_length=0).intermediate().issue(GOOD),
    "below an expired CA": lambda: CA.intermediate(starts=-7200, lifetime=-3600).issue(GOOD),
    "outside the name constraints": lambda: CA.intermediate(extensions=[(NAME_CONSTRAINT, True)]).issue(GOOD),
    "upper case in the trust domain": lambda: CA.issue("spiffe://TD.example/ns/a/sa/srv"),
    "upper case in the scheme": lambda: CA.issue("SPIFFE://td.example/ns/a/sa/srv"),
    "path traversal": lambda: CA.issue("spiffe://td.example/ns/x/../a/sa/srv"),
    "a dot segment": lambda: CA.issue("spiffe://td.example/./ns/a/sa/srv"),
    "an empty segment": lambda: CA.issue("spiffe://td.example//ns/a/sa/srv"),
    "percent-encoding": lambda: CA.issue("spiffe://td.example/ns/a/sa/%73rv"),
    "an encoded slash": lambda: CA.issue("spiffe://td.example/ns/a%2fsa/srv"),
    "an encoded trust domain": lambda: CA.issue("spiffe://td%2eexample/ns/a/sa/srv"),
    "over-long": lambda: CA.issue("spiffe://td.example/" + "a" * 2048),
    "an over-long trust domain": lambda: CA.issue(f"spiffe://{'d' * 256}/ns/a/sa/srv"),
    "a port": lambda: CA.issue("spiffe://td.example:443/ns/a/sa/srv"),
    "a user": lambda: CA.issue("spiffe://a@td.example/ns/a/sa/srv"),
    "a query": lambda: CA.issue(GOOD + "?x"),
    "a slash at the end": lambda: CA.issue(GOOD + "/"),
    "a newline at the end": lambda: CA.issue(GOOD + "\n"),
    "a NUL": lambda: CA.issue(GOOD + "\0.example"),
    "a trust domain without a path": lambda: CA.issue("spiffe://td.example"),
    "another scheme": lambda: CA.issue("https://td.example/ns/a/sa/srv"),
    "wrong id in the right domain": lambda: CA.issue("spiffe://td.example/ns/a/sa/other"),
    "a longer id": lambda: CA.issue(GOOD + "2"),
    "an id of another case": lambda: CA.issue(GOOD.replace("srv", "Srv")),
}
"""Certificates that claim to be GOOD."""

FOR_OTHERS: dict[str, dict[str, Callable[[], Issued]]] = {
    "server": {"for clients only": lambda: CA.issue(GOOD, eku=[CLIENT])},
    "client": {"for servers only": lambda: CA.issue(GOOD, eku=[SERVER])},
}

VALIDATIONS: dict[str, CertificateValidation] = {
    "SPIFFE": spiffe(CA, FEDERATED, sans=(match(GOOD),)),
    "SPIFFE, one domain": spiffe(CA, sans=(match(GOOD),)),
    "roots": roots(CA, sans=(match(GOOD),)),
}

VERSIONS = (TlsVersion.TLSv1_2, TlsVersion.TLSv1_3)


def cases(side: str) -> list[object]:
    return [
        pytest.param(make, how, id=f"{name}-{how}")
        for name, make in {**FORGED, **FOR_OTHERS[side]}.items()
        for how in VALIDATIONS
    ]


def call(security: ClientSecurity, context: ssl.SSLContext) -> tuple[Ends, BaseException | None]:
    """What a transport does: shake hands, look at the peer, and only then send."""
    handshake = security.handshake()
    ends = join(handshake.context, context, handshake.server_hostname)
    error: BaseException | None = ends.errors.get("client")
    if error is None:
        try:
            handshake.verify(ends.client)
        except IdentityError as refused:
            error = refused
        else:
            ends.client.write(SECRET)
            ends.move()
    if error is not None:
        assert handshake.text(error, ends.client).startswith("TLS_error:|2684"), handshake.text(error)
    return ends, error


def heard(end: ssl.SSLObject) -> bytes:
    try:
        return end.read(1000)
    except ssl.SSLError:
        return b""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", VALIDATIONS)
def test_the_good_one_is_served(how: str, version: TlsVersion) -> None:
    ends, error = call(client(VALIDATIONS[how], version=version), bare_server(CA.issue(GOOD), version))
    assert error is None
    assert heard(ends.server) == SECRET


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("make", "how"), cases("server"))
def test_no_byte_goes_to_a_server_that_is_not_the_right_one(
    make: Callable[[], Issued], how: str, version: TlsVersion
) -> None:
    ends, error = call(client(VALIDATIONS[how], version=version), bare_server(make(), version))
    assert error is not None
    assert heard(ends.server) == b""
    if isinstance(error, IdentityError):
        assert error.flags == "UF"
        assert error.expected
        assert error.got


def serve(security: ServerSecurity, context: ssl.SSLContext) -> tuple[Ends, BaseException | None]:
    """What a server does: shake hands, look at the caller, and only then answer."""
    ends = join(context, security.context)
    error: BaseException | None = ends.errors.get("server")
    if error is None:
        try:
            security.verify(ends.server)
        except IdentityError as refused:
            error = refused
        else:
            ends.server.write(ANSWER)
            ends.move()
    return ends, error


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("how", VALIDATIONS)
def test_the_good_one_is_answered(how: str, required: bool, version: TlsVersion) -> None:
    security = server(VALIDATIONS[how], CA.issue(OWN), required=required, version=version)
    ends, error = serve(security, bare_client(CA.issue(GOOD), version))
    assert error is None
    assert heard(ends.client) == ANSWER


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(("make", "how"), cases("client"))
def test_no_byte_goes_to_a_client_that_is_not_the_right_one(
    make: Callable[[], Issued], how: str, required: bool, version: TlsVersion
) -> None:
    security = server(VALIDATIONS[how], CA.issue(OWN), required=required, version=version)
    ends, error = serve(security, bare_client(make(), version))
    assert error is not None
    assert heard(ends.client) == b""


@pytest.mark.parametrize("how", VALIDATIONS)
@pytest.mark.parametrize("make", FORGED.values(), ids=FORGED)
def test_a_chain_without_a_handshake_is_judged_alike(make: Callable[[], Issued], how: str) -> None:
    """As a grpc server asks, whose core has verified the chain against the roots of all trust domains."""
    security = server(VALIDATIONS[how], CA.issue(OWN))
    assert security.verify_chain(CA.issue(GOOD).chain_der) is not None
    with pytest.raises(IdentityError):
        security.verify_chain(make().chain_der)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_strips_its_certificate(version: TlsVersion) -> None:
    security = server(VALIDATIONS["SPIFFE"], CA.issue(OWN), version=version)
    ends, error = serve(security, bare_client(None, version))
    assert error is not None
    assert heard(ends.client) == b""
    with pytest.raises(IdentityError, match="no certificate"):
        security.verify_chain(())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("validate", [spiffe, roots])
def test_revoked(validate: Callable[..., CertificateValidation], version: TlsVersion) -> None:
    revoked, fine = CA.issue(GOOD), CA.issue(GOOD)
    validation = validate(CA, crl=CA.crl(revoked))
    ends, error = call(client(validation, version=version), bare_server(revoked, version))
    assert "revoked" in str(error)
    assert heard(ends.server) == b""
    ends, error = call(client(validation, version=version), bare_server(fine, version))
    assert error is None
    security = server(validation, CA.issue(OWN), version=version)
    ends, error = serve(security, bare_client(revoked, version))
    assert "revoked" in str(error)
    assert heard(ends.client) == b""
    ends, error = serve(security, bare_client(fine, version))
    assert error is None


def test_a_plaintext_server_where_tls_is_required() -> None:
    handshake = client(VALIDATIONS["SPIFFE"]).handshake()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = handshake.context.wrap_bio(incoming, outgoing, server_hostname=handshake.server_hostname)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    incoming.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    with pytest.raises(ssl.SSLError) as caught:
        tls.do_handshake()
    assert SECRET not in hello + outgoing.read()
    text = "TLS_error:|268435703:SSL_routines:OPENSSL_internal:WRONG_VERSION_NUMBER:TLS_error_end"
    assert handshake.text(caught.value) == text
    with pytest.raises(IdentityError):
        handshake.verify(tls)


def test_before_the_handshake_is_over_nobody_is_verified() -> None:
    handshake = client(VALIDATIONS["SPIFFE"]).handshake()
    tls = handshake.context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO())
    with pytest.raises(IdentityError, match="no certificate"):
        handshake.verify(tls)


def test_a_federated_peer_is_served_when_its_own_domain_vouches() -> None:
    friend = "spiffe://federated.example/ns/b/sa/x"
    validation = spiffe(CA, FEDERATED)
    for issued in (FEDERATED.issue(friend), FEDERATED.intermediate().issue(friend), CA.issue(GOOD)):
        ends, error = call(client(validation), bare_server(issued, TlsVersion.TLSv1_2))
        assert error is None
        assert heard(ends.server) == SECRET
    _, error = call(client(spiffe(CA)), bare_server(FEDERATED.issue(friend), TlsVersion.TLSv1_2))
    assert error is not None


def test_cross_signed_by_a_federated_ca() -> None:
    """A chain that OpenSSL may end at the wrong domain's root is still judged by the right one's."""
    key = make_key()
    own = TestCA("td.example", subject="shared", key=key)
    cross = FEDERATED.intermediate(subject="shared", key=key)
    issued = own.issue(GOOD)
    both = Issued(certificate=issued.certificate, private=issued.private, intermediates=(cross.certificate,))
    _, error = call(client(spiffe(own, FEDERATED)), bare_server(both, TlsVersion.TLSv1_2))
    assert error is None
    _, error = call(client(spiffe(CA, FEDERATED)), bare_server(both, TlsVersion.TLSv1_2))
    assert isinstance(error, IdentityError), "the chain leads to the federated root only"
