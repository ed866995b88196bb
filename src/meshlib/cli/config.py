"""Reading the CONFIG arguments."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from meshlib.resources import decode
from meshlib.resources.files import FileConfig, Problem, load, validate

__all__ = ["CONFIG", "checked", "fail"]

CONFIG = click.argument(
    "config", nargs=-1, required=True, type=click.Path(exists=True, readable=True), metavar="CONFIG..."
)
"""Files or folders (their *.yaml, *.yml and *.json)."""


def checked(paths: Sequence[str]) -> tuple[FileConfig, list[Problem]]:
    """The resources of the files, and all that is wrong with them."""
    config = load(paths)
    return config, validate(config, decode)


def fail(lines: Sequence[object]) -> NoReturn:
    """Write the lines to standard error and exit with 1."""
    for line in lines:
        click.echo(str(line), err=True)
    sys.exit(1)
