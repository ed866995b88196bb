"""``python -m conformance``: run the parity suite."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from conformance.case import load_cases, matches
from conformance.envoy_process import EnvoyError
from conformance.listed import check_cases, load_listed
from conformance.reader import CaseError
from conformance.runners.registry import DEFAULT_RUNNERS, RUNNERS
from conformance.suite import run_suite


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 all equal or listed, 1 a difference or a stale entry, 2 wrong usage or a bad case file."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there")
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="only cases whose name has TEXT in it or matches it"
    )
    parser.add_argument(
        "--runner",
        action="append",
        choices=sorted(RUNNERS),
        help=f"instead of {', '.join(DEFAULT_RUNNERS)}",
    )
    parser.add_argument(
        "--envoy-only", action="store_true", help="check only that Envoy does what the cases expect"
    )
    parser.add_argument("--quiet", action="store_true", help="leave equal cases out of the table")
    parser.add_argument(
        "--slowest", type=int, default=0, metavar="N", help="name the N cases that took longest"
    )
    options = parser.parse_args(arguments)
    try:
        everything = load_cases()
        listed = load_listed()
        check_cases(listed, {case.name for case in everything})
        cases = [case for case in everything if matches(options.only, case.name)]
        if not cases:
            print(f"no case has a name with {options.only!r}", file=sys.stderr)
            return 2
        runners = () if options.envoy_only else tuple(options.runner or DEFAULT_RUNNERS)
        report = run_suite(cases, runners, listed, everything)
    except (CaseError, EnvoyError) as error:
        print(error, file=sys.stderr)
        return 2
    report.write(sys.stdout, verbose=not options.quiet)
    for result in sorted(report.results, key=lambda result: -result.seconds)[: options.slowest]:
        print(f"{result.seconds:6.2f} s  {result.name}")
    if options.json:
        options.json.write_text(json.dumps(report.summary(), indent=2) + "\n", encoding="utf-8")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
