"""Secrets from elsewhere than the stream of the other resources: SDS servers of their own, and files.

A `SecretRef` whose source is a server has a stream of its own to it (StreamSecrets, state of the world), as in Envoy, since
servers in use answer for one name on a stream. A file is read at the start, and again when it, or its watched directory, is
not what it was. Whatever comes later, the last good version stays: a stream that breaks is opened again after a back-off, a
bad version is refused with the path of the field, a file that is half written waits for the next look.

After `initial_fetch_timeout` without an answer, or after a first answer that is refused, the secret counts as missing, so that
those who wait for it go on and fail. It may still come.

Everything runs on the given executor; the driver belongs to its thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from meshlib import proto
from meshlib.errors import ConfigError, ControlPlaneError, ResourceError
from meshlib.resources.secret import Secret
from meshlib.resources.tls import PathSource, SecretRef, ServerSource
from meshlib.runtime.clock import Clock
from meshlib.runtime.logs import Once, about
from meshlib.runtime.stream import JOIN, Connection, OpenStream, Stream
from meshlib.runtime.threads import Executor, Timer
from meshlib.snapshot import Kind, Snapshot
from meshlib.stats import Registry
from meshlib.xds import messages, secretfile
from meshlib.xds.ack import Request, Subscriptions
from meshlib.xds.backoff import Backoff
from meshlib.xds.bootstrap import Node, XdsServer
from meshlib.xds.decoding import Decode
from meshlib.xds.target import TargetError, sds_target

__all__ = ["Publish", "SdsContext", "SdsDriver"]

logger = logging.getLogger("meshlib.xds")

LOOK = 1.0
"""Seconds between two looks at a file."""

_URL = Kind.SECRET.value


Publish = Callable[[SecretRef, Secret | None], None]
"""Put it into force. None: it has not come in time, or the first version that came was refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SdsContext:
    """What all subscriptions share. decode: see `decoding.Decode`. backoff: one for each stream.
    clusters: `Bootstrap.sds_clusters`."""

    executor: Executor
    clock: Clock
    registry: Registry
    node: Node
    decode: Decode
    publish: Publish
    open_stream: OpenStream
    backoff: Callable[[], Backoff]
    snapshot: Callable[[], Snapshot]
    clusters: Mapping[str, XdsServer]


class SdsDriver:
    """Keeps one subscription for each secret that is wanted."""

    def __init__(self, context: SdsContext) -> None:
        self._context = context
        self._wanted: dict[SecretRef, _FileWatch | _Subscription] = {}

    def sync(self, refs: Iterable[SecretRef]) -> None:
        """Watch exactly these."""
        wanted = dict.fromkeys(refs)
        for ref in [ref for ref in self._wanted if ref not in wanted]:
            self._wanted.pop(ref).close()
        for ref in wanted:
            if ref not in self._wanted:
                watch = self._watch(ref)
                self._wanted[ref] = watch
                watch.start()

    def close(self) -> None:
        """End all streams, and wait for their threads. From any thread, when the executor runs no longer."""
        streams = [watch.close() for watch in self._wanted.values()]
        self._wanted.clear()
        for stream in streams:
            if stream is not None:
                stream.join(JOIN)

    def before_fork(self) -> None:
        for watch in self._wanted.values():
            watch.before_fork()

    def after_fork_in_parent(self) -> None:
        for watch in self._wanted.values():
            watch.after_fork_in_parent()

    def after_fork_in_child(self) -> None:
        """The driver of the child is another one; this one only keeps the parent's streams from being finalized."""
        for watch in self._wanted.values():
            watch.after_fork_in_child()

    def _watch(self, ref: SecretRef) -> _FileWatch | _Subscription:
        if isinstance(ref.source, PathSource):
            return _FileWatch(ref, ref.source, self._context)
        assert isinstance(ref.source, ServerSource)
        return _Subscription(ref, ref.source, self._context)


class _Watch:
    """What is common to both kinds: the verdict on the first answer, and counting. Counters: `sds.<name>.*`, as in Envoy."""

    def __init__(self, ref: SecretRef, context: SdsContext) -> None:
        self._ref = ref
        self._context = context
        self._answered = False
        self._closed = False
        self._refused = Once()
        self._timeout: Timer | None = None

    def _begin(self) -> None:
        if self._ref.initial_fetch_timeout:
            due = self._context.clock.monotonic() + self._ref.initial_fetch_timeout
            self._timeout = self._context.executor.call_at(due, self._late)

    def _end(self) -> None:
        self._closed = True
        if self._timeout is not None:
            self._timeout.cancel()

    def _warn(self, message: str, *arguments: object) -> None:
        logger.warning(message, *arguments, extra=about(secret=self._ref.name))

    def _late(self) -> None:
        if not self._answered and not self._closed:
            self._answered = True
            self._count("init_fetch_timeout")
            self._warn("secret %r has not come in %g s", self._ref.name, self._ref.initial_fetch_timeout)
            self._context.publish(self._ref, None)

    def _take(self, secret: Secret) -> None:
        self._answered = True
        self._refused.clear()
        self._count("update_success")
        self._context.publish(self._ref, secret)

    def _refuse(self, error: ResourceError) -> None:
        self._count("update_rejected")
        if self._refused(str(error)):
            self._warn("secret %r rejected: %s", self._ref.name, error)
        first, self._answered = not self._answered, True
        if first:
            self._context.publish(self._ref, None)

    def _decode(self, data: bytes) -> Secret:
        """Raises ResourceError."""
        secret = self._context.decode(_URL, data, _no_pause).resource
        assert isinstance(secret, Secret)
        if secret.name != self._ref.name:
            raise ResourceError("name", f"expected the secret {self._ref.name!r}, got {secret.name!r}")
        return secret

    def _count(self, what: str) -> None:
        self._context.registry.scope("sds").scope(self._ref.name).counter(what).value += 1

    def before_fork(self) -> None:
        """Nothing is open."""

    def after_fork_in_parent(self) -> None:
        """Nothing was closed."""

    def after_fork_in_child(self) -> None:
        """Nothing to keep."""


