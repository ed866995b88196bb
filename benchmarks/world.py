"""The servers of one run: the upstream and three Envoys, on loopback, under one supervisor."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import certificates, envoy, processes, upstream
from benchmarks.supervisor import Supervisor

_PORTS = itertools.count(20_000 + os.getpid() % 997 * 11)


def free_port() -> int:
    """A loopback port below the range that the kernel gives to outgoing connections."""
    for port in _PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        return port
    raise AssertionError("count() does not end")


def start(supervisor: Supervisor, log: Path, argv: list[str], *ports: int) -> int:
    """Starts a server and returns its process id once it accepts on `ports`.

    RuntimeError with the server's log when it ended, or did not listen within 20 s.
    """
    pid = supervisor.start(argv, log)
    deadline = time.monotonic() + 20
    waiting = list(ports)
    while waiting:
        try:
            socket.create_connection(("127.0.0.1", waiting[0]), timeout=1).close()
        except OSError:
            if supervisor.ended(pid) or time.monotonic() > deadline:
                message = f"nothing listens on port {waiting[0]}:\n{log.read_text()[-4000:]}"
                raise RuntimeError(message) from None
            time.sleep(0.02)
        else:
            del waiting[0]
    return pid


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Where the servers are. Ports are on 127.0.0.1; `where_port` is on every address of 127.0.0.0/8.

    secure_upstreams: the same server over TLS; it is `service`, and wants a certificate like `caller`'s.
    """

    directory: Path
    supervisor: Supervisor
    server: str
    upstream_pid: int
    upstreams: list[tuple[str, int]]
    secure_upstreams: list[tuple[str, int]]
    caller: certificates.Identity
    service: certificates.Identity
    where_port: int
    one_hop_port: int | None
    two_hops_port: int | None
    one_hop_pids: tuple[int, ...]
    two_hops_pids: tuple[int, ...]

    def place(self, pin: str) -> None:
        """`same`: everything on one CPU, the last one; `none`: wherever the scheduler likes."""
        cpus = set(range(os.cpu_count() or 1))
        if pin == "same":
            cpus = {max(cpus)}
        processes.place([os.getpid(), self.supervisor.pid, *self.supervisor.pids], cpus)


@contextlib.contextmanager
def world(*, own_upstream: bool = False, envoys: bool = True) -> Iterator[World]:
    """Starts the servers; everything ends, and its folder goes, when the block ends."""
    with tempfile.TemporaryDirectory(prefix="meshlib-bench-") as name, Supervisor() as supervisor:
        directory = Path(name)
        ports = [free_port(), free_port()]
        upstreams = [("127.0.0.1", port) for port in ports]
        secure_ports = [free_port(), free_port()]
        where_port = free_port()
        identities = certificates.issue(directory, "caller", "service")
        caller, service = identities["caller"], identities["service"]

        def launch(server: str, argv: list[str], *listening: int) -> int:
            return start(supervisor, directory / f"{server}.log", argv, *listening)

        secure = upstream.SecurePorts(ports=secure_ports, identity=service)
        kind, argv = upstream.argv(directory, ports, where_port, secure, own=own_upstream)
        upstream_pid = launch("upstream", argv, *ports, *secure_ports, where_port)
        one_hop_port = two_hops_port = None
        one_hop_pids: tuple[int, ...] = ()
        two_hops_pids: tuple[int, ...] = ()
        if envoys and envoy.binary() is not None:
            one_hop_port, two_hops_port, between = free_port(), free_port(), free_port()
            bootstrap = envoy.one_hop(directory, one_hop_port, upstreams)
            one_hop_pids = (launch("one-hop", envoy.argv(bootstrap), one_hop_port),)
            bootstrap = envoy.server_sidecar(directory, between, upstreams, service, caller)
            server_pid = launch("server-sidecar", envoy.argv(bootstrap), between)
            bootstrap = envoy.client_sidecar(
                directory, two_hops_port, ("127.0.0.1", between), caller, service
            )
            two_hops_pids = (launch("client-sidecar", envoy.argv(bootstrap), two_hops_port), server_pid)
        yield World(
            directory=directory,
            supervisor=supervisor,
            server=kind,
            upstream_pid=upstream_pid,
            upstreams=upstreams,
            secure_upstreams=[("127.0.0.1", port) for port in secure_ports],
            caller=caller,
            service=service,
            where_port=where_port,
            one_hop_port=one_hop_port,
            two_hops_port=two_hops_port,
            one_hop_pids=one_hop_pids,
            two_hops_pids=two_hops_pids,
        )
