"""Which running processes a command is about: those of the process directory, one of them, or one at a URL."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from meshlib.admin.client import AdminError, Asker, by_url
from meshlib.admin.processes import ProcessDirectory
from meshlib.cli.config import fail
from meshlib.errors import ConfigError

__all__ = ["PROCESS", "Target", "fetch", "one", "some", "targets"]

PROCESS = click.option(
    "--process",
    "-p",
    metavar="PID|URL",
    help="A process by its pid (as `meshlib status` lists it), or the URL of its admin. [default: all that there are]",
)

TIMEOUT = 10.0
"""Seconds that a process has to answer."""

_NONE = (
    "there is no process with an admin here; start it with MESHLIB_ADMIN=1 or Observe(admin=True), as this user "
    "(MESHLIB_RUN_DIR has to be the same too), or give --process URL"
)


@dataclass(frozen=True, slots=True)
class Target:
    """A process that can be asked. name: as `--process` takes it."""

    name: str
    asker: Asker


@contextlib.contextmanager
def targets(process: str | None) -> Iterator[list[Target]]:
    """All processes of the directory, or the one that is meant; maybe none. Exits with 1 when the directory can't be used."""
    if process is not None and "://" in process:
        try:
            yield [Target(process, by_url(process))]
        except ConfigError as error:
            raise click.UsageError(str(error)) from error
        return
    try:
        directory = ProcessDirectory()
    except ConfigError as error:
        fail([f"meshlib: {error}"])
    with directory:
        if process is not None:
            try:
                yield [Target(process, directory.asker(process))]
            except ConfigError as error:
                raise click.UsageError(str(error)) from error
            return
        yield [Target(found.name, directory.asker(found)) for found in directory.list()]


def some(found: list[Target]) -> list[Target]:
    """The same; exits with 1 when there is none."""
    return found or fail([f"meshlib: {_NONE}"])


def one(found: list[Target]) -> Target:
    """The only one; exits with 1 when there is none, wrong usage when there are several."""
    if not found:
        fail([f"meshlib: {_NONE}"])
    if len(found) > 1:
        names = ", ".join(target.name for target in found)
        raise click.UsageError(f"there are several processes, name one with --process: {names}")
    return found[0]


def fetch(target: Target, path: str) -> Any:
    """The JSON that the process answers. Exits with 1 when it does not."""
    try:
        answer = target.asker.ask(path, timeout=TIMEOUT)
        if answer.status == 200:
            return answer.json()
        reason = answer.body.decode("utf-8", "replace").strip()
    except AdminError as error:
        reason = str(error)
    return fail([f"meshlib: {reason}"])
