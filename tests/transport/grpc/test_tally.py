"""Messages and bytes of gRPC calls, as observers are told, are those that the server took and gave: of each kind of call."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest

import meshlib
from meshlib.engine.call import Call
from meshlib.engine.observer import CallObserver
from meshlib.grpc import aio_channel, channel
from meshlib.testing import service
from meshlib.transport.grpc.tally import Incoming, Outgoing

QUIET = meshlib.Observe(tracing=False, metrics=False, recent_calls=0)
PREFIX = 5
WORDS = ["", "a", "b" * 700, "", "é" * 33, "c" * 70_000]
"""Messages of the application. Empty ones have their prefix."""


class Traffic:
    """Messages, and their bytes on the wire: sent and received by a client."""

    def __init__(self, sent: list[bytes], received: list[bytes]) -> None:
        self.messages = len(sent), len(received)
        self.bytes = (
            sum(map(len, sent)) + PREFIX * len(sent),
            sum(map(len, received)) + PREFIX * len(received),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Traffic) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash((self.messages, self.bytes))

    def __repr__(self) -> str:
        return f"{self.messages} {self.bytes}"


class Told(CallObserver):
    """What is told when calls are over."""

    def __init__(self) -> None:
        self.traffic: list[Traffic] = []
        self.statuses: list[str | None] = []

    def over(self, call: Call, now: float) -> None:
        told = Traffic([], [])
        told.messages = call.messages_sent, call.messages_received
        told.bytes = call.bytes_sent, call.bytes_received
        self.traffic.append(told)
        self.statuses.append(call.grpc_status)


class Peer(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Echoes what it took, of one message WORDS too when it streams.

    refuses: calls that are UNAVAILABLE. holds: calls that wait for the gate. ends: with NOT_FOUND. took, gave: of the last call.
    """

    def __init__(self) -> None:
        self.took: list[bytes] = []
        self.gave: list[bytes] = []
        self.refuses = self.holds = 0
        self.gate = threading.Event()
        self.ends = False

    @property
    def traffic(self) -> Traffic:
        return Traffic(self.took, self.gave)

    def service(self, details: Any) -> Any:
        self.took, self.gave = [], []
        kind = details.method.rpartition("/")[2]
        refused, self.refuses = self.refuses > 0, self.refuses - 1
        held, self.holds = self.holds > 0, self.holds - 1

        def each(request: Any) -> Iterator[bytes]:
            if held:
                self.gate.wait(20)
                return
            for message in [request] if isinstance(request, bytes) else request:
                self.took.append(message)
                yield message

        def end(context: Any) -> None:
            if self.ends:
                context.abort(grpc.StatusCode.NOT_FOUND, "gone")

        def one(request: Any, context: Any) -> bytes:
            taken = list(each(request))
            if refused:
                context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
            end(context)
            self.gave.append(b"".join(taken))
            return self.gave[0]

        def many(request: Any, context: Any) -> Iterator[bytes]:
            if refused:
                list(each(request))
                context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
            for message in each(request):
                for answer in [message] if kind.startswith("stream") else [message, *map(str.encode, WORDS)]:
                    self.gave.append(answer)
                    yield answer
            end(context)

        return getattr(grpc, f"{kind}_rpc_method_handler")(many if kind.endswith("stream") else one)


World = tuple[meshlib.Mesh, Told, Peer]


@contextlib.contextmanager
def serving(*, hedges: bool = False) -> Iterator[World]:
    """A mesh that tries twice, and its only endpoint."""
    peer, told = Peer(), Told()
    with ThreadPoolExecutor(4) as workers:
        server = grpc.server(workers)
        server.add_generic_rpc_handlers((peer,))
        config = service("back", f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
        config["resources"][1]["virtual_hosts"][0]["retry_policy"] = {
            "retry_on": "unavailable",
            "per_try_timeout": "0.05s" if hedges else "10s",
            "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.001s"},
        }
        if hedges:
            config["resources"][1]["virtual_hosts"][0]["hedge_policy"] = {"hedge_on_per_try_timeout": True}
        config["resources"][2]["http2_protocol_options"] = {}
        server.start()
        try:
            with meshlib.Mesh(config, observe=QUIET) as mesh:
                mesh.start()
                mesh.engine.observe(told)
                yield mesh, told, peer
        finally:
            peer.gate.set()
            server.stop(None).wait()


