"""The published interoperability test cases, for an asyncio channel. Names are those of the published descriptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from tests.transport.grpc.interop.stubs import payload, pb, services
from tests.transport.grpc.interop.sync_cases import (
    CONCURRENT,
    METADATA,
    REQUEST_SIZES,
    RESPONSE_SIZES,
    SPECIAL,
    check_large,
    duplex_request,
    large_request,
    stub_of,
)
from tests.transport.grpc.interop.tap import Tap

__all__ = ["CASES"]

Case = Callable[[grpc.aio.Channel, Tap], Awaitable[None]]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


async def stream(*messages: Any) -> AsyncIterator[Any]:
    for message in messages:
        yield message


@case
async def empty_unary(channel: grpc.aio.Channel, tap: Tap) -> None:
    assert await stub_of(channel).EmptyCall(pb.Empty()) == pb.Empty()


@case
async def large_unary(channel: grpc.aio.Channel, tap: Tap) -> None:
    call = stub_of(channel).UnaryCall(large_request())
    check_large(await call)
    assert await call.code() is grpc.StatusCode.OK


@case
async def client_compressed_unary(channel: grpc.aio.Channel, tap: Tap) -> None:
    stub = stub_of(channel)
    compressed, plain = pb.BoolValue(value=True), pb.BoolValue(value=False)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.UnaryCall(large_request(expect_compressed=compressed))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    gzip = grpc.Compression.Gzip
    check_large(await stub.UnaryCall(large_request(expect_compressed=compressed), compression=gzip))
    check_large(await stub.UnaryCall(large_request(expect_compressed=plain)))
    assert tap.requests == [False, True, False]


@case
async def server_compressed_unary(channel: grpc.aio.Channel, tap: Tap) -> None:
    for wanted in (True, False):
        request = large_request(response_compressed=pb.BoolValue(value=wanted))
        check_large(await stub_of(channel).UnaryCall(request))
    assert tap.responses == [True, False]


@case
async def client_streaming(channel: grpc.aio.Channel, tap: Tap) -> None:
    requests = [pb.StreamingInputCallRequest(payload=payload(size)) for size in REQUEST_SIZES]
    response = await stub_of(channel).StreamingInputCall(stream(*requests))
    assert response.aggregated_payload_size == 74922


@case
async def client_streaming_by_writing(channel: grpc.aio.Channel, tap: Tap) -> None:
    """client_streaming with the other half of grpc.aio's interface: write and done_writing instead of an iterator."""
    call = stub_of(channel).StreamingInputCall()
    for size in REQUEST_SIZES:
        await call.write(pb.StreamingInputCallRequest(payload=payload(size)))
    await call.done_writing()
    assert (await call).aggregated_payload_size == 74922


@case
async def client_compressed_streaming(channel: grpc.aio.Channel, tap: Tap) -> None:
    """grpcio compresses a call or none of it, so the two messages of the description go out in two calls."""
    stub = stub_of(channel)
    compressed, plain = pb.BoolValue(value=True), pb.BoolValue(value=False)
    first = pb.StreamingInputCallRequest(payload=payload(27182), expect_compressed=compressed)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.StreamingInputCall(stream(first))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    second = pb.StreamingInputCallRequest(payload=payload(45904), expect_compressed=plain)
    answers = [
        await stub.StreamingInputCall(stream(first), compression=grpc.Compression.Gzip),
        await stub.StreamingInputCall(stream(second)),
    ]
    assert sum(answer.aggregated_payload_size for answer in answers) == 73086
    assert tap.requests == [False, True, False]


@case
async def server_streaming(channel: grpc.aio.Channel, tap: Tap) -> None:
    parameters = [pb.ResponseParameters(size=size) for size in RESPONSE_SIZES]
    request = pb.StreamingOutputCallRequest(response_parameters=parameters)
    responses = stub_of(channel).StreamingOutputCall(request)
    assert [len(response.payload.body) async for response in responses] == list(RESPONSE_SIZES)


@case
async def server_streaming_by_reading(channel: grpc.aio.Channel, tap: Tap) -> None:
    """server_streaming with `read` instead of `async for`."""
    parameters = [pb.ResponseParameters(size=size) for size in RESPONSE_SIZES]
    call = stub_of(channel).StreamingOutputCall(pb.StreamingOutputCallRequest(response_parameters=parameters))
    for size in RESPONSE_SIZES:
        assert (await call.read()).payload.body == bytes(size)
    assert await call.read() is grpc.aio.EOF


