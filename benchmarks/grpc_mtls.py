"""The mTLS section of gRPC: unary calls through meshlib over mTLS (by the tunnel and by the relay), beside meshlib and grpcio in
plaintext and grpcio behind two Envoys with mTLS between them.

The server is nginx where the machine has it: it answers a constant message, and costs less than what is compared.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc

from benchmarks import certificates, configuration, envoy, grpc_cases, grpc_configuration, processes, runner
from benchmarks.cases import AsyncFetch, Case, SyncFetch, mesh
from benchmarks.certificates import Identity
from benchmarks.grpc_configuration import TARGET, UNARY
from benchmarks.grpc_upstream import MESSAGE
from benchmarks.plan import Plan
from benchmarks.samples import Samples
from benchmarks.supervisor import Supervisor
from benchmarks.upstream import nginx_binary
from benchmarks.world import free_port, start

_AUTHORITY = (("grpc.default_authority", TARGET),)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecureWorld:
    """Ports are on 127.0.0.1. plain, secure: of the server, without and with mTLS. envoy_port: of the client's Envoy."""

    supervisor: Supervisor
    upstream_pid: int
    plain: int
    secure: int
    caller: Identity
    service: Identity
    envoy_port: int | None
    envoy_pids: tuple[int, ...]

    def place(self, pin: str) -> None:
        """As `World.place`."""
        cpus = set(range(os.cpu_count() or 1))
        if pin == "same":
            cpus = {max(cpus)}
        processes.place([os.getpid(), self.supervisor.pid, *self.supervisor.pids], cpus)