@pytest.fixture
def world() -> Iterator[World]:
    with serving() as world:
        yield world


KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
SYNC = ("blocking", "with_call", "future")
ASYNC = ("aio", "aio-styled")
HOWS = [
    (kind, how)
    for kind in KINDS
    for how in (*SYNC, *ASYNC)
    if not (kind.endswith("stream") and how in ("with_call", "future"))
    and not (kind == "unary_unary" and how == "aio-styled")
]
hows = pytest.mark.parametrize(("kind", "how"), HOWS, ids=["-".join(each) for each in HOWS])

Coder = Callable[[Any], Any]


def blocking(
    mesh: meshlib.Mesh,
    kind: str,
    how: str,
    encode: Coder = str.encode,
    decode: Coder = bytes.decode,
    **more: Any,
) -> list[str]:
    with channel("back:80", mesh=mesh) as made:
        call = getattr(made, kind)(f"/s.S/{kind}", encode, decode)
        request = iter(WORDS) if kind.startswith("stream") else WORDS[2]
        if kind.endswith("stream"):
            return list(call(request, **more))
        if how == "future":
            return [call.future(request, **more).result()]
        if how == "with_call":
            return [call.with_call(request, **more)[0]]
        return [call(request, **more)]


async def asyncio_call(
    mesh: meshlib.Mesh,
    kind: str,
    how: str,
    encode: Coder = str.encode,
    decode: Coder = bytes.decode,
    **more: Any,
) -> list[str]:
    styled = how == "aio-styled"
    async with aio_channel("back:80", mesh=mesh) as made:
        method = getattr(made, kind)(f"/s.S/{kind}", encode, decode)
        if not kind.startswith("stream"):
            call = method(WORDS[2], **more)
        elif styled:
            call = method(**more)
            for word in WORDS:
                await call.write(word)
            await call.done_writing()
        else:
            call = method(iter(WORDS), **more)
        if not kind.endswith("stream"):
            return [await call]
        if not styled:
            return [message async for message in call]
        found = []
        while (message := await call.read()) is not grpc.aio.EOF:
            found.append(message)
        return found


def run(mesh: meshlib.Mesh, kind: str, how: str, *arguments: Any, **more: Any) -> list[str]:
    if how in ASYNC:
        return asyncio.run(asyncio_call(mesh, kind, how, *arguments, **more))
    return blocking(mesh, kind, how, *arguments, **more)


@hows
def test_calls_that_go_well(world: World, kind: str, how: str) -> None:
    mesh, told, peer = world
    for _ in range(5):
        run(mesh, kind, how)
        expected = peer.traffic
        assert expected.messages[kind.startswith("unary")] or expected.messages == (1, 1)
        assert told.traffic.pop() == expected
    assert told.statuses == ["0"] * 5


@hows
def test_a_request_that_is_sent_twice_counts_once(world: World, kind: str, how: str) -> None:
    mesh, told, peer = world
    peer.refuses = 1
    run(mesh, kind, how)
    assert peer.refuses == -1
    assert (told.traffic, told.statuses) == ([peer.traffic], ["0"])


@hows
def test_calls_that_end_with_an_error(world: World, kind: str, how: str) -> None:
    mesh, told, peer = world
    peer.ends = True
    with pytest.raises(grpc.RpcError):
        run(mesh, kind, how)
    assert (told.traffic, told.statuses) == ([peer.traffic], ["5"])
    assert bool(peer.gave) is kind.endswith("stream")


@hows
def test_compression_does_not_count(world: World, kind: str, how: str) -> None:
    """What is compressed does not go the lean way, so this is the way of other releases of grpcio, too."""
    mesh, told, peer = world
    run(mesh, kind, how, compression=grpc.Compression.Gzip)
    assert (told.traffic, told.statuses) == ([peer.traffic], ["0"])


