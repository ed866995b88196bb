"""The runners by name: what each is asked, and how it is made."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Protocol

from conformance.runners.ccore import CcoreRunner
from conformance.runners.envoy import Envoy
from conformance.runners.mesh_grpc import GrpcMeshRunner
from conformance.runners.meshlib import MeshRunner

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping

    from conformance.case import Case
    from conformance.outcome import Run
    from conformance.resources import Compiled


class Runner(Protocol):
    """Whoever can be given a case."""

    def run(self, case: Case, compiled: Compiled) -> Run:
        """Send the requests of ``case``."""

    def rejection(self, case: Case, compiled: Compiled) -> str | None:
        """The complaint about a configuration, None if it is taken."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of runner.

    ``protocol``: the cases that it is given, ``http`` or ``grpc``. ``make`` gets the cases of the run; what has to be closed
    goes on the stack. ``oracle``: another Envoy, to which listed differences do not apply. ``beside``: shown beside the others
    and never fails a run; of its differences those in the ``unsaid`` fields do not count (patterns).
    """

    protocol: str
    make: Callable[[Mapping[str, tuple[Case, Compiled]], contextlib.ExitStack], Runner]
    oracle: bool = False
    beside: bool = False
    unsaid: tuple[str, ...] = ()

    def says(self, field: str) -> bool:
        """Whether a difference in ``field`` counts."""
        return not any(fnmatchcase(field, pattern) for pattern in self.unsaid)


def _envoy(protocol: str) -> Kind:
    return Kind(
        protocol=protocol,
        oracle=True,
        make=lambda cases, stack: stack.enter_context(
            Envoy({name: entry for name, entry in cases.items() if entry[0].protocol == protocol})
        ),
    )


def _mesh(library: str, *, on_asyncio: bool) -> Kind:
    return Kind(protocol="http", make=lambda cases, stack: MeshRunner(library, on_asyncio=on_asyncio))


def _mesh_grpc(*, on_asyncio: bool) -> Kind:
    return Kind(protocol="grpc", make=lambda cases, stack: GrpcMeshRunner(on_asyncio=on_asyncio))


RUNNERS = {
    "httpx": _mesh("httpx", on_asyncio=False),
    "httpx-async": _mesh("httpx", on_asyncio=True),
    "httpx2": _mesh("httpx2", on_asyncio=False),
    "httpx2-async": _mesh("httpx2", on_asyncio=True),
    "grpc": _mesh_grpc(on_asyncio=False),
    "grpc-aio": _mesh_grpc(on_asyncio=True),
    "ccore": Kind(
        protocol="grpc",
        make=lambda cases, stack: stack.enter_context(CcoreRunner(cases)),
        beside=True,
        # What only Envoy says about a call, and what it adds of its own accord.
        unsaid=(
            "flags",
            "details",
            "attempts",
            "cluster",
            "route",
            "message",
            "metadata",
            "*.x-envoy-*",
            "*.x-request-id",
            "*.x-forwarded-proto",
        ),
    ),
    "envoy": _envoy("http"),
    "envoy-grpc": _envoy("grpc"),
}
DEFAULT_RUNNERS = ("httpx", "httpx-async", "ccore", "grpc", "grpc-aio")
