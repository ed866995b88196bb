"""A document of metrics as text: Prometheus's format 0.0.4, and OpenMetrics 1.0 for those who ask for it.

Names are the same in both, so that a dashboard does not depend on what was negotiated. OpenMetrics wants each counter to end in
`_total` and no two families to have one stem, which many of Envoy's counters do not respect (`upstream_rq` beside
`upstream_rq_total`); those are shown with the type `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterator

from meshlib.observe.document import COUNTER, Document, Times
from meshlib.observe.words import HELP
from meshlib.stats import Labels

__all__ = ["OPENMETRICS", "TEXT", "exposition"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


def exposition(document: Document, accept: str = "") -> tuple[str, str]:
    """The content type and the text. accept: the request's header of this name; empty for the Prometheus format."""
    if _wants_openmetrics(accept):
        return OPENMETRICS, "".join((*_families(document, openmetrics=True), "# EOF\n"))
    return TEXT, "".join(_families(document, openmetrics=False))


def _wants_openmetrics(accept: str) -> bool:
    """Whether that is preferred (RFC 9110, 12.5.1: by weight)."""
    best = {"openmetrics": 0.0, "text": 0.0}
    for part in accept.lower().split(","):
        kind, _, rest = part.partition(";")
        weight = 1.0
        for parameter in rest.split(";"):
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
        if kind.strip() == "application/openmetrics-text" and "version=0.0" not in rest:
            best["openmetrics"] = max(best["openmetrics"], weight)
        elif kind.strip() in ("text/plain", "text/*", "*/*"):
            best["text"] = max(best["text"], weight)
    return best["openmetrics"] > 0 and best["openmetrics"] >= best["text"]


def _families(document: Document, *, openmetrics: bool) -> Iterator[str]:
    for name in sorted(document.families):
        family = document.families[name]
        shown, kind = name, family.kind
        if openmetrics and kind == COUNTER:
            stem = name.removesuffix("_total")
            if stem != name and stem not in document.families:
                shown = stem
            else:
                kind = "unknown"
        words = HELP.get(family.source) or f"Envoy's {family.source}."
        yield f"# HELP {shown} {_escaped_help(words, quotes=openmetrics)}\n# TYPE {shown} {kind}\n"
        for labels, value in family.samples.items():
            yield from _sample(name, labels, value)


def _sample(name: str, labels: Labels, value: float | Times) -> Iterator[str]:
    text = _labels(labels)
    if not isinstance(value, Times):
        yield f"{name}{{{text}}} {number(value)}\n" if text else f"{name} {number(value)}\n"
        return
    before = f"{text}," if text else ""
    below = 0
    for bound, count in zip(value.bounds, value.buckets, strict=False):
        below += count
        yield f'{name}_bucket{{{before}le="{number(bound)}"}} {below}\n'
    count = below + value.buckets[-1]
    braces = f"{{{text}}}" if text else ""
    yield f'{name}_bucket{{{before}le="+Inf"}} {count}\n'
    yield f"{name}_sum{braces} {number(value.total)}\n{name}_count{braces} {count}\n"


def _labels(labels: Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str) -> str:
    if "\\" in value or '"' in value or "\n" in value:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return value


def _escaped_help(words: str, *, quotes: bool) -> str:
    words = words.replace("\\", "\\\\").replace("\n", "\\n")
    return words.replace('"', '\\"') if quotes else words


def number(value: float) -> str:
    """Without a fraction where there is none, as Envoy writes its bounds."""
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else repr(value)
