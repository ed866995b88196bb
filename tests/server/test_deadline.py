"""The inbound deadline becomes that of what a handler calls."""

from __future__ import annotations

from types import SimpleNamespace

import grpc
import pytest

import meshlib
from meshlib.engine.context import INBOUND
from meshlib.engine.options import deadline_of
from meshlib.runtime.clock import FakeClock
from tests.server.servers import ARITIES, SERVERS, call

ARRIVAL = 5_000.0


@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize("kind", SERVERS)
def test_every_step_of_a_handler_has_the_deadline_of_its_call_only(kind: str, arity: str) -> None:
    serve, handlers = SERVERS[kind]
    seen: list[float | None] = []

    def look() -> None:
        seen.append(deadline_of(None, FakeClock().monotonic))

    def seen_with(channel: grpc.Channel, timeout: float | None) -> set[float | None]:
        seen.clear()
        call(channel, arity, timeout)
        assert len(seen) == (3 if arity.endswith("stream") else 1)
        return set(seen)

    with serve(handlers(look), FakeClock(ARRIVAL)) as address, grpc.insecure_channel(address) as channel:
        (long,) = seen_with(channel, 100.0)
        (short,) = seen_with(channel, 20.0)
        assert seen_with(channel, None) == {None}
    assert long is not None
    assert short is not None
    assert ARRIVAL + 20 < long <= ARRIVAL + 101  # grpc-timeout has few digits
    assert ARRIVAL < short <= ARRIVAL + 21


@pytest.mark.parametrize("kind", SERVERS)
def test_a_handler_shortens_the_deadline_and_cannot_lengthen_it(kind: str) -> None:
    serve, handlers = SERVERS[kind]
    seen: list[float] = []

    def look() -> None:
        for moment in (ARRIVAL + 1, ARRIVAL + 1_000):
            with meshlib.call(deadline=moment) as options:
                assert options.deadline == moment
                seen.append(deadline_of(None, FakeClock().monotonic) or 0.0)

    with serve(handlers(look), FakeClock(ARRIVAL)) as address, grpc.insecure_channel(address) as channel:
        call(channel, "unary_unary", 20.0)
    assert seen[0] == ARRIVAL + 1
    assert ARRIVAL + 1 < seen[1] <= ARRIVAL + 21


@pytest.mark.parametrize("kind", SERVERS)
def test_a_method_that_does_not_exist_is_unimplemented(kind: str) -> None:
    serve, handlers = SERVERS[kind]
    with serve(handlers(lambda: None), FakeClock()) as address, grpc.insecure_channel(address) as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/tests.Server/nothing")(b"")
    assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_the_responses_of_an_abandoned_stream_are_closed_in_their_context() -> None:
    from meshlib.server.grpc import MeshInterceptor

    closed: list[float | None] = []

    def stream(request: bytes, context: object) -> object:
        try:
            yield b"1"
            yield b"2"
        finally:
            closed.append(deadline_of(None, FakeClock().monotonic))

    class Context:
        def time_remaining(self) -> float:
            return 7.0

        def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
            return (("x-request-id", "a"),)

    handler = MeshInterceptor(clock=FakeClock(ARRIVAL)).intercept_service(
        lambda _: grpc.unary_stream_rpc_method_handler(stream), SimpleNamespace(method="/tests.Server/Any")
    )
    responses = handler.unary_stream(b"", Context())
    assert next(responses) == b"1"
    assert INBOUND.get() is None
    responses.close()
    assert closed == [ARRIVAL + 7.0]
