"""`channel.subscribe`: the connectivity of a mesh channel, told without a thread for each channel.

A mesh channel is as far as its configuration is (`connectivity`); once that has a place for calls, it is READY when one of its
inner channels is. With `try_to_connect` an endpoint is picked and connected for that, as grpcio connects a channel, so that
`grpc.channel_ready_future` waits for a server that can be called. The thread of timers looks while somebody is subscribed.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from meshlib.engine.actions import Start
from meshlib.engine.engine import Engine
from meshlib.resources.route import Priority
from meshlib.runtime.logs import failed
from meshlib.runtime.timers import timers
from meshlib.state import Admission, Waiter
from meshlib.transport.grpc.connectivity import state_of
from meshlib.transport.grpc.endpoint import InnerChannel
from meshlib.transport.grpc.endpoints import EndpointChannels

if TYPE_CHECKING:
    from meshlib.transport.grpc.sync_channel import MeshChannel

__all__ = ["Watch"]

logger = logging.getLogger("meshlib.transport")

Callback = Callable[[grpc.ChannelConnectivity], None]
States = grpc.ChannelConnectivity

SOON, AGAIN = 0.01, 0.2
"""Seconds between two looks, while the channel is to be connected and else."""


class Watch:
    """The subscribers of one channel."""

    def __init__(self, channel: MeshChannel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._told: list[tuple[Callback, list[grpc.ChannelConnectivity]]] = []
        self._connect = False
        self._looking = False
        self._probe: InnerChannel | None = None

    def subscribe(self, callback: Callback, try_to_connect: bool) -> None:
        with self._lock:
            self._told.append((callback, []))
            self._connect = self._connect or try_to_connect
            begin, self._looking = not self._looking, True
        if begin:
            timers().later(0.0, self._look)

    def unsubscribe(self, callback: Callback) -> None:
        """Takes no lock: grpcio's ready future calls it from its finalizer."""
        for entry in list(self._told):
            if entry[0] == callback:
                with contextlib.suppress(ValueError):
                    self._told.remove(entry)
                return

    def close(self) -> None:
        """The channel is closed: tell everybody, for the last time."""
        self._tell(States.SHUTDOWN)
        self._told.clear()

    def renew(self) -> None:
        """In a forked child, where nobody looks any more; the subscribers stay."""
        self._lock = threading.Lock()
        self._probe = None
        self._looking = bool(self._told)
        if self._looking:
            timers().later(0.0, self._look)

    def _look(self) -> None:
        with self._lock:
            if not self._told:
                self._looking = False
                probe, self._probe = self._probe, None
                self._connect = False
            else:
                probe = None
            looking, connect = self._looking, self._connect
        if not looking:
            self._let_go(probe)
            return
        state = self._state(connect)
        self._tell(state)
        soon = connect and state in (States.IDLE, States.CONNECTING)
        timers().later(SOON if soon else AGAIN, self._look)

    def _tell(self, state: grpc.ChannelConnectivity) -> None:
        for callback, last in list(self._told):
            if last == [state]:
                continue
            last[:] = [state]
            try:
                callback(state)
            except Exception:  # noqa: BLE001 - the application's, on a thread of ours
                failed(logger, "a subscriber of a channel failed")

    def _state(self, connect: bool) -> grpc.ChannelConnectivity:
        channel = self._channel
        if not connect and not channel.used and not channel.closed:
            return States.IDLE
        try:
            engine, channels = channel.opened()
        except ValueError:
            return States.SHUTDOWN
        configured = state_of(engine, channel.target, engine.program, connect=connect)
        if configured is not States.READY:
            return configured
        if channels.any_ready():
            self._let_go(self._probe)
            return States.READY
        return self._connecting(engine, channels) if connect else States.IDLE

    def _connecting(self, engine: Engine, channels: EndpointChannels) -> grpc.ChannelConnectivity:
        if self._probe is None:
            self._probe = self._begin(engine, channels)
        probe = self._probe
        if probe is None:
            return States.TRANSIENT_FAILURE
        connected = probe.look()
        if connected is None:
            return States.CONNECTING
        self._probe = None
        if connected:
            channels.connected(probe)
            return States.READY
        channels.failed(probe)
        return States.TRANSIENT_FAILURE

    def _begin(self, engine: Engine, channels: EndpointChannels) -> InnerChannel | None:
        """Connect an endpoint of the first cluster that has one; None when there is none, or a limit forbids it."""
        program = engine.program
        channel = self._channel
        listener = program.find(engine.listener_name(channel.target))
        if listener is None or listener.config is None:
            return None
        for name in listener.config.cluster_names:
            cluster = program.clusters.get(name)
            endpoint = None if cluster is None else cluster.balancer.pick(engine.clock.monotonic())
            if cluster is None or endpoint is None:
                continue
            state = cluster.state
            permits = state.permits(Priority.DEFAULT)
            waiter = Waiter(_nothing, channels)
            admission = state.admit(endpoint, permits, waiter)
            if admission is Admission.OVERFLOW:
                return None
            state.end_pending(permits)
            if admission is Admission.WAIT:
                if not state.withdraw(endpoint, waiter) and waiter.connection is None:
                    state.connection_closed(endpoint, permits)
                return None
            start = Start(
                0, endpoint, cluster.cluster, state, permits, channel.authority, "", None, permitted=True
            )
            with contextlib.suppress(ValueError):  # closed
                return channels.connect(start)
            return None
        return None

    def _let_go(self, probe: InnerChannel | None) -> None:
        if probe is not None:
            self._probe = None
            with contextlib.suppress(ValueError):
                self._channel.opened()[1].abandoned(probe)


def _nothing() -> None:
    """Nobody waits: the place in the queue is left at once."""
