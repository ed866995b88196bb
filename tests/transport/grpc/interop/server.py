"""The server of the interoperability tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from tests.transport.grpc.interop.stubs import payload, pb, services

__all__ = ["TestService", "serving"]

INITIAL = "x-grpc-test-echo-initial"
TRAILING = "x-grpc-test-echo-trailing-bin"


class TestService(services.TestServiceServicer):  # type: ignore[misc]
    """sent_compressed: whether the message that came last was compressed; grpcio tells a servicer nothing of it."""

    __test__ = False

    def __init__(self, sent_compressed: Callable[[], bool] = lambda: False) -> None:
        self._sent_compressed = sent_compressed

    def EmptyCall(self, request: Any, context: Any) -> Any:  # noqa: N802
        _echo_metadata(context)
        return pb.Empty()

    def UnaryCall(self, request: Any, context: Any) -> Any:  # noqa: N802
        _echo_metadata(context)
        _echo_status(request, context)
        self._check_compression(request, context)
        _compress(request.HasField("response_compressed") and request.response_compressed.value, context)
        return pb.SimpleResponse(payload=payload(request.response_size))

    def StreamingOutputCall(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        _echo_metadata(context)
        _echo_status(request, context)
        _compress(any(parameters.compressed.value for parameters in request.response_parameters), context)
        yield from _responses(request, context)

    def StreamingInputCall(self, requests: Iterable[Any], context: Any) -> Any:  # noqa: N802
        _echo_metadata(context)
        total = 0
        for request in requests:
            self._check_compression(request, context)
            total += len(request.payload.body)
        return pb.StreamingInputCallResponse(aggregated_payload_size=total)

    def FullDuplexCall(self, requests: Iterable[Any], context: Any) -> Iterator[Any]:  # noqa: N802
        _echo_metadata(context)
        for request in requests:
            _echo_status(request, context)
            yield from _responses(request, context)

    def _check_compression(self, request: Any, context: Any) -> None:
        if (
            request.HasField("expect_compressed")
            and request.expect_compressed.value != self._sent_compressed()
        ):
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is not as compressed as expected")


@contextlib.contextmanager
def serving(service: TestService) -> Iterator[int]:
    """The port of a server with this service."""
    with ThreadPoolExecutor(16) as executor:
        server = grpc.server(executor, options=(("grpc.so_reuseport", 0),))
        services.add_TestServiceServicer_to_server(service, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


def _responses(request: Any, context: Any) -> Iterator[Any]:
    for parameters in request.response_parameters:
        if not parameters.compressed.value:
            context.disable_next_message_compression()
        yield pb.StreamingOutputCallResponse(payload=payload(parameters.size))


def _compress(wanted: bool, context: Any) -> None:
    context.set_compression(grpc.Compression.Gzip if wanted else grpc.Compression.NoCompression)


def _echo_metadata(context: Any) -> None:
    given = dict(context.invocation_metadata())
    if INITIAL in given:
        context.send_initial_metadata(((INITIAL, given[INITIAL]),))
    if TRAILING in given:
        context.set_trailing_metadata(((TRAILING, given[TRAILING]),))


def _echo_status(request: Any, context: Any) -> None:
    if request.HasField("response_status"):
        code = next(status for status in grpc.StatusCode if status.value[0] == request.response_status.code)
        context.abort(code, request.response_status.message)
