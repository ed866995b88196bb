"""The server that answers the benchmark's calls: nginx where the machine has it, else `python -m benchmarks.upstream`.

The one that the benchmark brings is a bare asyncio.Protocol in a process of its own. It parses nothing: requests of
the benchmark have no body, so a blank line ends each. It answers a constant body, or for `/where` the address that
was called.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import ssl
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.certificates import Identity

BODY = b'{"item": 17, "name": "a small answer", "tags": ["one", "two", "three"], "price": 12.5, "stock": 4}'
_NGINX_PATHS = ("/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/local/nginx/sbin/nginx")


def nginx_binary() -> str | None:
    return shutil.which("nginx") or next((path for path in _NGINX_PATHS if Path(path).exists()), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurePorts:
    """Ports that speak TLS with this identity, and want to see a certificate."""

    ports: list[int]
    identity: Identity


def nginx_configuration(directory: Path, ports: list[int], everywhere: int, secure: SecurePorts) -> Path:
    """Writes nginx.conf: `ports` on 127.0.0.1, and `everywhere` on each loopback address (others are refused)."""
    temporary = "\n".join(
        f"  {kind}_temp_path {directory}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    listens = "\n".join(f"    listen 127.0.0.1:{port} backlog=4096;" for port in ports)
    own = secure.identity
    secure_listens = "\n".join(f"    listen 127.0.0.1:{port} ssl backlog=4096;" for port in secure.ports)
    path = directory / "nginx.conf"
    path.write_text(f"""\
daemon off;
master_process off;
worker_processes 1;
pid {directory}/nginx.pid;
error_log stderr error;
worker_rlimit_nofile 60000;
events {{ worker_connections 30000; }}
http {{
  access_log off;
  keepalive_timeout 3600s;
  keepalive_requests 1000000000;
  default_type application/json;
{temporary}
  server {{
{listens}
    location / {{ return 200 '{BODY.decode()}'; }}
  }}
  server {{
{secure_listens}
    ssl_certificate {own.chain};
    ssl_certificate_key {own.key};
    ssl_client_certificate {own.bundle};
    ssl_verify_client on;
    ssl_protocols TLSv1.3;
    ssl_session_tickets off;
    location / {{ return 200 '{BODY.decode()}'; }}
  }}
  server {{
    listen 0.0.0.0:{everywhere} backlog=4096;
    allow 127.0.0.0/8;
    deny all;
    location / {{ default_type text/plain; return 200 "$server_addr"; }}
  }}
}}
""")
    return path


def argv(
    directory: Path, ports: list[int], everywhere: int, secure: SecurePorts, *, own: bool = False
) -> tuple[str, list[str]]:
    """Name and command of the server; `own` refuses nginx."""
    nginx = None if own else nginx_binary()
    if nginx is None:
        identity = secure.identity
        arguments = [
            *("--ports", *map(str, (everywhere, *ports))),
            *("--secure", *map(str, secure.ports)),
            *("--identity", str(identity.chain), str(identity.key), str(identity.bundle)),
        ]
        return "asyncio", [sys.executable, "-m", "benchmarks.upstream", *arguments]
    configuration = nginx_configuration(directory, ports, everywhere, secure)
    return "nginx", [nginx, "-p", str(directory), "-c", str(configuration), "-e", "stderr"]


def _response(body: bytes, content_type: str) -> bytes:
    head = f"HTTP/1.1 200 OK\r\nserver: bench\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


_CONSTANT = _response(BODY, "application/json")


class _Answers(asyncio.Protocol):
    """Answers every request with the constant body."""

    _transport: asyncio.Transport
    _rest = b""
    _answer = _CONSTANT

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        requests = data.count(b"\r\n\r\n")
        if requests:
            self._transport.write(self._answer * requests)
            data = data[data.rindex(b"\r\n\r\n") + 4 :]
        self._rest = data


class _Where(_Answers):
    """Answers every request with the address that it was sent to; hangs up on callers from elsewhere."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if not transport.get_extra_info("peername")[0].startswith("127."):
            self._transport.abort()
        self._answer = _response(transport.get_extra_info("sockname")[0].encode(), "text/plain")


async def _serve(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    everywhere, *ports = arguments.ports
    await loop.create_server(_Where, "0.0.0.0", everywhere, backlog=4096)
    for port in ports:
        await loop.create_server(_Answers, "127.0.0.1", port, backlog=4096)
    chain, key, bundle = arguments.identity
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    context.load_verify_locations(bundle)
    context.verify_mode = ssl.CERT_REQUIRED
    context.num_tickets = 0
    for port in arguments.secure:
        await loop.create_server(_Answers, "127.0.0.1", port, backlog=4096, ssl=context)
    await asyncio.Event().wait()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ports", type=int, nargs="+", required=True, help="the first one on every address")
    parser.add_argument("--secure", type=int, nargs="*", default=[], help="ports that speak TLS")
    parser.add_argument("--identity", nargs=3, metavar=("CHAIN", "KEY", "BUNDLE"), required=True)
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(_serve(_arguments()))
