"""The CA over real sockets: both services, pushes, misuse, who the caller is, how it ends."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from meshlib import proto
from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities
from meshlib.errors import ConfigError
from meshlib.proto import workload
from tests.controlplane.ca.clients import Client
from tests.controlplane.ca.conftest import API, WEB

LIMIT = 45.0


def refused(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as error:
        call()
    return error.value.code(), error.value.details()


def eventually(check: Callable[[], bool]) -> None:
    """Wait for something that another thread does and nobody tells."""
    limit = time.monotonic() + LIMIT
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.005)


def test_svids_are_pushed_when_they_change(server: CaServer, authority: Authority) -> None:
    with (
        Client(server.addresses[0]) as client,
        client.stream("FetchX509SVID", "X509SVIDResponse") as responses,
    ):
        first = next(responses)
        assert [(svid.spiffe_id, svid.hint) for svid in first.svids] == [(WEB, ""), (API, "api")]
        chain = x509.load_der_x509_certificate(first.svids[0].x509_svid)
        assert chain.issuer == x509.load_der_x509_certificate(first.svids[0].bundle).subject
        assert not first.crl

        authority.federate("other.org", Authority("other.org").bundle)
        federated = next(responses)
        assert list(federated.federated_bundles) == ["spiffe://other.org"]
        assert federated.svids[0].x509_svid == first.svids[0].x509_svid

        authority.rotate()
        assert next(responses).svids[0].bundle.startswith(first.svids[0].bundle)
        authority.rotate()
        assert next(responses).svids[0].x509_svid != first.svids[0].x509_svid
        authority.revoke(server.identities.view(None).svids[0])
        assert len(next(responses).crl) == 2


def test_bundles_are_pushed_only_when_they_change(server: CaServer, authority: Authority) -> None:
    with (
        Client(server.addresses[0]) as client,
        client.stream("FetchX509Bundles", "X509BundlesResponse") as responses,
    ):
        assert list(next(responses).bundles) == ["spiffe://example.org"]
        server.identities.replace([Entry(spiffe_id=API)])  # not seen in bundles
        authority.federate("other.org", Authority("other.org").bundle)
        assert sorted(next(responses).bundles) == ["spiffe://example.org", "spiffe://other.org"]


def test_jwts(server: CaServer) -> None:
    with Client(server.addresses[0]) as client:
        request = workload.message("JWTSVIDRequest")
        both = client.unary("FetchJWTSVID", request(audience=["a"]), "JWTSVIDResponse")
        assert [svid.spiffe_id for svid in both.svids] == [WEB, API]
        one = client.unary("FetchJWTSVID", request(audience=["a"], spiffe_id=API), "JWTSVIDResponse").svids[0]
        check = workload.message("ValidateJWTSVIDRequest")
        answer = client.unary(
            "ValidateJWTSVID", check(audience="a", svid=one.svid), "ValidateJWTSVIDResponse"
        )
        assert (answer.spiffe_id, answer.claims["sub"]) == (API, API)
        with client.stream("FetchJWTBundles", "JWTBundlesResponse") as responses:
            assert b'"kid"' in next(responses).bundles["spiffe://example.org"]

        def ask(**fields: object) -> object:
            return client.unary("FetchJWTSVID", request(**fields), "JWTSVIDResponse")

        def validate(**fields: object) -> object:
            return client.unary("ValidateJWTSVID", check(**fields), "ValidateJWTSVIDResponse")

        invalid, denied = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.PERMISSION_DENIED
        assert refused(ask) == (invalid, "audience must be specified")
        assert refused(lambda: ask(audience=["a"], spiffe_id="spiffe://example.org/x")) == (
            denied,
            "no identity issued",
        )
        assert refused(validate) == (invalid, "audience must be specified")
        assert refused(lambda: validate(audience="a")) == (invalid, "svid must be specified")
        assert refused(lambda: validate(audience="b", svid=one.svid))[0] is invalid


@pytest.mark.parametrize("metadata", [(), (("workload.spiffe.io", "false"),)])
def test_without_the_security_header_there_is_nothing(
    server: CaServer, metadata: tuple[tuple[str, str], ...]
) -> None:
    missing = (grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
    with Client(server.addresses[0]) as client:
        for method, response in (
            ("FetchX509SVID", "X509SVIDResponse"),
            ("FetchX509Bundles", "X509BundlesResponse"),
        ):
            with client.stream(method, response, metadata) as responses:
                assert refused(lambda: next(responses)) == missing
        request = workload.message("JWTSVIDRequest")(audience=["a"])
        assert refused(lambda: client.unary("FetchJWTSVID", request, "JWTSVIDResponse", metadata)) == missing


def test_a_caller_without_an_identity_is_denied(server: CaServer) -> None:
    server.identities.replace([Entry(spiffe_id=WEB, uid=os.getuid() + 1)])
    denied = (grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
    with Client(server.addresses[0]) as client:
        for method, response in (
            ("FetchX509SVID", "X509SVIDResponse"),
            ("FetchX509Bundles", "X509BundlesResponse"),
            ("FetchJWTBundles", "JWTBundlesResponse"),
        ):
            with client.stream(method, response) as responses:
                assert refused(lambda: next(responses)) == denied


def test_a_caller_that_loses_its_identity_is_told(server: CaServer) -> None:
    with (
        Client(server.addresses[0]) as client,
        client.stream("FetchX509SVID", "X509SVIDResponse") as responses,
    ):
        next(responses)
        server.identities.replace([])
        assert refused(lambda: next(responses))[0] is grpc.StatusCode.PERMISSION_DENIED


def test_the_workload_api_is_not_served_over_tcp(server: CaServer) -> None:
    with (
        Client(server.addresses[1]) as client,
        client.stream("FetchX509SVID", "X509SVIDResponse") as responses,
    ):
        assert refused(lambda: next(responses))[0] is grpc.StatusCode.PERMISSION_DENIED


def test_a_caller_is_known_by_its_process(authority: Authority, tmp_path: Path) -> None:
    """Ours, and that of a child, over the same socket."""
    program = (
        "import sys, grpc; from meshlib.proto import workload\n"
        "channel = grpc.insecure_channel(sys.argv[1])\n"
        "call = channel.unary_stream('/SpiffeWorkloadAPI/FetchX509SVID')(b'', metadata=[workload.SECURITY_HEADER])\n"
        "input()\n"
        "print([svid.spiffe_id for svid in workload.parse('X509SVIDResponse', next(call)).svids])\n"
        "call.cancel()\n"
    )
    identities = Identities(
        authority, [Entry(spiffe_id=WEB, pid=os.getpid(), uid=os.getuid(), gid=os.getgid())]
    )
    with (
        CaServer(identities, [f"unix:{tmp_path}/agent.sock"]) as server,
        subprocess.Popen(
            [sys.executable, "-c", program, server.addresses[0]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as child,
    ):
        exe = str(Path(sys.executable).resolve())
        identities.replace([*identities.entries, Entry(spiffe_id=API, pid=child.pid, exe=exe)])
        out, _ = child.communicate("\n", timeout=LIMIT)
        assert out.strip() == str([API])
        with (
            Client(server.addresses[0]) as client,
            client.stream("FetchX509SVID", "X509SVIDResponse") as responses,
        ):
            assert [svid.spiffe_id for svid in next(responses).svids] == [WEB]


@pytest.mark.parametrize("address", [0, 1])
def test_secrets_are_pushed(server: CaServer, authority: Authority, address: int) -> None:
    names = ["default", "ROOTCA"]
    with Client(server.addresses[address]) as client, client.secrets() as stream:
        stream.send(resource_names=names)
        first = stream.next()
        assert [proto.unpack(each).name for each in first.resources] == names
        stream.send(resource_names=names, response_nonce=first.nonce, version_info=first.version_info)
        eventually(lambda: len(server.answers) == 1)
        authority.rotate()
        second = stream.next()
        stream.send(resource_names=names, response_nonce=second.nonce, error="no thanks")
        eventually(lambda: len(server.answers) == 2)
        assert [(answer.version, answer.error) for answer in server.answers] == [
            (first.version_info, ""),
            (second.version_info, "no thanks"),
        ]
        assert first.version_info != second.version_info


def test_changed_secrets_are_pushed_as_delta(server: CaServer, authority: Authority) -> None:
    with Client(server.addresses[0]) as client, client.secrets(delta=True) as stream:
        stream.send(resource_names_subscribe=["default", "ROOTCA", "nobody"])
        first = stream.next()
        assert ([each.name for each in first.resources], list(first.removed_resources)) == (
            ["ROOTCA", "default"],
            ["nobody"],
        )
        authority.rotate()
        assert [each.name for each in stream.next().resources] == ["ROOTCA"]


def test_secrets_are_fetched(server: CaServer) -> None:
    with Client(server.addresses[1]) as client:
        (secret,) = client.fetch("default")
        assert secret.tls_certificate.private_key.inline_bytes.startswith(b"-----BEGIN PRIVATE KEY")
        assert [secret.name for secret in client.fetch()] == ["spiffe://example.org", WEB, API]


def test_what_an_sds_client_may_not_have(server: CaServer) -> None:
    unknown = (
        grpc.StatusCode.INVALID_ARGUMENT,
        'workload is not authorized for the requested identities ["spiffe://example.org/admin"]',
    )
    with Client(server.addresses[0]) as client:
        assert refused(lambda: client.fetch("default", "spiffe://example.org/admin")) == unknown
        with client.secrets() as stream:
            stream.send(resource_names=["spiffe://example.org/admin"])
            assert refused(stream.next) == unknown
        with client.secrets() as stream:
            stream.send(raw=b"\xff")
            assert refused(stream.next) == (grpc.StatusCode.INVALID_ARGUMENT, "not a DiscoveryRequest")


def test_identities_for_some_are_not_served_over_tcp(authority: Authority) -> None:
    identities = Identities(authority, [Entry(spiffe_id=WEB, uid=os.getuid()), Entry(spiffe_id=API)])
    with CaServer(identities, ["127.0.0.1:0"]) as server, Client(server.addresses[0]) as client:
        assert [secret.name for secret in client.fetch()] == ["spiffe://example.org", API]


def test_svids_are_renewed_by_themselves(tmp_path: Path) -> None:
    identities = Identities(Authority("example.org", ttl=2), [Entry(spiffe_id=WEB)])
    with (
        CaServer(identities, [f"unix:{tmp_path}/agent.sock"]) as server,
        Client(server.addresses[0]) as client,
    ):
        with client.stream("FetchX509SVID", "X509SVIDResponse") as responses:
            seen = [next(responses).svids[0].x509_svid for _ in range(3)]
        assert len(set(seen)) == 3


def test_an_entry_with_a_short_life_is_renewed_in_time(tmp_path: Path) -> None:
    identities = Identities(Authority("example.org", ttl=3600), [Entry(spiffe_id=WEB)])
    with (
        CaServer(identities, [f"unix:{tmp_path}/agent.sock"]) as server,
        Client(server.addresses[0]) as client,
    ):
        with client.stream("FetchX509SVID", "X509SVIDResponse") as responses:
            next(responses)
            identities.replace([Entry(spiffe_id=API, ttl=2)])
            assert next(responses).svids[0].x509_svid != next(responses).svids[0].x509_svid


def test_the_end_ends_every_stream(identities: Identities, tmp_path: Path) -> None:
    server = CaServer(identities, [f"unix:{tmp_path}/agent.sock"]).start()
    with (
        Client(server.addresses[0]) as client,
        client.stream("FetchX509SVID", "X509SVIDResponse") as responses,
        client.secrets() as stream,
    ):
        next(responses)
        stream.send(resource_names=["default"])
        stream.next()
        assert server.streams == 2
        server.stop()
        server.stop()
        for call in (lambda: next(responses), stream.next):
            assert refused(call)[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert server.streams == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("entry", "mode"), [(Entry(spiffe_id=WEB), 0o600), (Entry(spiffe_id=WEB, uid=1), 0o666)]
)
def test_the_socket_is_for_this_user_alone_unless_entries_select(
    authority: Authority, tmp_path: Path, entry: Entry, mode: int
) -> None:
    with CaServer(Identities(authority, [entry]), [f"unix:{tmp_path}/agent.sock"]):
        assert stat.S_IMODE((tmp_path / "agent.sock").stat().st_mode) == mode


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0:0",
        "10.0.0.1:80",
        "example.org:80",
        "[::]:80",
        "127.0.0.1",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "unix:relative",
        "",
    ],
)
def test_keys_are_served_on_this_machine_only(identities: Identities, address: str) -> None:
    with pytest.raises(ConfigError, match="private keys are served"):
        CaServer(identities, [address])


def test_an_address_that_is_taken(server: CaServer, identities: Identities, tmp_path: Path) -> None:
    for address in server.addresses:
        other = CaServer(identities, [f"unix:{tmp_path}/other.sock", address])
        with pytest.raises(ConfigError, match="cannot listen on"):
            other.start()
        assert not (tmp_path / "other.sock").exists(), "nothing is left open"
    with Client(server.addresses[0]) as client:
        assert client.fetch("default"), "the one that was there goes on"


def test_a_socket_that_nobody_listens_on_is_replaced(identities: Identities, tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with CaServer(identities, [f"unix:{path}"]) as server, Client(server.addresses[0]) as client:
        assert client.fetch("default")


def test_a_file_is_not_replaced(identities: Identities, tmp_path: Path) -> None:
    (tmp_path / "agent.sock").write_text("precious")
    with pytest.raises(ConfigError, match="Address already in use"):
        CaServer(identities, [f"unix:{tmp_path}/agent.sock"]).start()
    assert (tmp_path / "agent.sock").read_text() == "precious"
