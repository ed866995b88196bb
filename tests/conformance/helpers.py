"""Short ways to make cases and outcomes."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

from conformance.case import Case, load_file
from conformance.outcome import Outcome
from conformance.upstream.record import Hit


def case_of(folder: Path, text: str) -> Case:
    """The only case of a file with ``text``."""
    path = folder / "area.yaml"
    path.write_text(dedent(text))
    (case,) = load_file(path, folder)
    return case


def hit(upstream: str = "A", request: str = "0", **changes: object) -> Hit:
    """A plain GET as an upstream sees it."""
    fields: dict[str, object] = {
        "upstream": upstream,
        "request": request,
        "method": "GET",
        "target": "/",
        "version": "HTTP/1.1",
        "headers": (("host", "mesh.example"),),
        "body": b"",
    }
    return Hit(**(fields | changes))  # type: ignore[arg-type]


def outcome(number: int = 0, upstream: str = "A", **changes: object) -> Outcome:
    """A plain 200 from ``upstream``."""
    fields: dict[str, object] = {
        "id": str(number),
        "status": 200,
        "body": upstream.encode(),
        "details": "via_upstream",
        "attempts": 1,
        "hits": (hit(upstream, str(number)),),
    }
    return Outcome(**(fields | changes))  # type: ignore[arg-type]
