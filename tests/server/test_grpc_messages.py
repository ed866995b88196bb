"""Messages and bytes in the record of a gRPC call are those that its caller has sent and got, on each kind of server."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

import meshlib
import meshlib.grpc
from meshlib.engine.observer import InboundCall
from meshlib.runtime.clock import SystemClock
from meshlib.server.grpc_messages import AsyncMessages, Messages, Ready
from meshlib.server.inbound import Inbound
from meshlib.testing import service
from tests.server.records import Recorder, watched
from tests.server.servers import ARITIES, SERVICE, asyncio_server, blocking_server
from tests.server.test_inbound import NOBODY_MAY
from tests.server.test_records import settled

PREFIX = 5


@dataclass(frozen=True)
class Word:
    """A message of the application."""

    text: str

    @staticmethod
    def of(data: bytes) -> Word:
        return Word(data.decode())

    def data(self) -> bytes:
        return self.text.encode()


WORDS = [Word(text) for text in ("", "a", "b" * 700, "", "é" * 33, "c" * 70_000)]
"""Empty ones have their prefix."""

SENT = [word.data() for word in WORDS]
UNSENDABLE = Word("\ud800")
"""It has no bytes."""


def traffic(record: InboundCall) -> tuple[int, int, int, int]:
    return record.messages_received, record.bytes_received, record.messages_sent, record.bytes_sent


def counted(sent: list[bytes], got: list[bytes]) -> tuple[int, int, int, int]:
    """The same as the caller sees it."""
    return (
        len(sent),
        sum(map(len, sent)) + PREFIX * len(sent),
        len(got),
        sum(map(len, got)) + PREFIX * len(got),
    )


# --- handlers: of each arity, named as they are, and some more -------------------------------------------------------


def blocking() -> dict[str, Any]:
    def unary_unary(request: Word, context: Any) -> Word:
        return Word(request.text * 2)

    def unary_stream(request: Word, context: Any) -> Iterator[Word]:
        yield request
        yield from WORDS

    def stream_unary(requests: Iterator[Word], context: Any) -> Word:
        return Word("".join(request.text for request in requests))

    def stream_stream(requests: Iterator[Word], context: Any) -> Iterator[Word]:
        yield from requests

    def noted(request: Word, context: Any) -> Word:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return Word("what is not there")

    def broken(request: Word, context: Any) -> Word:
        return UNSENDABLE

    def breaking(requests: Iterator[Word], context: Any) -> Iterator[Word]:
        yield Word("first")
        yield UNSENDABLE

    return _handlers(unary_unary, unary_stream, stream_unary, stream_stream, noted, broken, breaking)


def coroutines() -> dict[str, Any]:
    async def unary_unary(request: Word, context: Any) -> Word:
        return Word(request.text * 2)

    async def unary_stream(request: Word, context: Any) -> AsyncIterator[Word]:
        yield request
        for word in WORDS:
            yield word

    async def stream_unary(requests: AsyncIterator[Word], context: Any) -> Word:
        return Word("".join([request.text async for request in requests]))

    async def stream_stream(requests: AsyncIterator[Word], context: Any) -> AsyncIterator[Word]:
        async for request in requests:
            yield request

    async def noted(request: Word, context: Any) -> Word:
        context.set_code(grpc.StatusCode.NOT_FOUND)
        return Word("what is not there")

    async def broken(request: Word, context: Any) -> Word:
        return UNSENDABLE

    async def breaking(requests: AsyncIterator[Word], context: Any) -> AsyncIterator[Word]:
        yield Word("first")
        yield UNSENDABLE

    return _handlers(unary_unary, unary_stream, stream_unary, stream_stream, noted, broken, breaking)


def writing() -> dict[str, Any]:
    """Coroutines that read and write by themselves."""

    async def unary_stream(request: Word, context: Any) -> None:
        for word in [request, *WORDS]:
            await context.write(word)

    async def stream_unary(_: Any, context: Any) -> Word:
        found = ""
        while (request := await context.read()) is not grpc.aio.EOF:
            found += request.text
        return Word(found)

    async def stream_stream(_: Any, context: Any) -> None:
        while (request := await context.read()) is not grpc.aio.EOF:
            await context.write(request)

    async def breaking(_: Any, context: Any) -> None:
        await context.write(Word("first"))
        await context.write(UNSENDABLE)

    made = coroutines()
    made.update(
        unary_stream=grpc.unary_stream_rpc_method_handler(unary_stream, Word.of, Word.data),
        stream_unary=grpc.stream_unary_rpc_method_handler(stream_unary, Word.of, Word.data),
        stream_stream=grpc.stream_stream_rpc_method_handler(stream_stream, Word.of, Word.data),
        breaking=grpc.stream_stream_rpc_method_handler(breaking, Word.of, Word.data),
    )
    return made


def _handlers(*functions: Any) -> dict[str, Any]:
    arities = dict(zip(("noted", "broken", "breaking"), ("unary_unary", "unary_unary", "stream_stream")))
    made = {}
    for each in functions:
        arity = arities.get(each.__name__, each.__name__)
        made[each.__name__] = getattr(grpc, f"{arity}_rpc_method_handler")(each, Word.of, Word.data)
    return made


KINDS = {
    "blocking": (blocking_server, blocking),
    "asyncio": (asyncio_server, coroutines),
    "asyncio-writing": (asyncio_server, writing),
    "asyncio-blocking": (asyncio_server, blocking),
}


@contextlib.contextmanager
def served(kind: str, **inbound: Any) -> Iterator[tuple[grpc.Channel, Recorder]]:
    serve, handlers = KINDS[kind]
    with watched() as (mesh, recorder), serve(handlers(), SystemClock(), Inbound(mesh, **inbound)) as address:
        with grpc.insecure_channel(address) as channel:
            yield channel, recorder


def call(channel: grpc.Channel, arity: str, name: str, compression: Any = None) -> list[bytes]:
    """All that it gives."""
    request: Any = iter(SENT) if arity.startswith("stream") else SENT[2]
    outcome = getattr(channel, arity)(f"/{SERVICE}/{name}")(request, timeout=20, compression=compression)
    return list(outcome) if arity.endswith("stream") else [outcome]


@pytest.mark.parametrize("compression", [None, grpc.Compression.Gzip])
@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_callers_send_and_get(kind: str, arity: str, compression: Any) -> None:
    sent = SENT if arity.startswith("stream") else SENT[2:3]
    with served(kind) as (channel, recorder):
        for number in range(5):
            got = call(channel, arity, arity, compression)
            settled(recorder, number + 1)
            assert traffic(recorder.over[number]) == counted(sent, got)
            assert recorder.over[number].grpc_status == "0"


@pytest.mark.parametrize("kind", KINDS)
def test_a_response_beside_another_status(kind: str) -> None:
    """A blocking server sends it; of asyncio's there is an empty message."""
    with served(kind) as (channel, recorder):
        with pytest.raises(grpc.RpcError):
            call(channel, "unary_unary", "noted")
        settled(recorder, 1)
    got = [b"what is not there"] if kind == "blocking" else [b""]
    assert traffic(recorder.only) == counted(SENT[2:3], got)
    assert recorder.only.grpc_status == "5"


