"""What one request came to, seen from the client and from the upstreams."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from conformance.case import Case, Request
    from conformance.upstream.record import Hit


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One request's result.

    ``status`` 0: no response came. ``complete`` False: the body was cut. ``headers``: in order, names in lower case.
    ``attempts`` None: not known. ``elapsed``: seconds to the end of the body. ``error``: the exception of a runner that
    should have answered. Of a gRPC call ``code`` is the name of its status (empty for HTTP), ``message`` the status message,
    ``headers`` and ``trailers`` are initial and trailing metadata, and ``messages`` what came before the end.
    """

    id: str
    status: int = 0
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    complete: bool = True
    flags: str = "-"
    details: str = ""
    attempts: int | None = None
    cluster: str = ""
    route: str = ""
    elapsed: float = 0.0
    error: str = ""
    code: str = ""
    message: str = ""
    messages: tuple[bytes, ...] = ()
    trailers: tuple[tuple[str, str], ...] = ()
    hits: tuple[Hit, ...] = field(default=())

    def with_hits(self, hits: list[Hit]) -> Outcome:
        """This outcome with what the upstreams saw."""
        return replace(self, hits=tuple(hits))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a case: an outcome for each request, in their order, and the counters afterwards (`conformance.counters`).

    ``counters`` None: whoever ran it does not count.
    """

    outcomes: list[Outcome]
    counters: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request to send: the ``index``-th of the case, with an id of its own."""

    id: str
    request: Request


def batches(case: Case) -> list[tuple[Request, list[Sent]]]:
    """The requests of a case, one batch for each entry of ``requests``."""
    found = []
    index = 0
    for request in case.requests:
        batch = [Sent(id=f"{index + n}", request=request) for n in range(request.repeat)]
        index += request.repeat
        found.append((request, batch))
    return found
