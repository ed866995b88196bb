"""The `meshlib` command and what its commands share."""

from __future__ import annotations

import click

from meshlib import __version__
from meshlib.cli.ca import ca
from meshlib.cli.demo import demo
from meshlib.cli.doctor import doctor
from meshlib.cli.dump import dump
from meshlib.cli.explain import explain
from meshlib.cli.graph import graph
from meshlib.cli.serve import serve
from meshlib.cli.status import status
from meshlib.cli.tap import tap
from meshlib.cli.validate import validate

__all__ = ["app"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="meshlib")
def app() -> None:
    """A service mesh that is an import.

    Exit status: 0 on success, 1 on a negative answer, 2 on wrong usage. Errors go to standard error.
    """


for command in (demo, serve, validate, explain, status, dump, tap, graph, doctor, ca):
    app.add_command(command)
