"""The development CA as a server: the Workload API and SDS on Unix sockets, SDS on loopback TCP.

grpcio runs each stream on a thread of its own; it sleeps until the identities change, the client says something, or it ends.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from meshlib import proto
from meshlib.controlplane.ca import sds, workload_api
from meshlib.controlplane.ca.callers import Caller
from meshlib.controlplane.ca.identities import Identities, View
from meshlib.controlplane.ca.relay import Relay
from meshlib.controlplane.ca.sds import SecretAnswer
from meshlib.controlplane.ca.workload_api import Refusal
from meshlib.errors import ConfigError
from meshlib.proto import Message, workload
from meshlib.runtime.threads import Timer, Worker

__all__ = ["CaServer"]

MAX_STREAMS = 1024
KEPT_ANSWERS = 1000

_OPTIONS = (("grpc.so_reuseport", 0),)


class CaServer:
    """Serves Identities and renews them, each at half of its life. Every change goes to all streams.

        identities = Identities(Authority("example.org", ttl=60), [Entry(spiffe_id="spiffe://example.org/web")])
        with CaServer(identities, listen=["unix:/tmp/agent.sock", "127.0.0.1:0"]) as server:
            mesh = meshlib.Mesh(identity=f"unix://{server.addresses[0]}", ...)

    On TCP there is SDS only, and only the identities that everybody may have. Not usable in a forked child.
    """

    def __init__(self, identities: Identities, listen: Iterable[str]) -> None:
        """listen: `unix:/path` or `host:port` of the loopback interface (port 0 takes a free one). Nothing is opened yet.

        A Unix socket is for this user alone, or for everybody once an entry selects its callers.

        Raises:
            ConfigError: an address that is neither.
        """
        self.identities = identities
        self._listen = tuple(listen)
        for address in self._listen:
            _check(address)
        self._addresses: tuple[str, ...] = ()
        self._server: Any = None
        self._folder: Path | None = None
        self._relay: Relay | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._worker = Worker("meshlib-ca", identities.authority.clock)
        self._timer: Timer | None = None
        self._pid = 0
        self._streams: set[_Stream] = set()
        self._unwatch: Callable[[], None] = lambda: None
        self._answers: deque[SecretAnswer] = deque(maxlen=KEPT_ANSWERS)

    def start(self) -> CaServer:
        """Listen. Returns itself.

        Raises:
            ConfigError: an address can't be listened on; nothing is left open.
        """
        self._pid = os.getpid()
        self._executor = ThreadPoolExecutor(max_workers=MAX_STREAMS, thread_name_prefix="meshlib-ca-stream")
        self._server = grpc.server(self._executor, handlers=self._handlers(), options=_OPTIONS)
        self._folder = Path(tempfile.mkdtemp(prefix="meshlib-ca-"))  # mode 0700
        inner = self._folder / "grpc"
        self._relay = Relay(inner)
        try:
            self._server.add_insecure_port(f"unix:{inner}")
            self._addresses = tuple(self._open(address) for address in self._listen)
        except ConfigError:
            self._server.start()  # one that never ran would keep its sockets
            self.stop()
            raise
        self._server.start()
        self._relay.start()
        self._unwatch = self.identities.watch(self._changed)
        self._worker.post(self._schedule)
        return self

    def stop(self) -> None:
        """End all streams, close all sockets, renew nothing any longer. May be called twice."""
        if self._server is None or self._pid != os.getpid():
            return
        self._unwatch()
        self._worker.close()
        for stream in tuple(self._streams):
            stream.end()
        self._server.stop(None).wait()
        if self._relay is not None:
            self._relay.close()
        if self._executor is not None:
            self._executor.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._server = self._relay = self._executor = self._folder = None

    def __enter__(self) -> CaServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def addresses(self) -> tuple[str, ...]:
        """What it listens on, in the order given, with the ports that were taken; known after start()."""
        return self._addresses

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @property
    def answers(self) -> tuple[SecretAnswer, ...]:
        """What SDS clients said to their secrets, oldest first; the last 1,000 are kept."""
        return tuple(self._answers)

    def _open(self, address: str) -> str:
        assert self._relay is not None
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            shared = any(entry.selective for entry in self.identities.entries)
            self._relay.listen(path, mode=0o666 if shared else 0o600)
            return address
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}: {error}") from None
        return f"{address.rpartition(':')[0]}:{port}"

    def _handlers(self) -> list[Any]:
        authority = self.identities.authority
        api: dict[str, Any] = {
            "FetchX509SVID": self._stream_of("X509SVIDRequest", workload_api.x509_svids),
            "FetchX509Bundles": self._stream_of("X509BundlesRequest", workload_api.x509_bundles),
            "FetchJWTBundles": self._stream_of(
                "JWTBundlesRequest", lambda view: workload_api.jwt_bundles(authority, view)
            ),
            "FetchJWTSVID": self._unary(
                "JWTSVIDRequest", lambda view, request: workload_api.jwt_svids(authority, view, request)
            ),
            "ValidateJWTSVID": self._unary(
                "ValidateJWTSVIDRequest", lambda _, request: workload_api.validate_jwt(authority, request)
            ),
        }
        secrets: dict[str, Any] = {
            method: grpc.stream_stream_rpc_method_handler(
                lambda requests, context, kind=kind: self._secrets(kind, requests, context)
            )
            for method, kind in sds.STREAMS.items()
        }
        secrets["FetchSecrets"] = grpc.unary_unary_rpc_method_handler(self._fetch)
        return [
            grpc.method_handlers_generic_handler(workload.SERVICE, api),
            grpc.method_handlers_generic_handler(sds.SERVICE, secrets),
        ]

    def _stream_of(self, request: str, answer: Callable[[View], Message]) -> Any:
        """A method of the Workload API that sends its answer again whenever it has changed."""

        def serve(_: Message, context: Any) -> Iterator[bytes]:
            caller = self._workload(context)
            with _Stream(self._streams, context) as stream:
                sent = None
                while stream.wait():
                    data = _or_abort(context, lambda: answer(self.identities.view(caller))).SerializeToString(
                        deterministic=True
                    )
                    if data != sent:
                        sent = data
                        yield data
            self._gone(context)

        return grpc.unary_stream_rpc_method_handler(
            serve, request_deserializer=workload.message(request).FromString
        )

    def _unary(self, request: str, answer: Callable[[View, Message], Message]) -> Any:
        def serve(message: Message, context: Any) -> bytes:
            caller = self._workload(context)
            found = _or_abort(context, lambda: answer(self.identities.view(caller), message))
            return bytes(found.SerializeToString())

        return grpc.unary_unary_rpc_method_handler(
            serve, request_deserializer=workload.message(request).FromString
        )

    def _fetch(self, data: bytes, context: Any) -> bytes:
        caller = self._caller(context)
        request = _or_abort(context, lambda: _parse("envoy.service.discovery.v3.DiscoveryRequest", data))
        view = self.identities.view(caller)
        plain = sds.plain_roots(request.node)
        resources = _or_abort(context, lambda: sds.fetch(view, request.resource_names, plain=plain))
        return bytes(sds.response(str(view.version), resources).SerializeToString())

    def _secrets(
        self, kind: tuple[Callable[[], sds.Stream], str], requests: Iterator[bytes], context: Any
    ) -> Iterator[bytes]:
        make, request_type = kind
        caller, state = self._caller(context), make()
        with _Stream(self._streams, context) as stream:
            reader = threading.Thread(
                target=self._read,
                args=(stream, state, request_type, requests),
                name="meshlib-ca-reader",
                daemon=True,
            )
            reader.start()
            while stream.wait():
                with stream.lock:
                    due = _or_abort(context, lambda: state.due(self.identities.view(caller)))
                if due is not None:
                    yield due.SerializeToString()
        if stream.error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, stream.error)
        self._gone(context)

    def _read(self, stream: _Stream, state: sds.Stream, request_type: str, requests: Iterator[bytes]) -> None:
        try:
            for data in requests:
                request = _parse(request_type, data)
                with stream.lock:
                    answer = state.receive(request)
                if answer is not None:
                    self._answers.append(answer)
                stream.wake()
        except Refusal as refusal:
            stream.error = refusal.text
        except grpc.RpcError:
            pass  # the call is over
        finally:
            stream.end()

    def _workload(self, context: Any) -> Caller | None:
        """The caller of the Workload API; the call of one that may not ask, or whom we don't know, ends here."""
        if workload.SECURITY_HEADER not in tuple(context.invocation_metadata()):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        caller = self._caller(context)
        if caller is None:
            context.abort(
                grpc.StatusCode.PERMISSION_DENIED, "the Workload API is served on the Unix socket only"
            )
        return caller

    def _caller(self, context: Any) -> Caller | None:
        """Who calls; None over TCP."""
        peer = context.peer()
        if not peer.startswith("unix:"):
            return None
        caller = None if self._relay is None else self._relay.caller(peer)
        if caller is None:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "the caller is not known")
        return caller

    def _gone(self, context: Any) -> None:
        if context.is_active():
            context.abort(grpc.StatusCode.UNAVAILABLE, "the CA ended the stream")

    def _changed(self) -> None:
        for stream in tuple(self._streams):
            stream.wake()
        self._worker.post(self._schedule)

    def _schedule(self) -> None:
        """Come back when the next SVID is due. On the worker's thread."""
        if self._timer is not None:
            self._timer.cancel()
        clock = self.identities.authority.clock
        wait = max(self.identities.next_renewal - clock.time(), 0.0)
        self._timer = self._worker.call_at(clock.monotonic() + wait, self._renew)

    def _renew(self) -> None:
        self.identities.renew()
        self._schedule()