@case
async def server_compressed_streaming(channel: grpc.aio.Channel, tap: Tap) -> None:
    parameters = [
        pb.ResponseParameters(size=31415, compressed=pb.BoolValue(value=True)),
        pb.ResponseParameters(size=92653, compressed=pb.BoolValue(value=False)),
    ]
    request = pb.StreamingOutputCallRequest(response_parameters=parameters)
    responses = stub_of(channel).StreamingOutputCall(request)
    assert [len(response.payload.body) async for response in responses] == [31415, 92653]
    assert tap.responses == [True, False]


@case
async def ping_pong(channel: grpc.aio.Channel, tap: Tap) -> None:
    call = stub_of(channel).FullDuplexCall()
    for size, answer in zip(REQUEST_SIZES, RESPONSE_SIZES):
        await call.write(duplex_request(size, answer))
        assert (await call.read()).payload.body == bytes(answer)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


@case
async def empty_stream(channel: grpc.aio.Channel, tap: Tap) -> None:
    assert [response async for response in stub_of(channel).FullDuplexCall(stream())] == []


@case
async def custom_metadata(channel: grpc.aio.Channel, tap: Tap) -> None:
    call = stub_of(channel).UnaryCall(large_request(), metadata=METADATA)
    check_large(await call)
    assert METADATA[0] in tuple(await call.initial_metadata())
    assert METADATA[1] in tuple(await call.trailing_metadata())
    requests = stream(duplex_request(271828, 314159))
    responses = stub_of(channel).FullDuplexCall(requests, metadata=METADATA)
    assert [len(response.payload.body) async for response in responses] == [314159]
    assert METADATA[0] in tuple(await responses.initial_metadata())
    assert METADATA[1] in tuple(await responses.trailing_metadata())


@case
async def status_code_and_message(channel: grpc.aio.Channel, tap: Tap) -> None:
    status = pb.EchoStatus(code=2, message="test status message")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub_of(channel).UnaryCall(pb.SimpleRequest(response_status=status))
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNKNOWN, status.message)
    responses = stub_of(channel).FullDuplexCall(stream(pb.StreamingOutputCallRequest(response_status=status)))
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        assert [response async for response in responses] == []
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNKNOWN, status.message)
    assert (await responses.code(), await responses.details()) == (grpc.StatusCode.UNKNOWN, status.message)


@case
async def special_status_message(channel: grpc.aio.Channel, tap: Tap) -> None:
    status = pb.EchoStatus(code=2, message=SPECIAL)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub_of(channel).UnaryCall(pb.SimpleRequest(response_status=status))
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNKNOWN, SPECIAL)


@case
async def unimplemented_method(channel: grpc.aio.Channel, tap: Tap) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub_of(channel).UnimplementedCall(pb.Empty())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@case
async def unimplemented_service(channel: grpc.aio.Channel, tap: Tap) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await services.UnimplementedServiceStub(channel).UnimplementedCall(pb.Empty())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@case
async def cancel_after_begin(channel: grpc.aio.Channel, tap: Tap) -> None:
    call = stub_of(channel).StreamingInputCall()
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert call.cancelled()
    assert await call.code() is grpc.StatusCode.CANCELLED


@case
async def cancel_after_first_response(channel: grpc.aio.Channel, tap: Tap) -> None:
    call = stub_of(channel).FullDuplexCall()
    await call.write(duplex_request(27182, 31415))
    assert (await call.read()).payload.body == bytes(31415)
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call.read()
    assert await call.code() is grpc.StatusCode.CANCELLED


@case
async def timeout_on_sleeping_server(channel: grpc.aio.Channel, tap: Tap) -> None:
    """Not with the usual millisecond: grpcio calls a deadline that passes while it sends an internal error."""
    await channel.channel_ready()
    call = stub_of(channel).FullDuplexCall(timeout=0.2)

    async def converse() -> None:
        await call.write(pb.StreamingOutputCallRequest(payload=payload(27182)))
        await call.read()

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await converse()
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@case
async def concurrent_large_unary(channel: grpc.aio.Channel, tap: Tap) -> None:
    method = stub_of(channel).UnaryCall
    for response in await asyncio.gather(*(method(large_request()) for _ in range(CONCURRENT))):
        check_large(response)


@case
async def concurrent_streams(channel: grpc.aio.Channel, tap: Tap) -> None:
    """ping_pong on many streams of one channel at a time."""
    await asyncio.gather(*(ping_pong(channel, tap) for _ in range(16)))


@case
async def rpc_soak(channel: grpc.aio.Channel, tap: Tap) -> None:
    """large_unary over and over on one channel; the published case leaves the number to whoever runs it."""
    for _ in range(50):
        await large_unary(channel, tap)
