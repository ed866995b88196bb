"""The published interoperability test cases, for a blocking channel. Names are those of the published descriptions."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.transport.grpc.interop.server import INITIAL, TRAILING
from tests.transport.grpc.interop.stubs import payload, pb, services
from tests.transport.grpc.interop.tap import Tap

__all__ = ["CASES"]

REQUEST_SIZES = (27182, 8, 1828, 45904)
RESPONSE_SIZES = (31415, 9, 2653, 58979)
METADATA = ((INITIAL, "test_initial_metadata_value"), (TRAILING, b"\xab\xab\xab"))
SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
CONCURRENT = 100
LIMIT = 30.0

Case = Callable[[grpc.Channel, Tap], None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


class Requests:
    """A request stream that the test feeds, one message at a time."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def send(self, message: Any) -> None:
        self._messages.put(message)

    def half_close(self) -> None:
        self._messages.put(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._messages.get, None)


def stub_of(channel: grpc.Channel) -> Any:
    return services.TestServiceStub(channel)


def large_request(**fields: Any) -> Any:
    return pb.SimpleRequest(response_size=314159, payload=payload(271828), **fields)


def duplex_request(size: int, answer: int) -> Any:
    return pb.StreamingOutputCallRequest(
        response_parameters=[pb.ResponseParameters(size=answer)], payload=payload(size)
    )


def check_large(response: Any) -> None:
    assert response.payload.body == bytes(314159)


@case
def empty_unary(channel: grpc.Channel, tap: Tap) -> None:
    assert stub_of(channel).EmptyCall(pb.Empty()) == pb.Empty()


@case
def large_unary(channel: grpc.Channel, tap: Tap) -> None:
    check_large(stub_of(channel).UnaryCall(large_request()))


@case
def client_compressed_unary(channel: grpc.Channel, tap: Tap) -> None:
    stub = stub_of(channel)
    compressed, plain = pb.BoolValue(value=True), pb.BoolValue(value=False)
    with pytest.raises(grpc.RpcError) as raised:
        stub.UnaryCall(large_request(expect_compressed=compressed))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    check_large(
        stub.UnaryCall(large_request(expect_compressed=compressed), compression=grpc.Compression.Gzip)
    )
    check_large(stub.UnaryCall(large_request(expect_compressed=plain)))
    assert tap.requests == [False, True, False]


@case
def server_compressed_unary(channel: grpc.Channel, tap: Tap) -> None:
    for wanted in (True, False):
        check_large(stub_of(channel).UnaryCall(large_request(response_compressed=pb.BoolValue(value=wanted))))
    assert tap.responses == [True, False]


@case
def client_streaming(channel: grpc.Channel, tap: Tap) -> None:
    requests = (pb.StreamingInputCallRequest(payload=payload(size)) for size in REQUEST_SIZES)
    assert stub_of(channel).StreamingInputCall(requests).aggregated_payload_size == 74922


@case
def client_compressed_streaming(channel: grpc.Channel, tap: Tap) -> None:
    """grpcio compresses a call or none of it, so the two messages of the description go out in two calls."""
    stub = stub_of(channel)
    compressed, plain = pb.BoolValue(value=True), pb.BoolValue(value=False)
    first = pb.StreamingInputCallRequest(payload=payload(27182), expect_compressed=compressed)
    with pytest.raises(grpc.RpcError) as raised:
        stub.StreamingInputCall(iter([first]))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    second = pb.StreamingInputCallRequest(payload=payload(45904), expect_compressed=plain)
    total = stub.StreamingInputCall(iter([first]), compression=grpc.Compression.Gzip).aggregated_payload_size
    total += stub.StreamingInputCall(iter([second])).aggregated_payload_size
    assert total == 73086
    assert tap.requests == [False, True, False]


@case
def server_streaming(channel: grpc.Channel, tap: Tap) -> None:
    parameters = [pb.ResponseParameters(size=size) for size in RESPONSE_SIZES]
    responses = stub_of(channel).StreamingOutputCall(
        pb.StreamingOutputCallRequest(response_parameters=parameters)
    )
    assert [len(response.payload.body) for response in responses] == list(RESPONSE_SIZES)


@case
def server_compressed_streaming(channel: grpc.Channel, tap: Tap) -> None:
    parameters = [
        pb.ResponseParameters(size=31415, compressed=pb.BoolValue(value=True)),
        pb.ResponseParameters(size=92653, compressed=pb.BoolValue(value=False)),
    ]
    responses = stub_of(channel).StreamingOutputCall(
        pb.StreamingOutputCallRequest(response_parameters=parameters)
    )
    assert [len(response.payload.body) for response in responses] == [31415, 92653]
    assert tap.responses == [True, False]