class _Stream:
    """What wakes the thread of a stream: a change, the client, or the end. A context manager: registered while it is entered."""

    def __init__(self, streams: set[_Stream], context: Any) -> None:
        self._all = streams
        self._context = context
        self._condition = threading.Condition()
        self._woken = True
        self._ended = False
        self.lock = threading.Lock()
        self.error = ""

    def __enter__(self) -> _Stream:
        self._all.add(self)
        if not self._context.add_callback(self.end):
            self.end()
        return self

    def __exit__(self, *_: object) -> None:
        self._all.discard(self)

    def wait(self) -> bool:
        """Sleep until there may be something to send; False at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._woken or self._ended)
            self._woken = False
            return not self._ended

    def wake(self) -> None:
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def end(self) -> None:
        with self._condition:
            self._ended = True
            self._condition.notify_all()


def _parse(name: str, data: bytes) -> Message:
    try:
        return proto.parse(name, data)
    except proto.DecodeError:
        raise Refusal("INVALID_ARGUMENT", f"not a {name.rpartition('.')[2]}") from None


def _or_abort(context: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns; a refusal ends the call with its status."""
    try:
        return make()
    except Refusal as refusal:
        context.abort(grpc.StatusCode[refusal.code], refusal.text)
    except sds.UnknownSecret as unknown:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(unknown))


def _check(address: str) -> None:
    host, _, port = address.rpartition(":")
    if address.startswith("unix:/"):
        return
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
        good = loopback and 0 <= int(port) < 65536
    except ValueError:
        good = False
    if not good:
        raise ConfigError(
            f"{address!r}: private keys are served, so it has to be unix:/path or host:port of the loopback interface"
        )