class _FileWatch(_Watch):
    """A secret in a file. Read on the executor's thread: it is small and local."""

    def __init__(self, ref: SecretRef, source: PathSource, context: SdsContext) -> None:
        super().__init__(ref, context)
        self._source = source
        self._seen: object = None
        self._data: bytes | None = None
        self._timer: Timer | None = None

    def start(self) -> None:
        self._begin()
        self._look()

    def close(self) -> None:
        self._end()
        if self._timer is not None:
            self._timer.cancel()

    def _look(self) -> None:
        if self._closed:
            return
        seen = secretfile.signature(self._source.path, self._source.watched_directory)
        if seen != self._seen:
            self._seen = seen
            self._read()
        due = self._context.clock.monotonic() + LOOK
        self._timer = self._context.executor.call_at(due, self._look)

    def _read(self) -> None:
        self._count("update_attempt")
        try:
            data = secretfile.read(self._source.path, self._ref.name)
            if data == self._data:
                return
            self._take(self._decode(data))
            self._data = data
        except ResourceError as error:
            self._refuse(error)


class _Subscription(_Watch):
    """A secret from a server: one stream, opened again and again."""

    def __init__(self, ref: SecretRef, source: ServerSource, context: SdsContext) -> None:
        super().__init__(ref, context)
        self._source = source
        self._subscriptions = Subscriptions((_URL,))
        self._backoff = context.backoff()
        self._connection = Connection(self._open)
        self._data: bytes | None = None
        self._heard = False
        self._missed = False

    def start(self) -> None:
        self._begin()
        self._connect()

    def close(self) -> Stream | None:
        """The stream that has been closed."""
        self._end()
        return self._connection.close()

    def before_fork(self) -> None:
        self._connection.before_fork()

    def after_fork_in_parent(self) -> None:
        if self._connection.after_fork_in_parent():
            self._context.executor.post(self._resume)

    def after_fork_in_child(self) -> None:
        self._connection.after_fork_in_child()

    def _open(self) -> Stream:
        target = sds_target(self._source, self._context.snapshot(), self._context.clusters)
        return self._context.open_stream(target, self._on_message, self._on_closed)

    def _connect(self) -> None:
        if self._closed:
            return
        self._count("update_attempt")
        try:
            if not self._connection.open():
                return
        except (ConfigError, TargetError) as error:
            self._lost(str(error))
            return
        self._heard = False
        self._subscriptions.connected()
        self._send(self._subscriptions.subscribe(_URL, (self._ref.name,)))

    def _resume(self) -> None:
        self._subscriptions.disconnected()
        self._connect()

    def _on_message(self, stream: Stream, data: bytes) -> None:
        self._context.executor.post(partial(self._received, stream, data))

    def _on_closed(self, stream: Stream, reason: str) -> None:
        self._context.executor.post(partial(self._stream_closed, stream, reason))

    def _stream_closed(self, stream: Stream, reason: str) -> None:
        if self._connection.ended(stream):
            self._lost(reason)

    def _lost(self, reason: str) -> None:
        if self._closed:
            return
        if self._heard:
            self._backoff.reset()
        self._count("update_failure")
        if not self._missed:
            self._missed = True
            self._warn("no connection to the SDS server of secret %r: %s", self._ref.name, reason)
        self._subscriptions.disconnected()
        due = self._context.clock.monotonic() + self._backoff.next()
        self._context.executor.call_at(due, self._connect)

    def _received(self, stream: Stream, data: bytes) -> None:
        try:
            if stream is self._connection.stream:
                self._respond(messages.parse(data))
        except ControlPlaneError as error:
            self._count("update_failure")
            if self._refused(str(error)):
                self._warn("secret %r: %s", self._ref.name, error)
        finally:
            stream.processed()

    def _respond(self, response: messages.Response) -> None:
        self._heard = True
        self._missed = False
        names = (self._ref.name,)
        if response.type_url != _URL:
            reason = f"type {response.type_url!r} was not asked for"
            self._send(self._subscriptions.reject(response.type_url, response.nonce, reason))
            return
        try:
            self._use(response)
        except ResourceError as error:
            self._refuse(error)
            text = f"{proto.full_name(_URL)} {self._ref.name!r}: {error}"
            self._send(self._subscriptions.reject(_URL, response.nonce, text, names))
        else:
            self._send(self._subscriptions.accept(_URL, response.version, response.nonce, names))

    def _use(self, response: messages.Response) -> None:
        """Raises ResourceError."""
        if len(response.resources) != 1:
            raise ResourceError("", f"expected one secret, got {len(response.resources)}")
        packed = response.resources[0]
        if packed.error is not None:
            raise packed.error
        if packed.data != self._data or not self._answered:
            self._take(self._decode(packed.data))
            self._data = packed.data

    def _send(self, request: Request | None) -> None:
        stream = self._connection.stream
        if stream is not None and request is not None:
            stream.send(messages.encode(request, self._context.node))


def _no_pause() -> None:
    return