@case
def ping_pong(channel: grpc.Channel, tap: Tap) -> None:
    requests = Requests()
    responses = stub_of(channel).FullDuplexCall(iter(requests))
    for size, answer in zip(REQUEST_SIZES, RESPONSE_SIZES):
        requests.send(duplex_request(size, answer))
        assert next(responses).payload.body == bytes(answer)
    requests.half_close()
    assert list(responses) == []
    assert responses.code() is grpc.StatusCode.OK


@case
def empty_stream(channel: grpc.Channel, tap: Tap) -> None:
    assert list(stub_of(channel).FullDuplexCall(iter(()))) == []


@case
def custom_metadata(channel: grpc.Channel, tap: Tap) -> None:
    _, call = stub_of(channel).UnaryCall.with_call(large_request(), metadata=METADATA)
    assert METADATA[0] in [tuple(item) for item in call.initial_metadata()]
    assert METADATA[1] in [tuple(item) for item in call.trailing_metadata()]
    responses = stub_of(channel).FullDuplexCall(iter([duplex_request(271828, 314159)]), metadata=METADATA)
    assert [len(response.payload.body) for response in responses] == [314159]
    assert METADATA[0] in [tuple(item) for item in responses.initial_metadata()]
    assert METADATA[1] in [tuple(item) for item in responses.trailing_metadata()]


@case
def status_code_and_message(channel: grpc.Channel, tap: Tap) -> None:
    status = pb.EchoStatus(code=2, message="test status message")
    with pytest.raises(grpc.RpcError) as raised:
        stub_of(channel).UnaryCall(pb.SimpleRequest(response_status=status))
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNKNOWN, status.message)
    responses = stub_of(channel).FullDuplexCall(iter([pb.StreamingOutputCallRequest(response_status=status)]))
    with pytest.raises(grpc.RpcError) as raised:
        list(responses)
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNKNOWN, status.message)
    assert (responses.code(), responses.details()) == (grpc.StatusCode.UNKNOWN, status.message)


@case
def special_status_message(channel: grpc.Channel, tap: Tap) -> None:
    status = pb.EchoStatus(code=2, message=SPECIAL)
    with pytest.raises(grpc.RpcError) as raised:
        stub_of(channel).UnaryCall(pb.SimpleRequest(response_status=status))
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNKNOWN, SPECIAL)


@case
def unimplemented_method(channel: grpc.Channel, tap: Tap) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        stub_of(channel).UnimplementedCall(pb.Empty())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@case
def unimplemented_service(channel: grpc.Channel, tap: Tap) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        services.UnimplementedServiceStub(channel).UnimplementedCall(pb.Empty())
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


@case
def cancel_after_begin(channel: grpc.Channel, tap: Tap) -> None:
    requests = Requests()
    call = stub_of(channel).StreamingInputCall.future(iter(requests))
    call.cancel()
    assert call.cancelled()
    assert call.code() is grpc.StatusCode.CANCELLED
    requests.half_close()


@case
def cancel_after_first_response(channel: grpc.Channel, tap: Tap) -> None:
    requests = Requests()
    responses = stub_of(channel).FullDuplexCall(iter(requests))
    requests.send(duplex_request(27182, 31415))
    assert next(responses).payload.body == bytes(31415)
    responses.cancel()
    with pytest.raises(grpc.RpcError) as raised:
        next(responses)
    assert raised.value.code() is grpc.StatusCode.CANCELLED
    assert responses.code() is grpc.StatusCode.CANCELLED
    requests.half_close()


@case
def timeout_on_sleeping_server(channel: grpc.Channel, tap: Tap) -> None:
    requests = Requests()
    responses = stub_of(channel).FullDuplexCall(iter(requests), timeout=0.001)
    requests.send(pb.StreamingOutputCallRequest(payload=payload(27182)))
    with pytest.raises(grpc.RpcError) as raised:
        next(responses)
    assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert responses.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    requests.half_close()


@case
def concurrent_large_unary(channel: grpc.Channel, tap: Tap) -> None:
    """In threads that block, as sync code does it."""
    stub = stub_of(channel)
    with ThreadPoolExecutor(16) as pool:
        for response in pool.map(lambda _: stub.UnaryCall(large_request()), range(CONCURRENT)):
            check_large(response)


@case
def concurrent_futures(channel: grpc.Channel, tap: Tap) -> None:
    """Not a published case by itself: the same with `future`, all started before the first result is asked for."""
    method = stub_of(channel).UnaryCall
    for call in [method.future(large_request()) for _ in range(CONCURRENT)]:
        check_large(call.result(timeout=LIMIT))


@case
def concurrent_streams(channel: grpc.Channel, tap: Tap) -> None:
    """ping_pong on many streams of one channel at a time."""
    barrier = threading.Barrier(8)

    def one(_: int) -> None:
        barrier.wait(LIMIT)
        ping_pong(channel, tap)

    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(one, range(8)):
            pass


@case
def rpc_soak(channel: grpc.Channel, tap: Tap) -> None:
    """large_unary over and over on one channel; the published case leaves the number to whoever runs it."""
    for _ in range(50):
        large_unary(channel, tap)