@hows
def test_a_request_that_nobody_takes_does_not_count(world: World, kind: str, how: str) -> None:
    _, told, _ = world
    with meshlib.Mesh(service("back", "127.0.0.1:1"), observe=QUIET) as broken:
        broken.start()
        broken.engine.observe(told)
        with pytest.raises((grpc.RpcError, asyncio.InvalidStateError)):
            run(broken, kind, how)
    assert (told.traffic, told.statuses) == ([Traffic([], [])], ["14"])


def failing(_message: Any) -> Any:
    raise ZeroDivisionError


@pytest.mark.parametrize("how", SYNC)
def test_messages_that_cannot_be_read(world: World, how: str, caplog: pytest.LogCaptureFixture) -> None:
    mesh, told, peer = world
    with pytest.raises(grpc.RpcError, match="deserializing"):
        run(mesh, "unary_unary", how, str.encode, failing)
    assert told.traffic == [peer.traffic], "they have come"
    caplog.clear()


@pytest.mark.parametrize("how", SYNC)
@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
def test_messages_that_cannot_be_sent(
    world: World, how: str, compression: Any, caplog: pytest.LogCaptureFixture
) -> None:
    mesh, told, _ = world
    with pytest.raises(grpc.RpcError, match="serializing"):
        run(mesh, "unary_unary", how, failing, compression=compression)
    assert told.traffic == [Traffic([], [])]
    caplog.clear()


def test_a_stream_that_is_given_up(world: World) -> None:
    """What was taken before."""
    mesh, told, peer = world
    with channel("back:80", mesh=mesh) as made:
        call = made.unary_stream("/s.S/unary_stream", str.encode, bytes.decode)(WORDS[2])
        taken = [next(call), next(call)]
        call.cancel()
    assert told.traffic == [Traffic(peer.took, [word.encode() for word in taken])]


def test_a_stream_that_is_given_up_on_asyncio(world: World) -> None:
    mesh, told, peer = world

    async def main() -> list[str]:
        async with aio_channel("back:80", mesh=mesh) as made:
            call = made.unary_stream("/s.S/unary_stream", str.encode, bytes.decode)(WORDS[2])
            taken = [await call.read(), await call.read()]
            call.cancel()
            return taken

    taken = asyncio.run(main())
    assert told.traffic == [Traffic(peer.took, [word.encode() for word in taken])]


def test_a_response_that_nobody_has_read_yet_counts(world: World) -> None:
    """The status of a stream with one message comes before the application reads that."""
    mesh, told, peer = world

    async def main() -> None:
        async with aio_channel("back:80", mesh=mesh) as made:
            over = asyncio.Event()
            call = made.stream_stream("/s.S/stream_stream")(_one())
            call.add_done_callback(lambda _: over.set())
            async with asyncio.timeout(20):
                await over.wait()
            assert (told.traffic, peer.gave) == ([peer.traffic], [b"one"])
            assert await call.read() == b"one"

    asyncio.run(main())


async def _one() -> AsyncIterator[bytes]:
    yield b"one"


@pytest.mark.parametrize("how", ["blocking", "future", "aio"])
@pytest.mark.parametrize("kind", ["unary_unary", "unary_stream"])
def test_of_hedged_attempts_the_one_that_answers_counts(kind: str, how: str) -> None:
    with serving(hedges=True) as (mesh, told, peer):
        peer.holds = 1
        run(mesh, kind, how)
        assert peer.holds == -1
        assert (told.traffic, told.statuses) == ([peer.traffic], ["0"])


def test_what_counts() -> None:
    outgoing, incoming = Outgoing(None), Incoming(None)
    assert outgoing(b"ab") == incoming(b"ab") == b"ab"
    assert (outgoing.count, outgoing.size) == (incoming.count, incoming.size) == (1, 7)
    assert outgoing(None) is None
    assert outgoing(7) == 7, "grpcio says what is wrong with it"
    with pytest.raises(ZeroDivisionError):
        Outgoing(failing)("a")
    assert outgoing.count == 1
    broken = Incoming(failing)
    with pytest.raises(ZeroDivisionError):
        broken(b"abc")
    assert (broken.count, broken.size) == (1, 8)
