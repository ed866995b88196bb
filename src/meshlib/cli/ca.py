"""meshlib ca"""

from __future__ import annotations

import contextlib
import re
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
from cryptography import x509

from meshlib.cli.config import fail
from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities
from meshlib.controlplane.ca.authority import DEFAULT_ROOT_TTL, DEFAULT_TTL, AuthorityState
from meshlib.controlplane.ca.files import replace_files, svid_files
from meshlib.controlplane.ca.keys import DEFAULT_KEY_TYPE, KEY_TYPES
from meshlib.controlplane.ca.store import STATE, create_state, load_state, save_state
from meshlib.errors import ConfigError, IdentityError
from meshlib.runtime.signals import Signals

__all__ = ["ca"]

LOOK = 1.0
"""Seconds between two looks at a CA that another process may change."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


if TYPE_CHECKING:
    _DurationType = click.ParamType[float]
else:
    _DurationType = click.ParamType  # not generic in the oldest click that is supported


class _Duration(_DurationType):
    name = "duration"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value)
        if match is None or not float(match[1]):
            self.fail(f"{value!r} is not a duration such as 60s, 5m, 1h or 30d", param, ctx)
        return float(match[1]) * _UNITS[match[2] or "s"]


_DURATION = _Duration()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What the group's options say about the CA, for its commands."""

    trust_domain: str
    folder: Path | None
    ttl: float
    root_ttl: float
    key_type: str
    intermediate: bool
    federated: tuple[tuple[str, tuple[x509.Certificate, ...]], ...]

    def authority(self) -> Authority:
        """The CA of the folder, made if it is not there; without a folder a new one."""
        while True:
            state = None if self.folder is None else load_state(self.folder, self.trust_domain)
            authority = self._authority(state)
            if self.folder is None:
                return authority
            if state is not None or create_state(self.folder, self.trust_domain, authority.state):
                return authority

    def stamp(self) -> tuple[int, int] | None:
        """Changes when another process changes the CA of the folder; None without a folder."""
        if self.folder is None:
            return None
        found = (self.folder / STATE).stat()
        return found.st_mtime_ns, found.st_ino

    def keep(self, authority: Authority) -> None:
        """Save the CA now, if it has a folder."""
        if self.folder is not None:
            save_state(self.folder, self.trust_domain, authority.state)

    def _authority(self, state: AuthorityState | None) -> Authority:
        authority = Authority(
            self.trust_domain,
            ttl=self.ttl,
            root_ttl=self.root_ttl,
            key_type=self.key_type,
            intermediate=self.intermediate,
            state=state,
        )
        for domain, roots in self.federated:
            authority.federate(domain, roots)
        return authority


@click.group(invoke_without_command=True)
@click.option("--trust-domain", default="example.org", show_default=True, help="The trust domain of the CA.")
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep the CA, private keys and all, in this folder; otherwise it lives in memory only.",
)
@click.option(
    "--ttl", type=_DURATION, default=DEFAULT_TTL, help="Life of an SVID, such as 60s.  [default: 1h]"
)
@click.option("--root-ttl", type=_DURATION, default=DEFAULT_ROOT_TTL, help="Life of a root.  [default: 30d]")
@click.option(
    "--key-type", type=click.Choice(KEY_TYPES), default=DEFAULT_KEY_TYPE, show_default=True, help="Of SVIDs."
)
@click.option("--intermediate", is_flag=True, help="Sign with an intermediate CA below the root.")
@click.option(
    "--federate", multiple=True, metavar="DOMAIN=FILE", help="Roots (PEM) to trust for another trust domain."
)
@click.option(
    "--id",
    "ids",
    multiple=True,
    metavar="SPIFFE_ID",
    help="An identity for every caller; the first is the default.",
)
@click.option(
    "--entry",
    "entries",
    multiple=True,
    metavar="SPIFFE_ID[,uid=N][,exe=PATH]...",
    help="An identity with its own settings: whom it is for (uid, gid, pid, exe), dns, hint, ttl, key-type.",
)
@click.option(
    "--listen",
    multiple=True,
    metavar="ADDRESS",
    help="unix:/path or 127.0.0.1:port; may be repeated.  [default: a Unix socket in a new folder]",
)
@click.option(
    "--rotate-root", type=_DURATION, help="Make a step of a root rotation this often; SIGUSR1 makes one, too."
)
@click.pass_context
def ca(
    context: click.Context,
    trust_domain: str,
    folder: Path | None,
    ttl: float,
    root_ttl: float,
    key_type: str,
    intermediate: bool,
    federate: tuple[str, ...],
    ids: tuple[str, ...],
    entries: tuple[str, ...],
    listen: tuple[str, ...],
    rotate_root: float | None,
) -> None:
    """A CA for development: serve short-lived SPIFFE identities, or issue them into files.

    Without a command it serves the SPIFFE Workload API and Envoy's SDS on Unix sockets, and SDS on loopback TCP, until
    Ctrl-C. SVIDs are renewed at half of their life. Whoever may open the socket gets the keys: nothing for production.
    """
    try:
        options = _Options(
            trust_domain=trust_domain,
            folder=folder,
            ttl=ttl,
            root_ttl=root_ttl,
            key_type=key_type,
            intermediate=intermediate,
            federated=tuple(map(_federation, federate)),
        )
        context.obj = options
        if context.invoked_subcommand is not None:
            if ids or entries or listen or rotate_root:
                raise click.UsageError(
                    "--id, --entry, --listen and --rotate-root are for serving, without a command"
                )
            return
        wanted = [*(Entry(spiffe_id=spiffe_id) for spiffe_id in ids), *map(Entry.parse, entries)]
        if not wanted:
            raise click.UsageError("nothing to serve: name an identity with --id or --entry")
        _serve(options, wanted, listen, rotate_root)
    except (ConfigError, IdentityError) as error:
        fail([error])


