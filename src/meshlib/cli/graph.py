"""meshlib graph"""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from typing import Any

import click

from meshlib.admin.client import AdminError
from meshlib.admin.graph import merged
from meshlib.cli.config import fail
from meshlib.cli.output import clean
from meshlib.cli.running import PROCESS, TIMEOUT, some, targets

__all__ = ["graph"]


@click.command()
@PROCESS
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "dot", "mermaid", "html", "json"]),
    default="text",
    show_default=True,
    help="dot for Graphviz, mermaid for Markdown, html to look at.",
)
def graph(process: str | None, form: str) -> None:
    """Say who calls whom: the graph that all running processes make together, with rates, errors and mutual TLS."""
    graphs: list[dict[str, Any]] = []
    reasons: list[str] = []
    with targets(process) as found:
        for target in some(found):
            try:
                graphs.append(target.asker.ask("/mesh.json?parts=graph", timeout=TIMEOUT).json()["graph"])
            except (AdminError, KeyError, TypeError) as error:
                reasons.append(f"meshlib: {target.name}: {clean(str(error))}")
    for reason in reasons:
        click.echo(reason, err=True)
    if not graphs:
        fail([])
    click.echo(FORMS[form](merged(graphs)))


def _label(edge: dict[str, Any]) -> str:
    if edge["rate"] is None:
        return f"{edge['total']} calls"
    parts = [f"{edge['rate']:g}/s"]
    if edge["error_rate"]:
        parts.append(f"{100 * edge['error_rate'] / edge['rate']:.0f} % errors")
    if edge["p50"] is not None:
        parts.append(f"{edge['p50']:.3g} ms")
    return ", ".join(parts)


def _lock(edge: dict[str, Any]) -> str:
    return "mTLS" if edge["mtls"] else "TLS" if edge["tls"] else ""


def _text(found: dict[str, Any]) -> str:
    lines = [
        f"{clean(edge['source'])} -> {clean(edge['destination'])}  {_label(edge)}"
        + (f"  {_lock(edge)}" if edge["tls"] else "")
        + (f"  {clean(edge['principal'])}" if edge["principal"] else "")
        for edge in sorted(found["edges"], key=lambda edge: (edge["source"], edge["destination"]))
    ]
    return "\n".join(lines) or "no calls yet"


def _dot(found: dict[str, Any]) -> str:
    lines = ["digraph mesh {", "  rankdir=LR;", '  node [shape=box, style=rounded, fontname="sans-serif"];']
    for node in found["nodes"]:
        bold = ", penwidth=2" if node["kind"] == "self" else ""
        lines.append(f"  {_quoted(node['id'])} [label={_quoted(node['id'])}{bold}];")
    for edge in found["edges"]:
        label = "\n".join(part for part in (_label(edge), _lock(edge)) if part)
        color = ", color=red" if edge["error_rate"] else ""
        lines.append(
            f"  {_quoted(edge['source'])} -> {_quoted(edge['destination'])} [label={_quoted(label)}{color}];"
        )
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _mermaid(found: dict[str, Any]) -> str:
    numbers = {node["id"]: f"n{number}" for number, node in enumerate(found["nodes"])}
    lines = ["flowchart LR"]
    lines += (f'  {numbers[node["id"]]}["{_entities(node["id"])}"]' for node in found["nodes"])
    for edge in found["edges"]:
        label = _entities(" ".join(part for part in (_label(edge), _lock(edge)) if part))
        arrow = "==>" if edge["mtls"] else "-->"
        lines.append(f'  {numbers[edge["source"]]} {arrow}|"{label}"| {numbers[edge["destination"]]}')
    return "\n".join(lines)


def _entities(text: str) -> str:
    return "".join(c if c.isalnum() or c in " ./:-_,%" else f"#{ord(c)};" for c in text)


