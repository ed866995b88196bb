"""The counters of a run: Envoy's names, without what is particular to the case, and what of them is compared.

A case has its clusters and its `stat_prefix` for itself, so its counters begin at zero and no other case moves them. They
are read when the case's last request is over on both sides: what happens to connections afterwards, while nobody waits for
them, is not compared.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from conformance.compare import Difference

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from conformance.case import Case

Counters = dict[str, float]
"""By short name: `cluster.A.upstream_rq_total`, `http.no_route`. A histogram is the number of its samples."""

BUSY = re.compile(r"^(cluster\..*\.upstream_rq(_pending)?_active|http\..*\.?downstream_rq_active)$")
"""Gauges that are zero once the requests of a case are over."""

GAUGES = re.compile(
    r"(_active|active_faults|_lb\.\w+|membership_(total|healthy|degraded|excluded)|circuit_breakers\..*)$"
)
"""What is compared as it is in the end; the others only grow."""

_CLUSTER = "|".join(
    (
        r"upstream_cx_(destroy\w*|close_notify|max_requests|length_ms|connect_ms|[rt]x_bytes_\w+)|upstream_rq_per_cx",
        r"upstream_flow_control_\w+|http2\..*|circuit_breakers\.\w+\.remaining_cx_pools",
        r"default\.total_match_count|max_host_weight|update_time|version|warming_state|assignment_\w+",
    )
)
_HTTP = "|".join(
    (
        r"downstream_(cx|flow_control)_\w+|downstream_rq_(http[123]_total|time)",
        r"rds\..*|tracing\..*|user_agent\..*",
    )
)
LEFT_OUT = re.compile(rf"^(cluster\.[^.]+\.({_CLUSTER})|http\.({_HTTP}))$")
"""What is not compared, since a library has no such counter: how connections end, their bytes and flow control; connections of
callers; versions and times of configuration; what says how Envoy works inside. All other names are, whichever side has them.
"""


def shortened(found: Iterable[tuple[str, float]], case: Case) -> Counters:
    """What of `found`, by full name, belongs to the case and is compared."""
    prefixes = {f"cluster.{case.name}.": "cluster.", f"http.{case.name}.": "http.", "vhost.": "vhost."}
    short = {}
    for name, value in found:
        for prefix, instead in prefixes.items():
            if name.startswith(prefix):
                name = instead + name[len(prefix) :]
                if not LEFT_OUT.match(name):
                    short[name] = value
    return short


def own(name: str) -> bool:
    """Whether no other case moves it."""
    return not name.startswith("vhost.")


def since(now: Counters, before: Counters, first: Counters) -> Counters:
    """The counters of a run, as if it were the first.

    before: as it began. first: as the first run of the case began, which is what its configuration has counted.
    """
    return {
        name: value if GAUGES.search(name) else value - before.get(name, 0) + first.get(name, 0)
        for name, value in now.items()
    }


def differing(case: Case, envoy: Mapping[str, float], other: Mapping[str, float]) -> list[Difference]:
    """The counters whose values differ; one that is not there is zero.

    Where a case draws at random, it has to be the same ones that are not zero.
    """
    drawn = case.compare.distribution is not None
    found = []
    for name in sorted({*envoy, *other}):
        one, two = envoy.get(name, 0), other.get(name, 0)
        if drawn:
            one, two = min(one, 1), min(two, 1)
        if one != two:
            found.append(Difference(field=f"counters.{name}", where="", envoy=one, other=two))
    return found


def compared(envoy: Mapping[str, float], other: Mapping[str, float]) -> int:
    """How many counters there were to compare: those that are not zero on both sides."""
    return sum(1 for name in {*envoy, *other} if envoy.get(name) or other.get(name))
