"""meshlib doctor"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from meshlib.cli.doctor.environment import ENVIRONMENT
from meshlib.cli.doctor.findings import Level, Question
from meshlib.cli.doctor.mesh import MESH
from meshlib.cli.output import clean

__all__ = ["doctor"]


@click.command()
@click.option(
    "--config",
    "-c",
    multiple=True,
    type=click.Path(exists=True),
    help="Configuration files to look at; repeatable.",
)
@click.option("--offline", is_flag=True, help="Connect to nothing: neither the control plane nor processes.")
@click.option("--verbose", "-v", is_flag=True, help="Also what is well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(config: tuple[str, ...], offline: bool, verbose: bool, as_json: bool) -> None:
    """Look for what is known to break meshlib on a machine, and say how to repair it.

    Looks at this Python with its packages, the environment, the bootstrap and the control plane that it names, certificates, and
    the processes that run. Exits with 1 when something is broken; warnings do not count.
    """
    question = Question(config=config, offline=offline)
    found = [finding for check in (*ENVIRONMENT, *MESH) for finding in check(question)]
    broken = any(finding.level is Level.BROKEN for finding in found)
    if as_json:
        listed = [{**asdict(finding), "level": finding.level.value} for finding in found]
        click.echo(json.dumps({"ok": not broken, "findings": listed}))
        sys.exit(1 if broken else 0)
    for finding in found:
        if finding.level is Level.WELL and not verbose:
            continue
        click.echo(f"{_marks(finding.level)} {clean(finding.subject)}: {clean(finding.text)}")
        if finding.repair:
            click.echo(f"     {clean(finding.repair)}")
    count = sum(finding.level is Level.BROKEN for finding in found)
    warnings = sum(finding.level is Level.WARNING for finding in found)
    click.echo(
        f"{len(found)} checks: {count} broken, {warnings} {'warning' if warnings == 1 else 'warnings'}"
    )
    sys.exit(1 if broken else 0)


def _marks(level: Level) -> str:
    colour = {Level.WELL: "green", Level.WARNING: "yellow", Level.BROKEN: "red"}[level]
    return click.style(f"{level.value:<8}", fg=colour)
