"""meshlib tap"""

from __future__ import annotations

import datetime as dt
import json
import queue
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import click

from meshlib.admin.client import AdminError, Lines
from meshlib.cli.config import fail
from meshlib.cli.output import clean
from meshlib.cli.running import PROCESS, Target, some, targets

__all__ = ["tap"]

Arrival = tuple[str, dict[str, Any] | None, str | None]
"""The process, and a call; or None, and why there will be no more where something went wrong."""


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
    arrived: queue.SimpleQueue[Arrival] = queue.SimpleQueue()
    followed: list[Lines] = []
    problems: list[str] = []
    with targets(process) as found:
        try:
            for target in some(found):
                _follow(target, path, arrived, followed, problems)
            several = len(followed) > 1
            for name, call in _calls(arrived, len(followed), count, problems):
                line = (
                    json.dumps({"process": name, **call}) if as_json else _text(call, name if several else "")
                )
                click.echo(line)
        except KeyboardInterrupt:
            problems.clear()
        finally:
            for lines in followed:
                lines.close()
    if problems:
        fail(problems)


def _follow(
    target: Target,
    path: str,
    arrived: queue.SimpleQueue[Arrival],
    followed: list[Lines],
    problems: list[str],
) -> None:
    """Have the calls of one process arrive, by a thread of its own."""
    try:
        lines = target.asker.lines(path)
    except AdminError as error:
        problems.append(f"meshlib: {clean(str(error))}")
        return
    followed.append(lines)
    threading.Thread(target=_read, args=(target.name, lines, arrived), daemon=True).start()


def _read(name: str, lines: Lines, arrived: queue.SimpleQueue[Arrival]) -> None:
    why: str | None = None
    try:
        for text in lines:
            if text.strip():
                arrived.put((name, json.loads(text), None))
    except (AdminError, ValueError) as error:
        why = str(error)
    arrived.put((name, None, why))


def _calls(
    arrived: queue.SimpleQueue[Arrival], alive: int, count: int | None, problems: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Until there were enough, or nobody is left."""
    while alive and (count is None or count > 0):
        name, call, why = arrived.get()
        if call is None:
            alive -= 1
            if why is None:
                click.echo(f"meshlib: process {name} has ended", err=True)
            else:
                problems.append(f"meshlib: {clean(why)}")
        elif "left_out" in call:
            click.echo(f"meshlib: {call['left_out']} calls of {name} were too many to follow", err=True)
        else:
            yield name, call
            count = None if count is None else count - 1


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
