"""meshlib dump"""

from __future__ import annotations

import json
from urllib.parse import urlencode

import click

from meshlib.cli.running import PROCESS, fetch, one, targets

__all__ = ["dump"]


@click.command()
@PROCESS
@click.option("--include-eds", is_flag=True, help="Endpoints too, which may be many.")
@click.option("--resource", metavar="FIELD", help="Only these entries, such as dynamic_active_clusters.")
@click.option("--name-regex", metavar="REGEX", help="Only resources whose name matches.")
@click.option("--mask", metavar="PATHS", help="Keep only these fields, comma-separated.")
def dump(
    process: str | None, include_eds: bool, resource: str | None, name_regex: str | None, mask: str | None
) -> None:
    """Print the configuration that a running process holds, as JSON in the shape of Envoy's /config_dump.

    Each resource with its version, when it came, and what was refused. Keys, passwords and tokens are left out.
    """
    given = {
        "include_eds": "1" if include_eds else None,
        "resource": resource,
        "name_regex": name_regex,
        "mask": mask,
    }
    query = urlencode({name: value for name, value in given.items() if value})
    with targets(process) as found:
        answer = fetch(one(found), f"/config_dump?{query}")
    click.echo(json.dumps(answer, indent=2))
