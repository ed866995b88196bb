"""meshlib demo"""

from __future__ import annotations

import sys
import time

import click

__all__ = ["demo"]


@click.command()
def demo() -> None:
    """A whole mesh on this machine, nothing to configure.

    A control plane, three versions of a small HTTP service and a client, each a process on loopback: a canary, a shift of
    weights, a crash, an ejection, and the loss of the control plane. Takes under 40 s. Exits with 1 if a promise was broken.
    """
    from meshlib.cli.demo.processes import DemoError
    from meshlib.cli.demo.story import Story
    from meshlib.cli.demo.view import open_view

    started = time.monotonic()
    click.echo("meshlib demo: a control plane, three versions of `reviews` and a client, all on 127.0.0.1")
    try:
        with open_view() as view:
            story = Story(view)
            story.run()
    except DemoError as error:
        click.echo(f"meshlib demo: {error}", err=True)
        sys.exit(1)
    seconds = time.monotonic() - started
    total = story.total
    click.echo(
        f"\n{total.requests} requests in {seconds:.0f} s, {total.failed} failed; "
        f"{story.kept} promises kept, {len(story.broken)} broken"
    )
    for promise in story.broken:
        click.echo(f"broken: {promise}", err=True)
    sys.exit(1 if story.broken else 0)
