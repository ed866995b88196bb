"""The benchmark of observers: variants run, and are compared with none."""

from __future__ import annotations

import random

from benchmarks.observe import VARIANTS, run


def test_variants_are_measured() -> None:
    chosen = [variant for variant in VARIANTS if variant.name in ("told", "metrics", "recent")]
    rows = run(1, random.Random(0), chosen)
    assert [row["case"] for row in rows] == [
        "observe/nothing",
        "observe/told",
        "observe/metrics",
        "observe/recent",
    ]
    assert rows[0]["us_more"] == 0
    assert all(row["us_call"] > 0 for row in rows)
