"""meshlib status"""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from meshlib.admin.client import AdminError
from meshlib.cli.output import ago, clean, moment, span, table
from meshlib.cli.running import PROCESS, TIMEOUT, Target, some, targets

__all__ = ["status"]


@click.command()
@PROCESS
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def status(process: str | None, as_json: bool) -> None:
    """Say how the running processes are: connected since when, which versions, what was refused, when certificates end.

    Exits with 0 when all of them can make calls and have refused nothing, else with 1.
    """
    found: list[dict[str, Any]] = []
    silent: list[dict[str, str]] = []
    with targets(process) as listed:
        for target in some(listed):
            try:
                found.append(_ask(target))
            except AdminError as error:
                silent.append({"name": target.name, "reason": str(error)})
    if as_json:
        click.echo(json.dumps({"processes": found, "unreachable": silent}))
    else:
        for each in found:
            _show(each)
        for missing in silent:
            click.echo(f"{missing['name']}: {clean(missing['reason'])}", err=True)
    good = not silent and all(each["ready"] and not each["problems"] for each in found)
    sys.exit(0 if good else 1)


def _ask(target: Target) -> dict[str, Any]:
    answer = target.asker.ask("/mesh.json?parts=certificates,problems,unsupported", timeout=TIMEOUT)
    if answer.status != 200:
        raise AdminError(f"{target.name}: {answer.status} {answer.body.decode('utf-8', 'replace').strip()}")
    model = answer.json()
    try:
        process = model["process"]
        return {
            **{name: process[name] for name in ("name", "pid", "group", "service", "command", "url", "host")},
            "now": model["now"],
            "meshlib": process["meshlib"],
            "started": process["started"],
            "ready": process["ready"],
            "why_not_ready": process["why_not_ready"],
            "control_plane": process["control_plane"],
            "types": process["types"],
            "certificates": model["certificates"],
            "problems": model["problems"],
            "unsupported": len(model["unsupported"]),
        }
    except (KeyError, TypeError) as error:
        raise AdminError(f"{target.name}: not the answer of a meshlib of this version") from error


def _show(found: dict[str, Any]) -> None:
    now = found["now"]
    state = "ready" if found["ready"] else f"not ready: {found['why_not_ready']}"
    name = found["service"] or found["command"]
    click.echo(clean(f"{found['name']}  {name}  {state}, up {span(max(now - found['started'], 0.0))}"))
    if found["url"]:
        click.echo(clean(f"  admin          {found['url']}"))
    click.echo(clean(f"  control plane  {_control_plane(found['control_plane'], now)}"))
    if found["unsupported"]:
        click.echo(f"  not applied    {found['unsupported']} fields; `meshlib explain` names them")
    table(
        "",
        ("type", "resources", "version", "last ack", "last nack"),
        [
            (
                each["type"],
                each["resources"],
                each["version"] or "-",
                ago(_at(each["last_ack"]), now),
                _nack(each["last_nack"], now),
            )
            for each in found["types"]
            if each["resources"] or each["last_nack"]
        ],
    )
    table(
        "",
        ("certificate", "kind", "ends", "in"),
        [
            (each["name"], each["kind"], moment(each["not_after"]), _left(each["expires_in"]))
            for each in found["certificates"]
        ],
    )
    for problem in found["problems"]:
        kept = "the version before stays in force" if problem["in_force"] else "nothing is in force"
        reason = clean(problem["reason"])
        click.echo(f"  refused: {problem['type']} {clean(problem['name'])}: {reason} ({kept})")


def _control_plane(found: dict[str, Any], now: float) -> str:
    if found["kind"] == "files":
        return f"none, files read {ago(found['connected_since'], now)}"
    if found["connected"]:
        return f"{found['server']}, connected {ago(found['connected_since'], now)}"
    return f"{found['server']}, not connected" + (f": {found['error']}" if found["error"] else "")


def _at(verdict: dict[str, Any] | None) -> float | None:
    return None if verdict is None else float(verdict["at"])


def _nack(verdict: dict[str, Any] | None, now: float) -> str:
    return "-" if verdict is None else f"{ago(verdict['at'], now)}: {verdict['reason']}"


def _left(seconds: float) -> str:
    return span(seconds) if seconds > 0 else "over"
