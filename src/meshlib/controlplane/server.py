"""The embedded control plane: an ADS server on grpcio.

A stream has two threads: grpc's own, which sends, and a reader, which takes requests and wakes it. Both end with the stream.
The classes of grpc's generated code are not needed: requests are parsed and responses are encoded here.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc

from meshlib import proto
from meshlib.controlplane.load_reports import INTERVAL, LoadReport, LoadReports
from meshlib.controlplane.store import ResourceStore
from meshlib.controlplane.stream import HOLD, Answer, ServerStream
from meshlib.errors import ConfigError

__all__ = ["ControlPlane"]

SERVICE = "envoy.service.discovery.v3.AggregatedDiscoveryService"
MAX_STREAMS = 1024
"""Streams served at once; further ones wait. One grpcio process opens one for each target."""

KEPT_ANSWERS = 10_000

_OPTIONS = (
    ("grpc.so_reuseport", 0),  # a port that is taken is an error, not a share of the connections
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)


class ControlPlane:
    """Serves a ResourceStore by state-of-the-world ADS, in plaintext, to any number of clients.

        store = ResourceStore(messages)
        with ControlPlane(store) as control_plane:
            mesh = meshlib.Mesh(bootstrap=control_plane.bootstrap())

    Each change of the store goes to the clients that subscribed to what changed. Delta streams are answered with
    UNIMPLEMENTED. Clients whose clusters say ``lrs_server: {self: {}}`` are asked to report their load.

    Not usable in a forked child; ``stop()`` does nothing there.
    """

    def __init__(
        self, store: ResourceStore, listen: str = "127.0.0.1:0", *, load_reporting_interval: float = INTERVAL
    ) -> None:
        """``listen``: ``host:port`` (port 0 takes a free one) or ``unix:/path``. Nothing is opened before start().
        ``load_reporting_interval``: seconds between two reports of a client."""
        self.store = store
        self._loads = LoadReports(load_reporting_interval, self._record)
        self._listen = listen
        self._server: Any = None
        self._pid = 0
        self._port = 0
        self._executor: ThreadPoolExecutor | None = None
        self._unwatch: Callable[[], None] = lambda: None
        self._changed = threading.Condition()
        self._streams: set[_Stream] = set()
        self._answers: deque[Answer] = deque(maxlen=KEPT_ANSWERS)

    def start(self) -> ControlPlane:
        """Listen. Returns itself.

        Raises:
            ConfigError: the address can't be listened on; nothing is left open.
        """
        if self._server is not None:
            return self
        executor = ThreadPoolExecutor(max_workers=MAX_STREAMS, thread_name_prefix="meshlib-ads")
        server = grpc.server(executor, options=_OPTIONS)
        handler = grpc.stream_stream_rpc_method_handler(
            self._serve, request_deserializer=None, response_serializer=None
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"StreamAggregatedResources": handler}),)
        )
        server.add_generic_rpc_handlers((self._loads.handler(),))
        try:
            self._port = server.add_insecure_port(self._listen)
        except RuntimeError as error:
            executor.shutdown()
            raise ConfigError(f"cannot listen on {self._listen}: {error}") from None
        server.start()
        self._server, self._executor, self._pid = server, executor, os.getpid()
        self._unwatch = self.store.watch(self._wake)
        return self

    def stop(self) -> None:
        """Close all streams and the port, and wait for the threads. May be called twice."""
        if self._server is None or self._pid != os.getpid():
            return
        self._unwatch()
        streams = tuple(self._streams)
        self._server.stop(None).wait()
        self.drop_streams()
        if self._executor is not None:
            self._executor.shutdown()
        for stream in streams:
            stream.join()
        self._server = self._executor = None

    def __enter__(self) -> ControlPlane:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def address(self) -> str:
        """The gRPC target to connect to, ``host:port`` or ``unix:/path``; the port is known after start()."""
        if self._listen.startswith("unix:"):
            return self._listen
        return f"{self._listen.rpartition(':')[0]}:{self._port}"

    def bootstrap(self, node_id: str = "meshlib") -> dict[str, Any]:
        """The bootstrap that a client needs, in gRPC's JSON form (``GRPC_XDS_BOOTSTRAP_CONFIG``)."""
        server = {
            "server_uri": self.address,
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }
        return {"xds_servers": [server], "node": {"id": node_id}}

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """The ACKs and NACKs that came, oldest first; the last 10,000 are kept."""
        with self._changed:
            return tuple(self._answers)

    @property
    def load_reports(self) -> tuple[LoadReport, ...]:
        """What clients said of their load, oldest first; the last 10,000 are kept."""
        return self._loads.kept

    def wait_for(self, condition: Callable[[ControlPlane], bool], timeout: float = 10.0) -> None:
        """Wait until the condition, tried after each request, each report and each end of a stream, is true.

        Raises:
            TimeoutError: it was not within ``timeout`` seconds.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: condition(self), timeout):
                raise TimeoutError(
                    f"not within {timeout} s; {self.streams} streams, answers {list(self._answers)[-5:]}"
                )

    def wait_for_answer(self, type_url: str, version: str | None = None, timeout: float = 10.0) -> Answer:
        """Wait for an ACK or NACK of this version (default: the store's present one) and return the first.

        Raises:
            TimeoutError: none came within ``timeout`` seconds.
        """
        wanted = self.store.state(type_url).version if version is None else version

        def found() -> list[Answer]:
            return [
                answer for answer in self._answers if (answer.type_url, answer.version) == (type_url, wanted)
            ]

        self.wait_for(lambda _: bool(found()), timeout)
        with self._changed:
            return found()[0]

    def drop_streams(self) -> None:
        """End every open stream with UNAVAILABLE; clients may come back at once."""
        for stream in tuple(self._streams):
            stream.end()

    def _wake(self) -> None:
        for stream in tuple(self._streams):
            stream.wake()

    def _serve(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        stream = _Stream(self, requests)
        if not context.add_callback(stream.end):
            return
        with self._changed:
            self._streams.add(stream)
            self._changed.notify_all()
        try:
            yield from stream.responses()
            if stream.error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, stream.error)
            if context.is_active():
                context.abort(grpc.StatusCode.UNAVAILABLE, "the control plane ended the stream")
        finally:
            stream.end()
            with self._changed:
                self._streams.discard(stream)
                self._changed.notify_all()

    def _record(self, answer: Answer | None = None) -> None:
        with self._changed:
            if answer is not None:
                self._answers.append(answer)
            self._changed.notify_all()


class _Stream:
    """The threads' side of one stream: a reader thread feeds the state, the sending thread drains it."""

    def __init__(self, owner: ControlPlane, requests: Iterator[bytes]) -> None:
        self._owner = owner
        self._requests = requests
        self._state = ServerStream(owner.store)
        self._condition = threading.Condition()
        self._woken = False
        self._ended = False
        self._reader = threading.Thread(target=self._read, name="meshlib-ads-reader", daemon=True)
        self.error = ""

    def responses(self) -> Iterator[bytes]:
        self._reader.start()
        while True:
            with self._condition:
                limit = HOLD if self._state.holding else None
                patient = self._condition.wait_for(lambda: self._woken or self._ended, limit)
                if self._ended:
                    return
                self._woken = False
                due = self._state.responses(patient=patient)
            yield from due

    def wake(self) -> None:
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def end(self) -> None:
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def join(self) -> None:
        if self._reader.ident is not None:
            self._reader.join(timeout=5)

    def _read(self) -> None:
        try:
            for data in self._requests:
                request = proto.parse("envoy.service.discovery.v3.DiscoveryRequest", data)
                with self._condition:
                    answer = self._state.receive(request)
                self._owner._record(answer)
                self.wake()
        except proto.DecodeError:
            self.error = "not a DiscoveryRequest"
        except grpc.RpcError:
            pass  # the call is over
        finally:
            self.end()
