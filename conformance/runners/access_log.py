"""Envoy's access log: one JSON object for each stream, found by the id of the request."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from conformance.upstream.record import REQUEST_ID

if TYPE_CHECKING:
    from pathlib import Path

    from conformance.outcome import Outcome

_FIELDS = {
    "case": "",
    "id": f"%REQ({REQUEST_ID})%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "cluster": "%UPSTREAM_CLUSTER%",
    "route": "%ROUTE_NAME%",
}

NOBODY = "no_healthy_upstream"
"""Envoy's counter includes the last pick, which found nobody; an attempt is something that was sent or at least dialled."""


def access_log(path: Path, case: str) -> dict[str, Any]:
    """The access logger of one case's HttpConnectionManager."""
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": str(path),
            "log_format": {"json_format": {**_FIELDS, "case": case}},
        },
    }


class AccessLog:
    """Reads the log file as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._seen: dict[tuple[str, str], dict[str, Any]] = {}

    def forget(self, case: str) -> None:
        """``case`` begins anew, with the same ids."""
        self._read()
        self._seen = {key: line for key, line in self._seen.items() if key[0] != case}

    def complete(self, case: str, outcomes: list[Outcome], timeout: float = 5.0) -> list[Outcome]:
        """Add flags, details, attempts, cluster and route to the outcomes of ``case``.

        Waits up to ``timeout`` seconds for lines that are still on their way; a request without one keeps its defaults.
        """
        deadline = time.monotonic() + timeout
        while True:
            self._read()
            missing = [outcome for outcome in outcomes if (case, outcome.id) not in self._seen]
            if not missing or time.monotonic() > deadline:
                return [self._apply(case, outcome) for outcome in outcomes]
            time.sleep(0.005)

    def _apply(self, case: str, outcome: Outcome) -> Outcome:
        line = self._seen.get((case, outcome.id))
        if line is None:
            return outcome
        details = line["details"] or ""
        return replace(
            outcome,
            flags=line["flags"] or "-",
            details=details,
            attempts=(line["attempts"] or 0) - (details == NOBODY and bool(line["attempts"])),
            cluster=line["cluster"] or "",
            route=line["route"] or "",
        )

    def _read(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole, newline, _ = data.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for text in whole.splitlines():
            line = json.loads(text)
            self._seen[line["case"], line["id"]] = line