@pytest.mark.parametrize(("name", "arity"), [("broken", "unary_unary"), ("breaking", "stream_stream")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_response_that_cannot_be_serialized(
    kind: str, name: str, arity: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The record has the status that the caller gets."""
    with served(kind) as (channel, recorder):
        with pytest.raises(grpc.RpcError) as raised:
            call(channel, arity, name)
        caplog.clear()  # what was logged has the frames of the server
        settled(recorder, 1)
        assert recorder.only.grpc_status == str(raised.value.code().value[0])
    _, _, messages, size = traffic(recorder.only)
    assert (messages, size) == ((0, 0) if name == "broken" else (1, PREFIX + 5))
    assert recorder.only.flags == ()


@pytest.mark.parametrize("kind", KINDS)
def test_a_refused_call(kind: str) -> None:
    """Nothing is sent but the status; a single message has come before anybody could refuse it."""
    with served(kind, rbac=NOBODY_MAY) as (channel, recorder):
        for number, arity in enumerate(ARITIES):
            with pytest.raises(grpc.RpcError):
                call(channel, arity, arity)
            settled(recorder, number + 1)
            received = [] if arity.startswith("stream") else SENT[2:3]
            assert traffic(recorder.over[number]) == counted(received, [])


def totals(mesh: meshlib.Mesh) -> dict[str, float]:
    """Of Istio's metrics: messages, and bytes."""
    found = {}
    for what in ("request", "response"):
        for name, value in ((f"istio_{what}_messages_total", "value"), (f"istio_{what}_bytes", "total")):
            found[name] = sum(getattr(metric, value) for _, metric in mesh.stats.natives(name))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_both_sides_count_the_same(kind: str) -> None:
    """What the caller's Mesh says of its calls is what that of the server says of them."""
    metrics = meshlib.Observe(tracing=False)
    serve, handlers = KINDS[kind]
    with watched(observe=metrics) as (mesh, recorder):
        with serve(handlers(), SystemClock(), Inbound(mesh)) as address:
            with meshlib.Mesh(service("back", address), observe=metrics) as caller:
                with meshlib.grpc.channel("back:80", mesh=caller) as channel:
                    got = [message for arity in ARITIES for message in call(channel, arity, arity)]
                settled(recorder, len(ARITIES))
                sent = [*SENT[2:3] * 2, *SENT * 2]
                messages, size, answers, back = counted(sent, got)
                assert totals(caller) == {
                    "istio_request_messages_total": messages,
                    "istio_request_bytes": size,
                    "istio_response_messages_total": answers,
                    "istio_response_bytes": back,
                }
                assert totals(mesh) == totals(caller)


def test_who_can_tell_messages_apart() -> None:
    messages = Messages(None, None)
    assert messages.write(b"raw") == b"raw"
    ready = messages.last(b"once", "0")
    assert isinstance(ready, Ready)
    assert messages.write(ready) == b"once"
    record = InboundCall(
        method="POST",
        scheme="http",
        authority="a",
        path="/",
        headers=[],
        protocol="HTTP/2",
        remote="",
        started=0,
        epoch=0,
    )
    messages.tell(record)
    assert traffic(record) == (0, 0, 2, 3 + 4 + 2 * PREFIX)
    assert messages.next(None) is None
    asynchronous = AsyncMessages(None, None)
    assert asynchronous.last(None, "5") is None
    assert asynchronous.write(asynchronous.last("text", "0")) == b"text", "as grpc.aio has it"
