"""Writes access logs when calls, and inbound requests, are over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from meshlib.engine.observer import CallObserver, InboundObserver
from meshlib.observe.access_log.inbound import InboundFacts
from meshlib.observe.access_log.logs import Logs, Write
from meshlib.observe.access_log.outbound import CallFacts
from meshlib.runtime.clock import epoch_offset

if TYPE_CHECKING:
    from meshlib.engine.call import Call
    from meshlib.engine.observer import InboundCall
    from meshlib.runtime.clock import Clock

__all__ = ["InboundLog", "OutboundLog"]


class OutboundLog(CallObserver):
    """always: logs of the application, for each call. configured: also those of the listener's HttpConnectionManager."""

    def __init__(self, logs: Logs, clock: Clock, always: tuple[Write, ...], *, configured: bool) -> None:
        self._writes = logs.writes
        self._clock = clock
        self._always = always
        self._configured = configured

    def over(self, call: Call, now: float) -> None:
        if call.passthrough:
            return  # it has left the mesh, which does not know what became of it
        writes = self._always
        if self._configured:
            listener = call.listener
            if listener is not None and listener.listener.http.access_log:
                writes = (*writes, *self._writes(listener.listener.http.access_log))
        if writes:
            facts = CallFacts(call, now, epoch_offset(self._clock))
            for write in writes:
                write(facts)


class InboundLog(InboundObserver):
    """As OutboundLog, of requests that servers of this process answer."""

    def __init__(self, logs: Logs, always: tuple[Write, ...], *, configured: bool) -> None:
        self._writes = logs.writes
        self._always = always
        self._configured = configured

    def inbound_over(self, record: InboundCall) -> None:
        writes = self._always
        manager = record.manager
        if self._configured and manager is not None and manager.access_log:
            writes = (*writes, *self._writes(manager.access_log))
        if writes:
            facts = InboundFacts(record)
            for write in writes:
                write(facts)
