"""``python -m conformance.tls``: every TLS case by every pair of a client and a server, beside what two Envoys do."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from conformance.envoy_process import EnvoyError
from conformance.tls.case import TlsCase, load, wrong
from conformance.tls.envoy import TlsOutcome
from conformance.tls.listed import load_listed, unused
from conformance.tls.pairs import ORACLE, PAIRS, fields, run


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all equal or listed, 1 a difference or a stale entry, 2 without an Envoy."""
    parser = argparse.ArgumentParser(prog="python -m conformance.tls", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name has TEXT in it")
    parser.add_argument("--pair", action="append", choices=PAIRS, help="only this pair; may be repeated")
    parser.add_argument("--show", action="store_true", help="show every outcome, as JSON lines")
    options = parser.parse_args(arguments)
    everything, materials = load()
    cases = [case for case in everything if options.only in case.name]
    listed = load_listed()
    summary: dict[str, dict[str, int]] = {}
    differences: list[tuple[str, str, str]] = []
    for pair in options.pair or PAIRS:
        try:
            outcomes = run(pair, cases, materials)
        except EnvoyError as error:
            print(error, file=sys.stderr)
            return 2
        counts = summary[pair] = {"cases": len(outcomes), "equal": 0, "listed": 0, "unexplained": 0}
        for case, outcome in outcomes:
            if options.show:
                print(json.dumps({"pair": pair, "name": case.name, **_shown(pair, outcome)}))
            found = wrong(case, outcome, fields(pair))
            differences += [(pair, case.name, field) for field in found]
            open_ = {
                field: values
                for field, values in found.items()
                if not any(entry.covers(pair, case.name, field) for entry in listed)
            }
            counts["unexplained" if open_ else "listed" if found else "equal"] += 1
            _report(pair, case, open_)
    stale = [] if options.only or options.pair else unused(listed, differences)
    for name in stale:
        print(f"listed, but equal: {name}")
    for pair, counts in summary.items():
        print(f"{pair:20}", *(f"{value} {name}" for name, value in counts.items()), sep="  ")
    if options.json:
        options.json.write_text(json.dumps({"pairs": summary}, indent=2) + "\n", encoding="utf-8")
    return 1 if stale or any(counts["unexplained"] for counts in summary.values()) else 0


def _shown(pair: str, outcome: TlsOutcome) -> dict[str, object]:
    return {field: getattr(outcome, field) for field in sorted(fields(pair))}


def _report(pair: str, case: TlsCase, found: dict[str, tuple[object, object]]) -> None:
    for field, (wanted, got) in found.items():
        what = "the case expects" if pair == ORACLE else "Envoy"
        print(f"{pair}: {case.name}: {field} is {got!r}, {what}: {wanted!r}")


if __name__ == "__main__":
    sys.exit(main())