def _html(found: dict[str, Any]) -> str:
    """A page that stands alone: services in columns by how far they are from who begins, and a table of the same."""
    places = _places(found)
    drawn = [_box(name, *place) for name, place in places.items()]
    lines = [
        _line(edge, places[edge["source"]], places[edge["destination"]])
        for edge in found["edges"]
        if edge["source"] in places and edge["destination"] in places
    ]
    width = max((x for x, _ in places.values()), default=0) + 220
    height = max((y for _, y in places.values()), default=0) + 90
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td>{html.escape(str(cell))}</td>"
            for cell in (
                edge["source"],
                edge["destination"],
                _label(edge),
                _lock(edge),
                edge["principal"] or "",
            )
        )
        + "</tr>"
        for edge in found["edges"]
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Service graph</title><style>{_STYLE}</style>'
        f'<h1>Service graph</h1><svg viewBox="0 0 {width} {height}" width="{width}" role="img" '
        f'aria-label="Service graph; the table below says the same">{_ARROW}{"".join(lines)}{"".join(drawn)}</svg>'
        "<table><thead><tr><th>From<th>To<th>Traffic<th>TLS<th>Identity</thead>"
        f"<tbody>{rows}</tbody></table></html>"
    )


_STYLE = (
    "body{font:15px system-ui,sans-serif;margin:2rem;color:#1b1f24;background:#fff}svg{max-width:100%}"
    "rect{fill:#f4f6f8;stroke:#5b6770}text{font-size:13px;text-anchor:middle;fill:#1b1f24}"
    "path.edge{stroke:#5b6770;fill:none;stroke-width:1.5}path.bad{stroke:#c62828}"
    "table{border-collapse:collapse;margin-top:1rem}td,th{text-align:left;padding:.3rem .8rem;border-bottom:1px solid #ddd}"
)
_ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#5b6770"/></marker></defs>'
)


def _places(found: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Where each service stands: a column further than the nearest that calls it; cycles do no harm."""
    calls: dict[str, list[str]] = {node["id"]: [] for node in found["nodes"]}
    called = set()
    for edge in found["edges"]:
        if edge["source"] != edge["destination"]:
            calls.setdefault(edge["source"], []).append(edge["destination"])
            called.add(edge["destination"])
    column = {name: 0 for name in calls if name not in called} or dict.fromkeys(list(calls)[:1], 0)
    front = list(column)
    while front or len(column) < len(calls):
        if not front:  # a cycle that nobody outside calls
            front = [next(name for name in calls if name not in column)]
            column[front[0]] = 0
        beyond = [name for caller in front for name in calls.get(caller, ()) if name not in column]
        for caller in front:
            for name in calls.get(caller, ()):
                column.setdefault(name, column[caller] + 1)
        front = list(dict.fromkeys(beyond))
    rows: dict[int, int] = {}
    places = {}
    for name, number in column.items():
        row = rows[number] = rows.get(number, -1) + 1
        places[name] = (110 + number * 300, 45 + row * 90)
    return places


def _box(name: str, x: int, y: int) -> str:
    shown = name if len(name) <= 24 else name[:22] + "\N{HORIZONTAL ELLIPSIS}"
    return (
        f'<g><title>{html.escape(name)}</title><rect x="{x - 90}" y="{y - 20}" width="180" height="40" rx="6"/>'
        f'<text x="{x}" y="{y + 5}">{html.escape(shown)}</text></g>'
    )


def _line(edge: dict[str, Any], start: tuple[int, int], end: tuple[int, int]) -> str:
    (x1, y1), (x2, y2) = start, end
    x1, x2 = (x1 + 90, x2 - 90) if x2 > x1 else (x1 - 90, x2 + 90)
    middle = (x1 + x2) // 2
    kind = "edge bad" if edge["error_rate"] else "edge"
    label = html.escape(" ".join(part for part in (_label(edge), _lock(edge)) if part))
    return (
        f'<path class="{kind}" marker-end="url(#arrow)" d="M{x1} {y1}C{middle} {y1} {middle} {y2} {x2} {y2}"/>'
        f'<text x="{middle}" y="{(y1 + y2) // 2 - 6}">{label}</text>'
    )


FORMS: dict[str, Callable[[dict[str, Any]], str]] = {
    "text": _text,
    "dot": _dot,
    "mermaid": _mermaid,
    "html": _html,
    "json": json.dumps,
}