def _nginx(directory: Path, plain: int, secure: int, own: Identity) -> Path:
    """Writes nginx.conf. A POST of a file is an error to nginx, whose page is the file."""
    answer = directory / "www" / UNARY.removeprefix("/")
    answer.parent.mkdir(parents=True)
    answer.write_bytes(b"\0" + struct.pack(">I", len(MESSAGE)) + MESSAGE)
    temporary = "\n".join(
        f"  {kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = directory / "nginx.conf"
    path.write_text(f"""\
daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  default_type application/grpc;
{temporary}
  server {{
    listen 127.0.0.1:{plain} http2;
    listen 127.0.0.1:{secure} ssl http2;
    ssl_certificate {own.chain};
    ssl_certificate_key {own.key};
    ssl_client_certificate {own.bundle};
    ssl_verify_client optional;
    ssl_protocols TLSv1.3;
    ssl_session_tickets off;
    root {directory}/www;
    location / {{
      error_page 405 =200 $uri;
      add_trailer grpc-status 0;
    }}
  }}
}}
""")
    return path


def _server(directory: Path, plain: int, secure: int, own: Identity) -> list[str]:
    nginx = nginx_binary()
    if nginx is not None:
        return [nginx, "-p", str(directory), "-c", str(_nginx(directory, plain, secure, own)), "-e", "stderr"]
    identity = [str(path) for path in (own.chain, own.key, own.bundle)]
    module = [sys.executable, "-m", "benchmarks.grpc_upstream", str(plain)]
    return [*module, "--secure", str(secure), "--identity", *identity]


@contextlib.contextmanager
def secure_world() -> Iterator[SecureWorld]:
    """Starts the servers; everything ends, and its folder goes, when the block ends."""
    with tempfile.TemporaryDirectory(prefix="meshlib-bench-") as name, Supervisor() as supervisor:
        directory = Path(name)
        identities = certificates.issue(directory, "caller", "service")
        caller, service = identities["caller"], identities["service"]

        def launch(server: str, argv: list[str], *listening: int) -> int:
            return start(supervisor, directory / f"{server}.log", argv, *listening)

        plain, secure = free_port(), free_port()
        upstream_pid = launch("grpc-upstream", _server(directory, plain, secure, service), plain, secure)
        envoy_port: int | None = None
        envoy_pids: tuple[int, ...] = ()
        if envoy.binary() is not None:
            envoy_port, between = free_port(), free_port()
            clusters = grpc_configuration.clusters([("127.0.0.1", plain)])
            inbound = envoy.server_sidecar(directory, between, [], service, caller, clusters=clusters)
            server_pid = launch("server-sidecar", envoy.argv(inbound), between)
            outbound = _client_sidecar(directory, envoy_port, between, caller, service)
            envoy_pids = (launch("client-sidecar", envoy.argv(outbound), envoy_port), server_pid)
        yield SecureWorld(
            supervisor=supervisor,
            upstream_pid=upstream_pid,
            plain=plain,
            secure=secure,
            caller=caller,
            service=service,
            envoy_port=envoy_port,
            envoy_pids=envoy_pids,
        )


def _client_sidecar(directory: Path, port: int, between: int, own: Identity, peer: Identity) -> Path:
    routes = {
        "name": configuration.ROUTE_CONFIGURATION,
        "virtual_hosts": grpc_configuration.virtual_hosts(),
    }
    manager = configuration.http_connection_manager(route_config=routes)
    socket = {"transport_socket": configuration.upstream_tls(own, peer)}
    clusters = [cluster | socket for cluster in grpc_configuration.clusters([("127.0.0.1", between)])]
    listener = envoy.socket_listener("outbound", port, manager)
    return envoy.bootstrap(directory / "client-sidecar.json", [listener], clusters)


def _ways(world: SecureWorld, stack: contextlib.ExitStack) -> list[grpc_cases.Way]:
    """As `grpc_cases.ways`."""
    direct = f"127.0.0.1:{world.plain}"
    tls = {"transport_socket": configuration.upstream_tls(world.caller, world.service)}
    plain = stack.enter_context(mesh(grpc_configuration.mesh_resources([("127.0.0.1", world.plain)])))
    secure = stack.enter_context(
        mesh(grpc_configuration.mesh_resources([("127.0.0.1", world.secure)], **tls))
    )
    os.environ.pop("GRPC_XDS_BOOTSTRAP_CONFIG", None)  # that of another section: the relay has its own
    relay_tls = {"transport_socket": configuration.upstream_tls(world.caller, world.service, least="TLSv1_2")}
    relayed = stack.enter_context(
        mesh(grpc_configuration.mesh_resources([("127.0.0.1", world.secure)], **relay_tls))
    )
    found = [
        grpc_cases.Way(name="direct", open=lambda library, _mesh: library.insecure_channel(direct)),
        grpc_cases.Way(name="meshlib", open=lambda _library, factory: factory(TARGET, mesh=plain)),
        grpc_cases.Way(name="meshlib_mtls", open=lambda _library, factory: factory(TARGET, mesh=secure)),
        grpc_cases.Way(
            name="meshlib_relay", open=lambda _library, factory: factory(TARGET, mesh=relayed, tls="relay")
        ),
    ]
    if world.envoy_port is not None:
        hop = f"127.0.0.1:{world.envoy_port}"
        found.append(
            grpc_cases.Way(
                name="two_envoys",
                open=lambda library, _mesh: library.insecure_channel(hop, options=_AUTHORITY),
                envoys=world.envoy_pids,
            )
        )
    return found


def measure(world: SecureWorld, how: Plan, order: random.Random) -> Samples:
    """All blocking cases take turns, then all of asyncio."""
    import meshlib.grpc

    measured = Samples()

    def take(found: Samples) -> None:
        measured.by_case |= {f"mtls-{name}": values for name, values in found.by_case.items()}

    with contextlib.ExitStack() as stack:
        ways = _ways(world, stack)
        blocking: list[Case[SyncFetch]] = []
        for way in ways:
            channel = stack.enter_context(way.open(grpc, meshlib.grpc.channel))
            blocking.append(
                Case(name=f"grpc/{way.name}", fetch=grpc_cases.unary_fetch(channel), envoys=way.envoys)
            )
        take(runner.run_sync(blocking, world.upstream_pid, rounds=how.rounds, calls=how.calls, order=order))

        async def run() -> Samples:
            async with contextlib.AsyncExitStack() as channels:
                found: list[Case[AsyncFetch]] = []
                for way in ways:
                    channel = await channels.enter_async_context(way.open(grpc.aio, meshlib.grpc.aio_channel))
                    fetch = grpc_cases.aio_unary_fetch(channel)
                    found.append(Case(name=f"grpc/{way.name}", fetch=fetch, envoys=way.envoys))
                return await runner.run_async(
                    found, world.upstream_pid, rounds=how.rounds, calls=how.calls, order=order
                )

        take(asyncio.run(run()))
    return measured
