"""The Listener that a server goes by: asked for when it is first needed, compiled when it changes, gone when it goes."""

from __future__ import annotations

import logging
import os
import threading
from random import Random
from typing import TYPE_CHECKING, Any

from meshlib.errors import ConfigError, ConfigTimeout
from meshlib.server.chains import CompiledChain, CompiledListener
from meshlib.snapshot import Snapshot

if TYPE_CHECKING:
    from meshlib.resources.inbound import InboundListener
    from meshlib.server.arrival import Arrival

__all__ = ["FollowedListener", "Misses"]

logger = logging.getLogger("meshlib.server")


class Misses:
    """What rules have asked for in vain: said once for each kind."""

    def __init__(self) -> None:
        self._said: set[tuple[str, ...]] = set()

    def tell(self, unknown: tuple[str, ...]) -> None:
        if unknown not in self._said:
            self._said.add(unknown)
            logger.warning(
                "a request is refused since this server does not tell what its rules depend on: %s",
                ", ".join(unknown),
            )


class FollowedListener:
    """name: of the resource. Thread safe; in a forked child it is asked for again."""

    def __init__(self, mesh: Any, name: str, random: Random, misses: Misses) -> None:
        self._mesh = mesh
        self.name = name
        self._random = random
        self._misses = misses
        self._compiled: CompiledListener | None = None
        self._following = 0
        self._lock = threading.Lock()

    def renew_lock(self) -> None:
        """In a forked child: nobody holds it."""
        self._lock = threading.Lock()

    def resource(self) -> InboundListener | None:
        """As it is in this moment, without asking for it."""
        found: InboundListener | None = self._mesh.engine.program.snapshot.inbound_listener(self.name)
        return found

    def awaited(self, timeout: float = 15.0) -> InboundListener:
        """The Listener, for which this waits. timeout: seconds.

        Raises:
            ConfigTimeout: it has not come. ConfigError: the files have no such Listener.
        """
        engine = self._mesh.engine
        self._follow()
        due = engine.clock.monotonic() + timeout
        while True:
            woken = threading.Event()
            program = engine.program
            found: InboundListener | None = program.snapshot.inbound_listener(self.name)
            if found is not None:
                return found
            if program.snapshot.complete:
                raise ConfigError(f"there is no Listener {self.name!r} that a server can use")
            left = due - engine.clock.monotonic()
            if left <= 0:
                late: ConfigTimeout = engine.late(f"Listener {self.name!r}", timeout)
                raise late
            engine.await_program(woken.set, program)
            woken.wait(left)

    def chain(self, arrival: Arrival, unknown: frozenset[str]) -> CompiledChain | str:
        """The filter chain that the connection belongs to; or why there is none."""
        compiled = self.current()
        if compiled is None:
            return "no configuration for this listener"
        chain = compiled.find(arrival, unknown)
        if chain is None:
            return "no filter chain matches"
        if isinstance(chain, frozenset):
            self._misses.tell(tuple(sorted(chain)))
            return "no filter chain can be chosen"
        return "no route configuration" if chain.waits else chain

    def current(self) -> CompiledListener | None:
        """The Listener of this moment; None when there is none."""
        self._follow()
        snapshot: Snapshot = self._mesh.engine.program.snapshot
        compiled = self._compiled
        if compiled is None or compiled.snapshot is not snapshot:
            compiled = self._compile(snapshot)
        return compiled

    def _follow(self) -> None:
        """Ask for it, and have the mesh keep up to date: cheap when that has been done, also in a forked child."""
        engine = self._mesh.engine
        if self._following != (here := os.getpid()) and not engine.closed:
            engine.start()
            engine.source.want_listener(self.name)
            self._following = here

    def _compile(self, snapshot: Snapshot) -> CompiledListener | None:
        listener = snapshot.inbound_listener(self.name)
        if listener is None:
            return None
        before = self._compiled
        with self._lock:
            made = CompiledListener(listener, snapshot, before, self._mesh.stats, self._random)
            self._compiled = made
        return made
