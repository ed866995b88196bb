"""`make soak`, or `python -m benchmarks.soak`: see the package's text."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.soak.run import Late, Plan, certificates_in, faults, run

HEADS = (
    *("client", "calls", "long", "failed", "rotations", "oldest (own/peer)"),
    *("p50 between", "p50 around", "p99 between", "p99 around", "p99 of as many others", "p99 all"),
)


def table(found: dict[str, Any]) -> str:
    """One line for each client; latencies in milliseconds."""
    lines: list[tuple[str, ...]] = [HEADS]
    for name, client in found["clients"].items():
        between, around, whole = (client[part] or {} for part in ("between", "around", "all"))
        times = (between.get("p50"), around.get("p50"), between.get("p99"), around.get("p99"))
        counts = (client["calls"], client["long_calls"], client["failed"], client["rotations"])
        lines.append(
            (
                name,
                *map(str, counts),
                f"{client['oldest_own']}/{client['oldest_peer']}",
                *map(_shown, times),
                "..".join(map(_shown, client["others"] or [None])),
                _shown(whole.get("p99")),
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not index else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths))
        )
        for line in lines
    )


def _shown(time: float | None) -> str:
    return "-" if time is None else f"{time:.2f}"


def costs(found: dict[str, Any]) -> str:
    """Of each process: after the first rotation, and at the end."""
    lines = []
    for name, process in found["processes"].items():
        first, last = process["first"], process["last"]
        told = ", ".join(
            f"{what} {first[key]:.0f} -> {last[key]:.0f}"
            for what, key in (("MiB", "rss_mib"), ("threads", "threads"), ("descriptors", "descriptors"))
        )
        lines.append(f"{name}: {told}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="Rotation under load.")
    parser.add_argument("--minutes", type=float, default=10.0, help="default: 10")
    parser.add_argument("--lifetime", type=float, default=60.0, help="of an SVID, seconds (default: 60)")
    parser.add_argument("--concurrency", type=int, default=16, help="of all four clients (default: 16)")
    parser.add_argument("--root-rotations", type=int, default=2, help="default: 2")
    parser.add_argument(
        "--pause", type=float, default=0.0, help="seconds between a caller's calls (default: 0)"
    )
    parser.add_argument(
        "--haste", action="store_true", help="leave no time between the steps of a root rotation"
    )
    parser.add_argument("--json", type=Path, help="write everything to this file")
    options = parser.parse_args()
    plan = Plan(
        lifetime=options.lifetime,
        certificates=certificates_in(options.minutes, options.lifetime, options.root_rotations),
        root_rotations=options.root_rotations,
        concurrency=options.concurrency,
        pause=options.pause,
        haste=options.haste,
    )
    try:
        found = run(plan, lambda text: print(text, flush=True))
    except (Late, RuntimeError) as error:
        print(f"the soak was broken off: {error}", file=sys.stderr)
        return 1
    wrong = faults(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found | {"faults": wrong}, indent=1) + "\n")
    print(table(found))
    print(costs(found))
    certificates = min(found["certificates"].values())
    print(
        f"{found['seconds']:.0f} s, {certificates} certificates at each end, {found['root_rotations']} root rotations: "
        + (
            "\n".join(wrong)
            if wrong
            else "no call failed, no connection in use was more than one rotation old"
        )
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
