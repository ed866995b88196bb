"""`meshlib ca` as a process: what it serves, what it writes, how it rotates and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest
from cryptography import x509

from meshlib import proto
from meshlib.controlplane.ca import sds
from meshlib.proto import Message, workload
from tests.cli.conftest import Meshlib

WEB = "spiffe://example.org/web"
LIMIT = 45.0

Running = Callable[..., AbstractContextManager["subprocess.Popen[str]"]]


@pytest.fixture
def running(environment: dict[str, str]) -> Running:
    @contextmanager
    def run(*arguments: object) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, "-m", "meshlib.cli", "ca", *map(str, arguments)]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            watchdog = threading.Timer(LIMIT, process.kill)
            watchdog.start()
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
                watchdog.cancel()
                watchdog.join()

    return run


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def fetch_svid(address: str) -> Message:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_stream(f"/{workload.SERVICE}/FetchX509SVID")(
            b"", metadata=[workload.SECURITY_HEADER], timeout=LIMIT
        )
        response = workload.parse("X509SVIDResponse", next(call))
        call.cancel()
        return response


def fetch_secret(address: str, name: str) -> Message:
    request = proto.message("envoy.service.discovery.v3.DiscoveryRequest")(resource_names=[name])
    with grpc.insecure_channel(address) as channel:
        data = channel.unary_unary(f"/{sds.SERVICE}/FetchSecrets")(request.SerializeToString(), timeout=LIMIT)
    (packed,) = proto.parse("envoy.service.discovery.v3.DiscoveryResponse", data).resources
    return proto.unpack(packed)


def eventually(check: Callable[[], bool]) -> None:
    limit = time.monotonic() + LIMIT
    while not check():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_it_serves_the_workload_api_and_sds(running: Running, tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/agent.sock"
    other = f"spiffe://example.org/other,uid={os.getuid() + 1}"
    with running("--id", WEB, "--entry", other, "--listen", socket, "--listen", "127.0.0.1:0") as process:
        assert line(process) == f"serving the Workload API and SDS of example.org on {socket}"
        sds_line = line(process)
        assert sds_line.startswith("serving SDS of example.org on 127.0.0.1:")
        assert line(process) == f"export SPIFFE_ENDPOINT_SOCKET=unix://{tmp_path}/agent.sock"

        (svid,) = fetch_svid(socket).svids
        assert svid.spiffe_id == WEB
        for address in (socket, sds_line.rpartition(" ")[2]):
            certificate = fetch_secret(address, "default").tls_certificate
            assert x509.load_pem_x509_certificate(
                certificate.certificate_chain.inline_bytes
            ) == x509.load_der_x509_certificate(svid.x509_svid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT) == 0
    assert list(tmp_path.iterdir()) == [], "the socket is gone"


def test_a_signal_rotates_the_root(running: Running, tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/agent.sock"
    with running("--id", WEB, "--listen", socket, "--dir", tmp_path / "ca", "--intermediate") as process:
        line(process)
        line(process)
        before = fetch_svid(socket).svids[0]
        for phase in ("prepared", "activated", "steady"):
            process.send_signal(signal.SIGUSR1)
            assert line(process) == f"root rotation: {phase}"
        after = fetch_svid(socket).svids[0]
        assert after.bundle != before.bundle
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT) == 0
    with running("--id", WEB, "--listen", socket, "--dir", tmp_path / "ca") as process:
        line(process)
        assert fetch_svid(socket).svids[0].bundle == after.bundle, "kept in its folder"


def test_roots_rotate_by_themselves(running: Running) -> None:
    with running("--id", WEB, "--rotate-root", "0.05s") as process:
        assert line(process).startswith("serving the Workload API and SDS of example.org on unix:/")
        line(process)
        assert [line(process) for _ in range(3)] == [
            "root rotation: prepared",
            "root rotation: activated",
            "root rotation: steady",
        ]


def test_it_issues_into_files(meshlib: Meshlib, tmp_path: Path) -> None:
    for name in ("a", "b"):
        done = meshlib(
            "ca", "--dir", tmp_path / "ca", "--key-type", "rsa-2048", "--ttl", "60s",
            "issue", "--id", f"spiffe://example.org/{name}", "--dns", f"{name}.local", "--out", tmp_path / name,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    a, b = (x509.load_pem_x509_certificate((tmp_path / name / "tls.crt").read_bytes()) for name in ("a", "b"))
    assert (tmp_path / "a" / "ca.crt").read_bytes() == (tmp_path / "b" / "ca.crt").read_bytes()
    assert a.issuer == b.issuer
    assert (a.not_valid_after_utc - a.not_valid_before_utc).total_seconds() == 70


def test_watched_files_are_renewed_and_follow_the_ca(
    running: Running, meshlib: Meshlib, tmp_path: Path
) -> None:
    home, out, socket = tmp_path / "ca", tmp_path / "out", tmp_path / "sock"
    with running("--dir", home, "--ttl", "3s", "issue", "--id", WEB, "--out", out, "--watch") as issuing:
        eventually((out / "ca.crt").exists)
        certificate, root = ((out / name).read_bytes() for name in ("tls.crt", "ca.crt"))
        eventually(lambda: (out / "tls.crt").read_bytes() != certificate)
        assert (out / "ca.crt").read_bytes() == root
        with running("--dir", home, "--id", WEB, "--listen", f"unix:{socket}") as serving:
            line(serving)
            line(serving)
            serving.send_signal(signal.SIGUSR1)
            eventually(lambda: len(x509.load_pem_x509_certificates((out / "ca.crt").read_bytes())) == 2)
        issuing.send_signal(signal.SIGTERM)
        assert issuing.wait(LIMIT) == 0


def test_federation(meshlib: Meshlib, running: Running, tmp_path: Path) -> None:
    out = tmp_path / "other"
    meshlib("ca", "--trust-domain", "other.org", "issue", "--id", "spiffe://other.org/x", "--out", out)
    socket = f"unix:{tmp_path}/agent.sock"
    with running("--id", WEB, "--listen", socket, "--federate", f"other.org={out / 'ca.crt'}") as process:
        line(process)
        bundles = fetch_svid(socket).federated_bundles
        root = x509.load_pem_x509_certificate((out / "ca.crt").read_bytes())
        assert {name: x509.load_der_x509_certificate(data) for name, data in bundles.items()} == {
            "spiffe://other.org": root
        }


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 2, "nothing to serve: name an identity with --id or --entry"),
        (["--id", "spiffe://other.org/web"], 1, "is not of the trust domain example.org"),
        (["--id", "web"], 1, "is not a SPIFFE id"),
        (["--entry", f"{WEB},colour=red"], 1, "'colour=red' is not one of"),
        (["--id", WEB, "--listen", "0.0.0.0:1"], 1, "private keys are served"),
        (["--id", WEB, "--listen", "unix:/nowhere/at/all"], 1, "cannot listen on unix:/nowhere/at/all"),
        (["--id", WEB, "--ttl", "soon"], 2, "'soon' is not a duration"),
        (["--id", WEB, "--ttl", "0s"], 2, "'0s' is not a duration"),
        (["--id", WEB, "--federate", "other.org=/nowhere"], 1, "--federate other.org=/nowhere"),
        (["--id", WEB, "issue", "--id", WEB, "--out", "x"], 2, "are for serving, without a command"),
        (["issue", "--id", "spiffe://example.org", "--out", "x"], 1, "not of a workload"),
        (["--trust-domain", "Example.org", "issue", "--id", WEB, "--out", "x"], 1, "is not a trust domain"),
    ],
)
def test_wrong_usage(meshlib: Meshlib, arguments: list[str], code: int, text: str) -> None:
    done = meshlib("ca", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert text in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr
