"""The `tls` channel credentials, against a server that shows a certificate and may ask for one."""

from __future__ import annotations

import datetime as dt
import ipaddress
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from meshlib import proto
from meshlib.controlplane import ResourceStore
from meshlib.controlplane.stream import encode_response
from tests.xds.test_over_grpc import LIMIT, Watched, named

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"


def certificate(folder: Path, name: str) -> tuple[bytes, bytes]:
    """A self-signed certificate for 127.0.0.1, and its key; also written to NAME.pem and NAME.key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    encoded = signed.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / f"{name}.pem").write_bytes(encoded)
    (folder / f"{name}.key").write_bytes(private)
    return encoded, private


class TlsServer:
    """Sends one response to the first request of each stream."""

    def __init__(self, pair: tuple[bytes, bytes], client_ca: bytes | None) -> None:
        self._response = encode_response(
            proto.CLUSTER, "1", "n", ResourceStore([named("one")]).state(proto.CLUSTER).resources
        )
        self._executor = ThreadPoolExecutor(2)
        self._server = grpc.server(self._executor)
        handler = grpc.stream_stream_rpc_method_handler(self._serve)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"StreamAggregatedResources": handler}),)
        )
        credentials = grpc.ssl_server_credentials([(pair[1], pair[0])], client_ca, client_ca is not None)
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self._server.start()

    def _serve(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        next(requests)
        yield self._response
        for _ in requests:
            pass

    def stop(self) -> None:
        self._server.stop(None).wait()
        self._executor.shutdown()


def watch(port: int, config: dict[str, str]) -> Watched:
    creds = {"type": "tls", "config": config}
    return Watched({"xds_servers": [{"server_uri": f"127.0.0.1:{port}", "channel_creds": [creds]}]})


def test_the_servers_certificate_is_checked(tmp_path: Path) -> None:
    server = TlsServer(certificate(tmp_path, "server"), None)
    certificate(tmp_path, "other")
    good = watch(server.port, {"ca_certificate_file": str(tmp_path / "server.pem")})
    good.client.want_cluster("one")
    good.wait_for(lambda snapshot: "one" in snapshot.clusters)
    good.client.close()
    bad = watch(server.port, {"ca_certificate_file": str(tmp_path / "other.pem")})
    bad.client.want_cluster("one")
    refused = threading.Event()
    for _ in range(int(LIMIT / 0.02)):
        if bad.client.last_error is not None or refused.wait(0.02):
            break
    assert "CERTIFICATE_VERIFY_FAILED" in str(bad.client.last_error)
    assert "one" not in bad.client.snapshot.clusters
    bad.client.close()
    server.stop()


@pytest.mark.parametrize("shown", [True, False])
def test_our_own_certificate_is_shown(tmp_path: Path, shown: bool) -> None:
    ours, _ = certificate(tmp_path, "client")
    server = TlsServer(certificate(tmp_path, "server"), ours)
    config = {"ca_certificate_file": str(tmp_path / "server.pem")}
    if shown:
        config["certificate_file"] = str(tmp_path / "client.pem")
        config["private_key_file"] = str(tmp_path / "client.key")
    watched = watch(server.port, config)
    watched.client.want_cluster("one")
    if shown:
        watched.wait_for(lambda snapshot: "one" in snapshot.clusters)
    else:
        nothing = threading.Event()
        for _ in range(int(LIMIT / 0.02)):
            if watched.client.last_error is not None or nothing.wait(0.02):
                break
        assert watched.client.last_error is not None
        assert "one" not in watched.client.snapshot.clusters
    watched.client.close()
    server.stop()
