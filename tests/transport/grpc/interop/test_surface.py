"""A mesh channel can stand wherever grpcio's own stands: each public name of grpcio's channel, multicallables, calls and errors
is there, and takes the same arguments."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest

import meshlib
import meshlib.grpc
from tests.transport.grpc.interop.conftest import HOST
from tests.transport.grpc.interop.stubs import pb, services
from tests.transport.grpc.interop.tap import Tap

OWN = frozenset(("with_traceback", "add_note", "args"))
"""Of every exception."""

BY_ACCIDENT = {
    kind: frozenset(("next",))
    for kind in ("unary_unary call", "unary_unary future", "stream_unary call", "stream_unary future")
}
"""grpcio has one class for all of its blocking calls, so calls with a single response have `next` too."""


def public(given: object) -> set[str]:
    return {name for name in dir(given) if not name.startswith("_")} - OWN


def all_differences(theirs: dict[str, object], ours: dict[str, object]) -> list[str]:
    assert theirs.keys() == ours.keys()
    return [
        f"{kind}: {found}"
        for kind in theirs
        for found in differences(theirs[kind], ours[kind], BY_ACCIDENT.get(kind, frozenset()))
    ]


def differences(theirs: object, ours: object, without: frozenset[str] = frozenset()) -> Iterator[str]:
    """What of `theirs` is not found, or would not be understood, at `ours`."""
    names = public(theirs) | ({"__call__"} if callable(theirs) else set())
    for name in sorted(names - without):
        if not hasattr(ours, name):
            yield f"{name} is missing"
            continue
        try:
            expected = inspect.signature(getattr(theirs, name))
        except (TypeError, ValueError):  # no function, or one without a signature
            continue
        found = inspect.signature(getattr(ours, name))
        yield from (f"{name}{found}: {problem}" for problem in _refused(expected, found))


def _refused(expected: inspect.Signature, found: inspect.Signature) -> Iterator[str]:
    parameters = [
        each
        for each in expected.parameters.values()
        if each.kind not in {each.VAR_POSITIONAL, each.VAR_KEYWORD}
    ]
    required = [
        each for each in parameters if each.default is each.empty and each.kind is not each.KEYWORD_ONLY
    ]
    positional = [each for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD]
    ways = {
        "all by position": ([None] * len(positional), {}),
        "only what is required": ([None] * len(required), {}),
        "all by name": ([], {each.name: None for each in parameters}),
    }
    for way, (arguments, keywords) in ways.items():
        try:
            found.bind(*arguments, **keywords)
        except TypeError as error:
            yield f"{way}: {error}"


def test_the_comparison_finds_what_differs() -> None:
    class Theirs:
        def call(self, request: object, timeout: object = None) -> None: ...

    class Renamed:
        def call(self, request: object, deadline: object = None) -> None: ...

    class Demanding:
        def call(self, request: object, timeout: object) -> None: ...

    class Wider:
        def call(self, request: object, timeout: object = None, **more: object) -> None: ...

    assert list(differences(Theirs(), object())) == ["call is missing"]
    assert list(differences(Theirs(), Renamed())) != []
    assert list(differences(Theirs(), Demanding())) != []
    assert list(differences(Theirs(), Wider())) == []


def objects(channel: grpc.Channel) -> dict[str, object]:
    """One of each kind that a blocking channel gives; every call has ended."""
    stub = services.TestServiceStub(channel)
    request, answer = pb.SimpleRequest(), pb.StreamingOutputCallRequest()
    found: dict[str, object] = {
        "channel": channel,
        "unary_unary": stub.UnaryCall,
        "unary_stream": stub.StreamingOutputCall,
        "stream_unary": stub.StreamingInputCall,
        "stream_stream": stub.FullDuplexCall,
        "unary_unary call": stub.UnaryCall.with_call(request)[1],
        "unary_unary future": stub.UnaryCall.future(request),
        "unary_stream call": stub.StreamingOutputCall(answer),
        "stream_unary call": stub.StreamingInputCall.with_call(iter(()))[1],
        "stream_unary future": stub.StreamingInputCall.future(iter(())),
        "stream_stream call": stub.FullDuplexCall(iter(())),
    }
    with pytest.raises(grpc.RpcError) as raised:
        stub.UnimplementedCall(pb.Empty())
    found["error"] = raised.value
    for name in ("unary_unary future", "stream_unary future"):
        found[name].result()  # type: ignore[attr-defined]
    for name in ("unary_stream call", "stream_stream call"):
        assert list(found[name]) == []  # type: ignore[call-overload]
    return found


def test_blocking(tap: Tap, mesh: meshlib.Mesh) -> None:
    with (
        grpc.insecure_channel(f"ipv4:{tap.address}") as plain,
        meshlib.grpc.channel(HOST, mesh=mesh) as meshed,
    ):
        theirs, ours = objects(plain), objects(meshed)
    assert all_differences(theirs, ours) == []


async def aio_objects(channel: grpc.aio.Channel) -> dict[str, object]:
    async def nothing() -> AsyncIterator[Any]:
        return
        yield

    stub = services.TestServiceStub(channel)
    found: dict[str, Any] = {
        "channel": channel,
        "unary_unary": stub.UnaryCall,
        "unary_stream": stub.StreamingOutputCall,
        "stream_unary": stub.StreamingInputCall,
        "stream_stream": stub.FullDuplexCall,
        "unary_unary call": stub.UnaryCall(pb.SimpleRequest()),
        "unary_stream call": stub.StreamingOutputCall(pb.StreamingOutputCallRequest()),
        "stream_unary call": stub.StreamingInputCall(nothing()),
        "stream_stream call": stub.FullDuplexCall(nothing()),
    }
    with pytest.raises(grpc.RpcError) as raised:
        await stub.UnimplementedCall(pb.Empty())
    found["error"] = raised.value
    for name in ("unary_unary call", "stream_unary call"):
        await found[name]
    for name in ("unary_stream call", "stream_stream call"):
        assert [response async for response in found[name]] == []
    return found


def test_asyncio(tap: Tap, mesh: meshlib.Mesh) -> None:
    async def run() -> tuple[dict[str, object], dict[str, object]]:
        async with (
            grpc.aio.insecure_channel(f"ipv4:{tap.address}") as plain,
            meshlib.grpc.aio_channel(HOST, mesh=mesh) as meshed,
        ):
            return await aio_objects(plain), await aio_objects(meshed)

    theirs, ours = asyncio.run(run())
    assert all_differences(theirs, ours) == []


FACTORIES: dict[str, tuple[Callable[..., Any], Callable[[], Callable[..., Any]]]] = {
    "channel": (grpc.insecure_channel, lambda: meshlib.grpc.channel),
    "aio_channel": (grpc.aio.insecure_channel, lambda: meshlib.grpc.aio_channel),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_the_factories_take_what_grpcio_takes_by_name(name: str) -> None:
    theirs, ours = FACTORIES[name]
    keywords = dict.fromkeys(list(inspect.signature(theirs).parameters)[1:])
    inspect.signature(ours()).bind("reviews:9080", **keywords)
