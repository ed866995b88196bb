"""The mesh around: configuration, bootstrap, control plane, clock, certificates, running processes."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meshlib.admin.client import AdminError
from meshlib.admin.processes import ProcessDirectory
from meshlib.cli.config import checked
from meshlib.cli.doctor.findings import Check, Finding, Question, broken, warning, well
from meshlib.cli.output import span
from meshlib.errors import ConfigError, IdentityError
from meshlib.identity.material import certificates_from_pem
from meshlib.xds import bootstrap as reader
from meshlib.xds.bootstrap import Bootstrap

__all__ = ["MESH"]

SOON = 0.2
"""Share of a certificate's life that is left when it is worth a warning: it should have been renewed long ago."""

TIMEOUT = 3.0
SKEW = 5.0
"""Seconds that two clocks may differ."""


def configuration(question: Question) -> Iterator[Finding]:
    if not question.config:
        return
    loaded, problems = checked(question.config)
    for problem in problems[:10]:
        yield broken("config", str(problem), "meshlib validate says all that is wrong")
    if not problems:
        yield well("config", f"{len(loaded.resources)} resources, all valid")


def bootstrap(question: Question) -> Iterator[Finding]:
    names = ("GRPC_XDS_BOOTSTRAP", "GRPC_XDS_BOOTSTRAP_CONFIG")
    if not any(os.environ.get(name) for name in names):
        if not question.config:
            yield well(
                "bootstrap", "none in the environment: a Mesh needs config=, bootstrap= or server_uri="
            )
        return
    try:
        read = reader.load(None)
    except ConfigError as error:
        yield broken("bootstrap", str(error), "docs/bootstrap.md has an example of each field")
        return
    yield well("bootstrap", f"node {read.node.id!r}, control plane {read.server.server_uri}")
    for path in read.unsupported:
        yield warning("bootstrap", f"{path} is not supported and has no effect", "take it out")
    yield from _files(read)
    if not question.offline:
        yield from _reachable(read)


def _files(read: Bootstrap) -> Iterator[Finding]:
    """The credentials for the control plane."""
    credentials = read.server.credentials
    for what in ("ca_certificate_file", "certificate_file", "private_key_file"):
        path = getattr(credentials, what, None)
        if path is None:
            continue
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            yield broken(
                "bootstrap", f"{path} can't be read: {error.strerror}", "give this user the right to read it"
            )
            continue
        if what != "private_key_file":
            yield from _certificates(path, data)


def _certificates(path: str, data: bytes) -> Iterator[Finding]:
    from meshlib.admin.certs import read

    try:
        chain = certificates_from_pem(data)
    except IdentityError as error:
        yield broken("certificates", f"{path}: {error}", "it has to hold PEM certificates")
        return
    now = time.time()
    for der in chain:
        found = read(der)
        yield from _life(f"{found.name} in {path}", found.not_before, found.not_after, now)


def _life(name: str, not_before: float, not_after: float, now: float) -> Iterator[Finding]:
    if now >= not_after:
        ended = span(now - not_after)
        yield broken("certificates", f"{name} ended {ended} ago", "renew it, and see why that did not happen")
    elif now < not_before:
        ahead = span(not_before - now)
        yield broken("certificates", f"{name} begins in {ahead}", "set this machine's clock, or the CA's")
    elif not_after - now < SOON * (not_after - not_before):
        left = span(not_after - now)
        yield warning("certificates", f"{name} ends in {left}", "see that it is renewed")
    else:
        yield well("certificates", f"{name} ends in {span(not_after - now)}")


def _reachable(read: Bootstrap) -> Iterator[Finding]:
    """A TCP connection, no more: what the control plane says is for a Mesh to judge."""
    uri = read.server.server_uri
    address = uri.rpartition("/")[2] if "://" in uri or uri.startswith(("dns:", "ipv4:", "ipv6:")) else uri
    address = address.removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:")
    if uri.startswith("unix:"):
        path = uri.removeprefix("unix:").removeprefix("//")
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.settimeout(TIMEOUT)
            yield _tried(uri, lambda: probe.connect(path))
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        host, port = address, "443"

    def connect() -> None:
        socket.create_connection((host.strip("[]"), int(port)), timeout=TIMEOUT).close()

    yield _tried(uri, connect)


def _tried(uri: str, connect: Any) -> Finding:
    try:
        connect()
    except OSError as error:
        repair = (
            "start it, or correct server_uri in the bootstrap; look at name resolution and network policies"
        )
        return broken("control-plane", f"{uri} can't be reached: {error}", repair)
    return well("control-plane", f"{uri} takes connections")


def clock(_question: Question) -> Iterator[Finding]:
    """The kernel knows whether something keeps the clock right. It can't be asked everywhere."""
    synchronized = Path("/run/systemd/timesync/synchronized")
    now = time.time()
    newest = max((_modified(Path(path)) for path in ("/proc/self", str(Path(__file__)))), default=0.0)
    if now < newest - SKEW:
        behind = span(newest - now)
        yield broken(
            "clock", f"the clock is {behind} behind the newest file here", "set it: certificates depend on it"
        )
    elif synchronized.parent.exists() and not synchronized.exists():
        yield warning(
            "clock", "systemd-timesyncd has not synchronized the clock", "timedatectl status says why"
        )
    else:
        yield well("clock", time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now)))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def processes(question: Question) -> Iterator[Finding]:
    if question.offline:
        return
    try:
        directory = ProcessDirectory()
    except ConfigError:
        return  # said by another check
    with directory:
        for process in directory.list():
            try:
                model = directory.ask(process, "/mesh.json", timeout=TIMEOUT).json()
            except AdminError as error:
                yield broken("processes", str(error), "it may hang; `py-spy dump` shows where")
                continue
            yield from _process(process.name, model)


def _process(name: str, model: dict[str, Any]) -> Iterator[Finding]:
    found = model["process"]
    plane = found["control_plane"]
    if not found["ready"]:
        yield broken(
            "processes", f"{name} is not ready: {found['why_not_ready']}", "see the control plane's log"
        )
    elif plane["kind"] == "xds" and not plane["connected"]:
        reason = plane["error"] or "no answer yet"
        yield warning(
            "processes",
            f"{name} has lost its control plane: {reason}",
            "its last configuration stays in force",
        )
    else:
        yield well("processes", f"{name} is ready")
    for problem in model["problems"]:
        what = f"{name} has refused {problem['type']} {problem['name']}: {problem['reason']}"
        yield broken("processes", what, "correct the resource; the version before stays in force")
    for each in model["certificates"]:
        if each["kind"] == "own":
            yield from _life(f"{each['name']} of {name}", each["not_before"], each["not_after"], model["now"])
    skew = abs(time.time() - model["now"])
    if skew > SKEW:
        yield warning(
            "clock", f"the clock of {name} differs by {span(skew)}", "a time namespace, or faked time?"
        )


MESH: tuple[Check, ...] = (configuration, bootstrap, clock, processes)
