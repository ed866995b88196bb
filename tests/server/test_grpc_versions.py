"""The TLS versions of a configuration hold for gRPC servers too, though C-core can't be told of them."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from meshlib.errors import IdentityError
from meshlib.resources.tls import CertificateValidation, CommonTls, DownstreamTls, TlsCertificate, TlsVersion
from meshlib.server.grpc import MeshInterceptor, listen
from meshlib.server.grpc_inbound import _check_version
from meshlib.server.inbound import Inbound
from tests.server.identities import CLIENT, SERVER, Identities, client_context, identities
from tests.server.servers import SERVICE, blocking_handlers

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


@pytest.mark.parametrize(
    ("lowest", "highest", "spoken", "allowed"),
    [
        (V12, ssl.TLSVersion.MAXIMUM_SUPPORTED, b"TLSv1.2", True),
        (V12, ssl.TLSVersion.MAXIMUM_SUPPORTED, b"TLSv1.3", True),
        (V12, V13, b"something newer", True),
        (V13, V13, b"TLSv1.3", True),
        (V13, V13, b"TLSv1.2", False),
        (V13, V13, None, False),
        (V12, V12, b"TLSv1.2", True),
        (V12, V12, b"TLSv1.3", False),
        (V12, V12, None, False),
    ],
)
def test_versions(
    lowest: ssl.TLSVersion, highest: ssl.TLSVersion, spoken: bytes | None, allowed: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version, context.maximum_version = lowest, highest
    auth = {} if spoken is None else {"ssl_tls_version": [spoken]}
    if allowed:
        _check_version(auth, context)
    else:
        with pytest.raises(IdentityError, match="the caller speaks"):
            _check_version(auth, context)


@pytest.fixture
def known() -> Iterator[Identities]:
    with identities() as made:
        yield made


@pytest.mark.parametrize(("maximum", "code"), [(V12, "16"), (V13, "0")])
def test_a_call(known: Identities, tmp_path: Path, maximum: ssl.TLSVersion, code: str) -> None:
    issued = known.ca.issue(SERVER, dns=["localhost"])
    tls = DownstreamTls(
        common=CommonTls(
            minimum=TlsVersion.TLSv1_3,
            certificates=(TlsCertificate(chain=issued.chain, private_key=issued.key),),
            validation=CertificateValidation(trusted_ca=known.ca.pem),
        ),
        require_client_certificate=True,
    )
    inbound = Inbound(known.mesh, tls=tls)
    handler = grpc.method_handlers_generic_handler(SERVICE, blocking_handlers(lambda: None))
    with ThreadPoolExecutor(1) as executor:
        server = grpc.server(executor, handlers=[handler], interceptors=[MeshInterceptor(inbound)])
        with listen(server, "127.0.0.1:0", inbound) as listening:
            server.start()
            context = client_context(tmp_path, known.ca, known.ca.issue(CLIENT))
            context.maximum_version = maximum
            with httpx.Client(verify=context, http2=True) as client:
                answer = client.post(
                    f"https://127.0.0.1:{listening.port}/{SERVICE}/unary_unary",
                    content=b"\0" * 5,
                    headers={"content-type": "application/grpc", "te": "trailers"},
                )
            server.stop(None).wait()
    assert answer.headers.get("grpc-status", "0") == code