@ca.command()
@click.option("--id", "spiffe_id", required=True, metavar="SPIFFE_ID", help="The identity.")
@click.option("--dns", multiple=True, metavar="NAME", help="A DNS SAN beside it; may be repeated.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="The folder of the files; it is made if it is missing.",
)
@click.option("--watch", is_flag=True, help="Stay, and replace the files at half of the SVID's life.")
@click.pass_obj
def issue(options: _Options, spiffe_id: str, dns: tuple[str, ...], out: Path, watch: bool) -> None:
    """Write an SVID, its key and the roots into files: tls.crt, tls.key, ca.crt and bundles.json.

    All four change at once, as in a volume that Kubernetes mounts. `meshlib ca --dir DIR issue ...` uses one CA for several.
    """
    entry = Entry(spiffe_id=spiffe_id, dns_names=dns)
    commands = _Commands()
    try:
        while True:
            authority, stamp = options.authority(), options.stamp()
            identities = Identities(authority, [entry])
            _write(identities, out)
            while options.stamp() == stamp:
                if not watch or commands.next(min(_seconds_left(identities), LOOK)) == "stop":
                    return
                if _seconds_left(identities) <= 0:
                    identities.renew()
                    _write(identities, out)
    except (ConfigError, IdentityError, OSError) as error:
        fail([error])


def _serve(
    options: _Options, entries: list[Entry], listen: tuple[str, ...], rotate_root: float | None
) -> None:
    commands = _Commands()
    authority = options.authority()
    identities = Identities(authority, entries)
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(tempfile.TemporaryDirectory(prefix="meshlib-ca-"))
        server = stack.enter_context(CaServer(identities, listen or (f"unix:{own}/agent.sock",)))
        for address in server.addresses:
            what = "the Workload API and SDS" if address.startswith("unix:") else "SDS"
            click.echo(f"serving {what} of {authority.trust_domain} on {address}")
        for address in server.addresses[:1]:
            if address.startswith("unix:"):
                click.echo(f"export SPIFFE_ENDPOINT_SOCKET={address.replace('unix:', 'unix://', 1)}")
        while commands.next(rotate_root) != "stop":
            click.echo(f"root rotation: {authority.rotate().value}")
            options.keep(authority)


class _Commands:
    """What signals ask for: to stop (SIGINT, SIGTERM), or a step of a root rotation (SIGUSR1)."""

    def __init__(self) -> None:
        self._signals = Signals((signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))

    def next(self, timeout: float | None) -> str:
        """The next command, waited for at most so many seconds; "due" when none came."""
        number = self._signals.next(timeout)
        if number is None:
            return "due"
        return "rotate" if number == signal.SIGUSR1 else "stop"


def _federation(text: str) -> tuple[str, tuple[x509.Certificate, ...]]:
    domain, _, path = text.partition("=")
    try:
        return domain, tuple(x509.load_pem_x509_certificates(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--federate {text}: {error}") from None


def _write(identities: Identities, out: Path) -> None:
    view = identities.view(None)
    replace_files(out, svid_files(view.svids[0], view.bundles, identities.authority.state.sequence))


def _seconds_left(identities: Identities) -> float:
    return identities.next_renewal - identities.authority.clock.time()
