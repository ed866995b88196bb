"""The development CA in a process of its own, as `meshlib ca` serves it, that says on request who has which identity."""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.soak.rotations import TRUST_DOMAIN
from benchmarks.worker import serve
from meshlib.controlplane.ca import Authority, CaServer, Entry, Identities


def main() -> None:
    """Arguments: the socket, and how long an SVID lives (seconds)."""
    path, lifetime = sys.argv[1:]
    authority = Authority(TRUST_DOMAIN, ttl=float(lifetime))
    identities = Identities(authority)

    def handle(command: dict[str, Any]) -> dict[str, Any]:
        if "entries" in command:
            identities.replace(
                Entry(spiffe_id=spiffe_id, pid=pid) for spiffe_id, pid in command["entries"].items()
            )
            return {}
        return {"phase": authority.rotate().value}

    with CaServer(identities, [f"unix:{path}"]):
        serve(handle)


if __name__ == "__main__":
    main()
