"""meshlib over gRPC: the same calls through a channel of the mesh, synchronous and on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import time
from typing import TYPE_CHECKING, Any

import grpc

from conformance.outcome import Outcome
from conformance.runners.drive import drive, drive_async
from conformance.runners.grpc_client import TIMEOUT, GrpcClient, metadata, outcome_fields
from conformance.runners.settled import settled, settled_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conformance.case import Case
    from conformance.outcome import Run, Sent
    from conformance.resources import Compiled
    from conformance.rpc import Rpc


class GrpcMeshRunner:
    """``meshlib.grpc.channel``, or with ``on_asyncio`` ``meshlib.grpc.aio_channel``."""

    def __init__(self, *, on_asyncio: bool) -> None:
        self._asyncio = on_asyncio
        self._meshlib: Any = importlib.import_module("meshlib")
        self._channels: Any = importlib.import_module("meshlib.grpc")

    def run(self, case: Case, compiled: Compiled) -> Run:
        """Send the requests of ``case``."""
        document = [compiled.document()]
        with self._meshlib.Mesh(
            config=document, headers="envoy", trust_request_headers=case.internal
        ) as mesh:
            mesh.wait_ready(timeout=TIMEOUT)
            if self._asyncio:
                return asyncio.run(_run(case, mesh, functools.partial(self._channels.aio_channel, mesh=mesh)))
            open_channel = functools.partial(self._channels.channel, mesh=mesh)
            with contextlib.closing(GrpcClient(open_channel, _tell)) as client:
                return settled(case, mesh, drive(case, client.send))

    def rejection(self, case: Case, compiled: Compiled) -> str | None:
        """Not asked: a case without a request has no protocol of its own."""
        raise NotImplementedError(case.name)


def _tell(fields: dict[str, Any], call: Any) -> None:
    """Add what meshlib says of the call."""
    info = call.meshlib
    fields |= {
        "flags": info.flags,
        "details": info.details,
        "attempts": len(info.attempts),
        # Envoy's log has no cluster where the one asked for does not exist, and no route where it has no name.
        "cluster": "" if info.details == "cluster_not_found" else info.cluster or "",
        "route": "" if (info.route or "0").isdigit() else info.route,
        "trailers": tuple(pair for pair in fields["trailers"] if not _is_own_explanation(*pair)),
    }


def _is_own_explanation(name: str, value: str) -> bool:
    """The google.rpc.Status that meshlib adds to its own errors; Envoy has none."""
    return name == "grpc-status-details-bin" and "\x07meshlib" in value


async def _run(case: Case, mesh: Any, open_channel: Callable[[str], grpc.aio.Channel]) -> Run:
    async with contextlib.AsyncExitStack() as stack:
        channels: dict[str, grpc.aio.Channel] = {}
        for request in case.requests:
            if request.host not in channels:
                channels[request.host] = await stack.enter_async_context(open_channel(request.host))

        async def send(sent: Sent) -> Outcome:
            return await _send(channels[sent.request.host], sent)

        return await settled_async(case, mesh, await drive_async(case, send))


async def _send(channel: grpc.aio.Channel, sent: Sent) -> Outcome:
    start = time.monotonic()
    messages: list[bytes] = []
    call: Any = None
    try:
        async with asyncio.timeout(TIMEOUT):
            turns = asyncio.Semaphore(0)
            call = _start(channel, sent, turns)
            await _finish(call, sent, turns, messages)
    except TimeoutError:
        return Outcome(id=sent.id, error=f"the call did not end within {TIMEOUT:g} s")
    except (grpc.RpcError, asyncio.CancelledError):
        pass  # the call says it all
    except Exception as error:  # noqa: BLE001  whatever a channel raises is the outcome of this call
        return Outcome(id=sent.id, error=repr(error), elapsed=time.monotonic() - start)
    elapsed = time.monotonic() - start
    fields = outcome_fields(sent, await _Told.of(call), messages, elapsed)
    _tell(fields, call)
    return Outcome(**fields)


def _start(channel: grpc.aio.Channel, sent: Sent, turns: asyncio.Semaphore) -> Any:
    rpc = sent.request.rpc
    assert rpc is not None
    make = getattr(channel, rpc.arity.replace("-", "_"))(sent.request.path)
    request = _stream(rpc, turns) if rpc.streams_requests else rpc.messages[0]
    return make(
        request,
        timeout=rpc.timeout,
        metadata=grpc.aio.Metadata(*metadata(sent)),
        wait_for_ready=rpc.wait_for_ready,
    )


async def _finish(call: Any, sent: Sent, turns: asyncio.Semaphore, messages: list[bytes]) -> None:
    rpc = sent.request.rpc
    assert rpc is not None
    if rpc.cancel_after is not None:
        asyncio.get_running_loop().call_later(rpc.cancel_after, call.cancel)
    if not rpc.streams_responses:
        response = await call
        if response is not None:
            messages.append(response)
        return
    if rpc.cancel_at == 0:
        call.cancel()
    async for message in call:
        messages.append(message)
        turns.release()
        if len(messages) == rpc.cancel_at:
            call.cancel()


class _Told:
    """What a call of asyncio says when it is over, as a synchronous one says it."""

    def __init__(self, code: grpc.StatusCode, details: str, initial: Any, trailing: Any) -> None:
        self.code = lambda: code
        self.details = lambda: details
        self.initial_metadata = lambda: initial
        self.trailing_metadata = lambda: trailing

    @classmethod
    async def of(cls, call: Any) -> _Told:
        return cls(
            await call.code(),
            await call.details(),
            await call.initial_metadata(),
            await call.trailing_metadata(),
        )


async def _stream(rpc: Rpc, turns: asyncio.Semaphore) -> AsyncIterator[bytes]:
    for index, message in enumerate(rpc.messages):
        if index:
            await asyncio.sleep(rpc.gap)
            if rpc.paced:
                await turns.acquire()
        yield message
