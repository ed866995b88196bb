"""meshlib tap"""

from __future__ import annotations

import datetime as dt
import json
import queue
import threading
from typing import Any
from urllib.parse import urlencode

import click

from meshlib.admin.client import AdminError
from meshlib.cli.config import fail
from meshlib.cli.output import clean
from meshlib.cli.running import PROCESS, Target, some, targets

__all__ = ["tap"]

Line = tuple[str, dict[str, Any] | None, str | None]
"""The process, and a call or why there will be no more."""


@click.command()
@PROCESS
@click.option("--cluster", metavar="NAME", help="Only calls to this cluster.")
@click.option("--route", metavar="NAME", help="Only calls of this route (its name, or its index).")
@click.option("--status", metavar="CODE", help="Only calls with this status: 503, or 5xx.")
@click.option("--flag", metavar="FLAG", help="Only calls with this response flag: UH, URX, ..., or any.")
@click.option(
    "--min-duration", metavar="MS", type=float, help="Only calls that took that long, in milliseconds."
)
@click.option(
    "--header", "-H", metavar="'K: V'", help="Only requests with this header; the value may be left out."
)
@click.option("--count", "-n", type=click.IntRange(min=1), metavar="N", help="End after so many calls.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON object a line, with the decision of each call."
)
def tap(
    process: str | None,
    cluster: str | None,
    route: str | None,
    status: str | None,
    flag: str | None,
    min_duration: float | None,
    header: str | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Follow the calls of running processes as they end. Ctrl-C ends it."""
    given = {
        "cluster": cluster,
        "route": route,
        "status": status,
        "flag": flag,
        "min_duration": min_duration,
        "header": header,
    }
    path = "/tap?" + urlencode({name: value for name, value in given.items() if value is not None})
    lines: queue.SimpleQueue[Line] = queue.SimpleQueue()
    with targets(process) as found:
        followed = some(found)
        for target in followed:
            threading.Thread(target=_follow, args=(target, path, lines), daemon=True).start()
        try:
            left = _print(lines, len(followed), count, as_json=as_json, several=len(followed) > 1)
        except KeyboardInterrupt:
            return
    if left:
        fail(left)


def _follow(target: Target, path: str, lines: queue.SimpleQueue[Line]) -> None:
    why = "has ended"
    try:
        for text in target.asker.lines(path):
            if text.strip():
                lines.put((target.name, json.loads(text), None))
    except (AdminError, ValueError) as error:
        why = str(error)
    lines.put((target.name, None, why))


def _print(
    lines: queue.SimpleQueue[Line], alive: int, count: int | None, *, as_json: bool, several: bool
) -> list[str]:
    """Until there are enough, or nobody is left; then why."""
    reasons: list[str] = []
    while alive and (count is None or count > 0):
        name, call, why = lines.get()
        if call is None:
            alive -= 1
            reasons.append(f"meshlib: {name}: {clean(why or '')}")
            continue
        if "left_out" in call:
            click.echo(f"meshlib: {name}: {call['left_out']} calls were too many to follow", err=True)
            continue
        click.echo(json.dumps({"process": name, **call}) if as_json else _text(call, name if several else ""))
        if count is not None:
            count -= 1
    return reasons if count else []


def _text(call: dict[str, Any], name: str) -> str:
    at = dt.datetime.fromtimestamp(call["at"], dt.UTC).strftime("%H:%M:%S.%f")[:-3]
    duration = "-" if call["duration"] is None else f"{call['duration']:.1f} ms"
    status = str(call["status"]) if call["grpc_status"] is None else f"grpc {call['grpc_status']}"
    parts = [at, name, call["method"], f"{call['authority']}{call['path']}", status, call["flags"], duration]
    if call["cluster"]:
        parts.append(f"-> {call['cluster']} {call['endpoint'] or '(no endpoint)'}")
    if call["attempts"] > 1:
        parts.append(f"{call['attempts']} attempts")
    if call["details"] != "via_upstream":
        parts.append(call["details"])
    return clean(" ".join(part for part in parts if part))
