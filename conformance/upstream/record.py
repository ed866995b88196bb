"""What the upstreams saw, per case, in order of arrival; and whose turn it is in a scripted sequence."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.upstream.script import Behaviour, Upstream

REQUEST_ID = "x-conformance-id"
"""Header that ties what an upstream saw, and Envoy's access log, to a request of the harness."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One request as an upstream saw it. ``headers`` in order, names in lower case; ``request`` is the harness's id.

    ``body``: of a gRPC call its messages, a line each. ``cancelled``: the caller reset the stream before the answer was over
    (only told of gRPC upstreams).
    """

    upstream: str
    request: str
    method: str
    target: str
    version: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    cancelled: bool = False


class Record:
    """Everything seen since the last :meth:`reset`. Written by the upstream thread, read by the runners."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._hits: list[Hit] = []
        self._turns: dict[str, int] = {}
        self.running = 0
        """gRPC streams that are under way; changed by the upstream thread alone."""

    def reset(self) -> None:
        """Forget all, and let every script begin anew."""
        with self._lock:
            self._hits = []
            self._turns = {}

    def by_request(self) -> dict[str, list[Hit]]:
        """The hits of each request, in order of arrival."""
        with self._lock:
            found: dict[str, list[Hit]] = {}
            for hit in self._hits:
                found.setdefault(hit.request, []).append(hit)
            return found

    def amend(self, hit: Hit, changed: Hit) -> None:
        """Put ``changed`` where ``hit`` stands; nothing if the record has been reset since."""
        with self._lock:
            for index, known in enumerate(self._hits):
                if known is hit:
                    self._hits[index] = changed

    def add(self, upstream: Upstream, hit: Hit) -> Behaviour:
        """Note ``hit`` and choose the answer to it."""
        path = hit.target.partition("?")[0]
        answers, label = upstream.responses, "responses"
        for index, rule in enumerate(upstream.rules):
            if rule.path in ("", path) and all(pair in hit.headers for pair in rule.headers):
                answers, label = rule.then, f"when[{index}]"
                break
        key = f"{hit.request}|{label}" if upstream.per_request else f"{upstream.name}|{label}"
        with self._lock:
            self._hits.append(hit)
            turn = self._turns.get(key, 0)
            self._turns[key] = turn + 1
        return answers[turn % len(answers)] if upstream.cycle else answers[min(turn, len(answers) - 1)]
