"""``python -m conformance.tls``: every TLS case between two Envoys, beside what the cases expect."""

from __future__ import annotations

import argparse
import json
import sys

from conformance.runners.envoy import EnvoyError
from conformance.tls.case import load, wrong
from conformance.tls.run import envoy_to_envoy

_SHOWN = [
    "status",
    "flags",
    "details",
    "transport",
    "server_transport",
    "client_stats",
    "server_stats",
    "uri_san",
    "xfcc",
]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0 when Envoy does what the cases expect, 1 when not, 2 without an Envoy."""
    parser = argparse.ArgumentParser(prog="python -m conformance.tls", description=__doc__)
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name has TEXT in it")
    parser.add_argument("--show", action="store_true", help="show what Envoy answered, as JSON lines")
    options = parser.parse_args(arguments)
    cases, materials = load()
    try:
        outcomes = envoy_to_envoy([case for case in cases if options.only in case.name], materials)
    except EnvoyError as error:
        print(error, file=sys.stderr)
        return 2
    failed = 0
    for case, outcome in outcomes:
        different = wrong(case, outcome)
        failed += bool(different)
        if options.show:
            shown = {name: getattr(outcome, name) for name in _SHOWN}
            print(json.dumps({"name": case.name, **shown}))
        for name, (wanted, found) in different.items():
            print(f"{case.name}: {name} is {found!r}, expected {wanted!r}", file=sys.stderr)
    print(f"{len(outcomes)} cases, {failed} not as expected", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
