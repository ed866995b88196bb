"""meshlib validate"""

from __future__ import annotations

import click

from meshlib.cli.config import CONFIG, checked, fail
from meshlib.errors import ResourceError
from meshlib.resources import decode
from meshlib.resources.files import DECODED, FileConfig, Problem

__all__ = ["validate"]


@click.command()
@CONFIG
@click.option("-q", "--quiet", is_flag=True, help="Print nothing when all is valid.")
def validate(config: tuple[str, ...], quiet: bool) -> None:
    """Check configuration files.

    Exits with 0 when all is valid. Otherwise prints one line for each problem, FILE:LINE: path.to.field: what is wrong, and
    exits with 1. Fields that are valid but not applied by this version are listed as notes.
    """
    loaded, problems = checked(config)
    if problems:
        fail(problems)
    if not quiet:
        for note in _notes(loaded):
            click.echo(note)
        count = len(loaded.resources)
        click.echo(f"{count} resource{'' if count == 1 else 's'}, all valid")


def _notes(loaded: FileConfig) -> list[str]:
    notes: list[Problem] = []
    for resource in loaded.resources:
        if resource.type_url not in DECODED:
            continue
        try:
            decoded = decode(resource.type_url, resource.message)
        except ResourceError:
            continue
        notes += [
            resource.origin.problem(path, "not applied by this version") for path in decoded.unsupported
        ]
        notes += [resource.origin.problem("", warning) for warning in decoded.warnings]
    return [f"note: {note}" for note in notes]
