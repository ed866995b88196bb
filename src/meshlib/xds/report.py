"""What a configuration asks for and does not get: said once in the log, and counted."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping

from meshlib.errors import ResourceError
from meshlib.runtime.logs import Once, about
from meshlib.snapshot import Accepted, Kind
from meshlib.stats import Registry

__all__ = ["Reporter"]

logger = logging.getLogger("meshlib.xds")

_INDEX = re.compile(r"\[[^]]*\]")
KEPT = 10_000


class Reporter:
    """Logs each unsupported field once, whatever its place in a list, and each new error; counts both."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._seen = Once(KEPT)
        self._refused = Once(KEPT)

    def results(self, kind: Kind, results: Mapping[str, Accepted | ResourceError], version: str) -> None:
        """A response, or the files. Counters: `xds.<lds|rds|cds|eds>.update_success`, `.update_rejected`, `.unsupported`."""
        bad = {name: item for name, item in results.items() if isinstance(item, ResourceError)}
        self._count(kind, "update_rejected" if bad else "update_success", 1)
        for name, error in bad.items():
            # A control plane may send it again and again.
            if self._refused((kind, name, version, str(error))):
                logger.warning(
                    "%s %r, version %r, rejected: %s",
                    _noun(kind),
                    name,
                    version,
                    error,
                    extra=about(type=kind.value, name=name, version=version, path=error.path),
                )
        for name, item in results.items():
            if isinstance(item, ResourceError):
                continue
            if item.unsupported:
                self._unsupported(kind, name, item.unsupported)
            for warning in item.warnings:
                if self._is_new(kind, warning):
                    logger.warning(
                        "%s %r: %s", _noun(kind), name, warning, extra=about(type=kind.value, name=name)
                    )

    def left_out(self, name: str, first: str, count: int) -> None:
        """Endpoints of an assignment that can't be used. Counter: `xds.eds.left_out`."""
        self._count(Kind.ENDPOINT, "left_out", count)
        logger.warning(
            "%s %r: %d endpoints are left out, such as %s",
            _noun(Kind.ENDPOINT),
            name,
            count,
            first,
            extra=about(type=Kind.ENDPOINT.value, name=name),
        )

    def _unsupported(self, kind: Kind, name: str, paths: tuple[str, ...]) -> None:
        self._count(kind, "unsupported", len(paths))
        for path in paths:
            if self._is_new(kind, path):
                logger.warning(
                    "%s %r: %s is not supported and has no effect",
                    _noun(kind),
                    name,
                    path,
                    extra=about(type=kind.value, name=name, path=path),
                )

    def _is_new(self, kind: Kind, text: str) -> bool:
        return self._seen((kind, _INDEX.sub("", text)))

    def _count(self, kind: Kind, what: str, number: int) -> None:
        self._registry.scope("xds").scope(kind.short).counter(what).value += number


def _noun(kind: Kind) -> str:
    return kind.value.rpartition(".")[2]
