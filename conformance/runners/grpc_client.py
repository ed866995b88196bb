"""Making the gRPC calls of a case on synchronous channels, whoever made the channels."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc

from conformance.outcome import Outcome
from conformance.upstream.record import REQUEST_ID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conformance.outcome import Sent
    from conformance.rpc import Rpc

TIMEOUT = 20.0
"""Seconds after which a call that has no end counts as hung."""

OPTIONS = (
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),
)
"""A channel that does nothing by itself."""


class GrpcClient:
    """Sends on one channel for each authority of the case.

    ``open_channel`` gets the authority; ``tell`` adds what the library itself says about the call.
    """

    def __init__(
        self,
        open_channel: Callable[[str], grpc.Channel],
        tell: Callable[[dict[str, Any], Any], None] = lambda fields, call: None,
        default_timeout: float | None = None,
    ) -> None:
        self._open = open_channel
        self._tell = tell
        self._default_timeout = default_timeout
        self._lock = threading.Lock()
        self._channels: dict[str, grpc.Channel] = {}

    def send(self, sent: Sent) -> Outcome:
        """Make the call and wait for its end."""
        found: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        worker = threading.Thread(target=lambda: found.put(self._send(sent)), daemon=True)
        worker.start()
        try:
            return found.get(timeout=TIMEOUT)
        except queue.Empty:
            return Outcome(id=sent.id, error=f"the call did not end within {TIMEOUT:g} s")

    def close(self) -> None:
        """Close the channels."""
        for channel in self._channels.values():
            channel.close()

    def _send(self, sent: Sent) -> Outcome:
        start = time.monotonic()
        call: Any = None
        messages: list[bytes] = []
        try:
            call = self._call(sent, messages)
        except grpc.RpcError as error:
            call = error
        except Exception as error:  # noqa: BLE001  whatever a channel raises is the outcome of this call
            return Outcome(id=sent.id, error=repr(error), elapsed=time.monotonic() - start)
        fields = outcome_fields(sent, call, messages, time.monotonic() - start)
        self._tell(fields, call)
        return Outcome(**fields)

    def _call(self, sent: Sent, messages: list[bytes]) -> Any:
        rpc = sent.request.rpc
        assert rpc is not None
        channel = self._channel(sent.request.host)
        make = getattr(channel, rpc.arity.replace("-", "_"))(sent.request.path)
        turns: queue.SimpleQueue[None] = queue.SimpleQueue()
        request = _stream(rpc, turns) if rpc.streams_requests else rpc.messages[0]
        timeout = self._default_timeout if rpc.timeout is None else rpc.timeout
        options = {"timeout": timeout, "metadata": metadata(sent), "wait_for_ready": rpc.wait_for_ready}
        if not rpc.streams_responses:
            if rpc.cancel_after is None:
                response, call = make.with_call(request, **options)
            else:
                call = make.future(request, **options)
                _later(rpc.cancel_after, call.cancel)
                try:
                    response = call.result()
                except grpc.FutureCancelledError:
                    return call
            if response is not None:
                messages.append(response)
            return call
        call = make(request, **options)
        if rpc.cancel_after is not None:
            _later(rpc.cancel_after, call.cancel)
        if rpc.cancel_at == 0:
            call.cancel()
        for message in call:
            messages.append(message)
            turns.put(None)
            if len(messages) == rpc.cancel_at:
                call.cancel()
        return call

    def _channel(self, host: str) -> grpc.Channel:
        with self._lock:
            if host not in self._channels:
                self._channels[host] = self._open(host)
            return self._channels[host]


def metadata(sent: Sent) -> tuple[tuple[str, str | bytes], ...]:
    """The metadata of a call: those of the case, binary ones as bytes, and the id of the request."""
    given = [
        (name, value.encode() if name.endswith("-bin") else value) for name, value in sent.request.headers
    ]
    return ((REQUEST_ID, sent.id), *given)


def outcome_fields(sent: Sent, call: Any, messages: list[bytes], elapsed: float) -> dict[str, Any]:
    """The fields of an outcome that every grpcio call, or error, tells."""
    return {
        "id": sent.id,
        "code": call.code().name,
        "message": call.details() or "",
        "headers": pairs(call.initial_metadata()),
        "trailers": pairs(call.trailing_metadata()),
        "messages": tuple(messages),
        "elapsed": elapsed,
    }


def pairs(found: Any) -> tuple[tuple[str, str], ...]:
    """Metadata as text."""
    return tuple(
        (name, value.decode("latin-1") if isinstance(value, bytes) else value) for name, value in found or ()
    )


def _later(seconds: float, cancel: Callable[[], object]) -> None:
    timer = threading.Timer(seconds, cancel)
    timer.daemon = True
    timer.start()


def _stream(rpc: Rpc, turns: queue.SimpleQueue[None]) -> Iterator[bytes]:
    for index, message in enumerate(rpc.messages):
        if index:
            time.sleep(rpc.gap)
            if rpc.paced:
                turns.get(timeout=TIMEOUT)
        yield message
