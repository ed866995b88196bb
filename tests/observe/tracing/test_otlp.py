"""Traces of real calls, through OpenTelemetry's own exporters, at an OTLP receiver: one connected tree, whoever carries it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

import meshlib
from meshlib.grpc import aio_channel
from meshlib.grpc import channel as mesh_channel
from meshlib.httpx import AsyncMeshTransport, MeshTransport
from meshlib.testing import Hang, Reply, Upstream, service
from tests.observe.tracing.receiver import Receiver, grpc_receiver, http_receiver

WAITS = {"base_interval": "0.001s", "max_interval": "0.001s"}


def config(*addresses: str, http2: bool = False) -> dict[str, Any]:
    made = service("reviews", *addresses)
    policy = {"retry_on": "5xx,unavailable", "num_retries": 2, "retry_back_off": WAITS}
    made["resources"][1]["virtual_hosts"][0]["retry_policy"] = policy
    if http2:
        made["resources"][2]["http2_protocol_options"] = {}
    return made


@pytest.fixture(params=["http", "grpc"])
def receiver(request: pytest.FixtureRequest) -> Iterator[Receiver]:
    with http_receiver() if request.param == "http" else grpc_receiver() as receiver:
        yield receiver


@pytest.fixture
def provider(receiver: Receiver) -> Iterator[TracerProvider]:
    exporter = (
        HttpExporter(endpoint=receiver.endpoint)
        if receiver.endpoint.startswith("http")
        else GrpcExporter(endpoint=receiver.endpoint, insecure=True)
    )
    provider = TracerProvider(resource=Resource({"service.name": "front"}), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    yield provider
    provider.shutdown()


def inside(provider: TracerProvider) -> Any:
    return provider.get_tracer("application").start_as_current_span("checkout")


TREE = """
front: checkout INTERNAL
  front: GET INTERNAL
    front: GET CLIENT
    front: GET CLIENT
""".strip()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_httpx_with_a_retry(receiver: Receiver, provider: TracerProvider, asynchronous: bool) -> None:
    async def fetch(mesh: meshlib.Mesh) -> httpx.Response:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
            return await client.get("http://reviews/x?a=1")

    with Upstream([Reply(status=503), Reply(body=b"hello")]) as upstream:
        with meshlib.Mesh(config(upstream.address), observe=meshlib.Observe(tracing=provider)) as mesh:
            with inside(provider):
                if asynchronous:
                    response = asyncio.run(fetch(mesh))
                else:
                    with httpx.Client(transport=MeshTransport(mesh)) as client:
                        response = client.get("http://reviews/x?a=1")
        requests = upstream.requests
    assert response.text == "hello"
    provider.force_flush()
    assert receiver.tree() == TREE
    _, whole, first, second = receiver.ordered()
    assert first.attributes["http.response.status_code"] == 503
    assert (first.status, second.status, whole.status) == (2, 0, 0)
    assert second.attributes["http.request.resend_count"] == 1
    assert second.attributes["server.address"] == "reviews"
    assert (
        f"{second.attributes['network.peer.address']}:{second.attributes['network.peer.port']}"
        == upstream.address
    )
    assert whole.attributes["response_size"] == "5"
    assert whole.attributes["meshlib.attempts"] == 2
    for request, span in zip(requests, (first, second)):
        sent = [value for name, value in request.headers if name == "traceparent"]
        assert [value[3:52] for value in sent] == [f"{span.trace_id}-{span.span_id}"]
    assert "traceparent" not in response.request.headers, "the application's request stays as it is"


@pytest.mark.parametrize("body", [b"bytes", None], ids=["bytes", "streamed"])
def test_a_body_and_a_stream(provider: TracerProvider, receiver: Receiver, body: bytes | None) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"ab"
        yield b"cde"

    with Upstream([Reply(body=b"x" * 70_000)]) as upstream:
        with (
            meshlib.Mesh(config(upstream.address), observe=meshlib.Observe(tracing=provider)) as mesh,
            httpx.Client(transport=MeshTransport(mesh)) as client,
            client.stream("POST", "http://reviews/", content=body or pieces()) as response,
        ):
            assert sum(map(len, response.iter_bytes())) == 70_000
        (request,) = upstream.requests
    assert request.header("traceparent") is not None
    provider.force_flush()
    (whole,) = [span for span in receiver.spans if span.kind == "INTERNAL"]
    assert (whole.attributes["request_size"], whole.attributes["response_size"]) == ("5", "70000")


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers with what it was sent; the first call is UNAVAILABLE."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    def service(self, details: Any) -> Any:
        self.seen.append(dict(details.invocation_metadata))
        if len(self.seen) == 1:
            return grpc.unary_unary_rpc_method_handler(self.refuse)
        if details.method.endswith("Stream"):
            return grpc.stream_stream_rpc_method_handler(lambda requests, _: iter(list(requests)))
        return grpc.unary_unary_rpc_method_handler(lambda request, _: request)

    def refuse(self, _request: bytes, context: Any) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")


@pytest.fixture
def echo() -> Iterator[tuple[Echo, str]]:
    from concurrent import futures

    handler = Echo()
    with futures.ThreadPoolExecutor(2) as workers:
        server = grpc.server(workers)
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield handler, f"127.0.0.1:{port}"
        finally:
            server.stop(None).wait()


@pytest.mark.parametrize("how", ["blocking", "future", "stream", "aio", "aio-stream"])
def test_grpc_with_a_retry(
    receiver: Receiver, provider: TracerProvider, echo: tuple[Echo, str], how: str
) -> None:
    handler, address = echo
    method = "/s.Echo/Stream" if how.endswith("stream") else "/s.Echo/Unary"

    async def calling(mesh: meshlib.Mesh) -> list[bytes]:
        async with aio_channel("reviews:80", mesh=mesh) as channel:
            if how == "aio":
                return [await channel.unary_unary(method)(b"hello")]
            return [message async for message in channel.stream_stream(method)(iter([b"hello"]))]

    with meshlib.Mesh(config(address, http2=True), observe=meshlib.Observe(tracing=provider)) as mesh:
        with inside(provider):
            if how.startswith("aio"):
                messages = asyncio.run(calling(mesh))
            else:
                with mesh_channel("reviews:80", mesh=mesh) as channel:
                    if how == "stream":
                        messages = list(channel.stream_stream(method)(iter([b"hello"])))
                    elif how == "future":
                        messages = [channel.unary_unary(method).future(b"hello").result()]
                    else:
                        messages = [channel.unary_unary(method)(b"hello")]
    assert messages == [b"hello"]
    provider.force_flush()
    name = method[1:]
    assert receiver.tree() == TREE.replace("GET", name)
    _, whole, first, second = receiver.ordered()
    assert whole.attributes["rpc.response.status_code"] == "OK"
    assert second.attributes["rpc.response.status_code"] == "OK"
    assert second.attributes["previous-rpc-attempts"] == 1
    assert (first.status, second.status, whole.status) == (2, 0, 0)
    sent = [metadata["traceparent"] for metadata in handler.seen]
    assert [value[3:52] for value in sent] == [f"{span.trace_id}-{span.span_id}" for span in (first, second)]


def test_the_current_span_of_the_application_is_left_alone(
    provider: TracerProvider, receiver: Receiver
) -> None:
    with Upstream() as upstream:
        with (
            meshlib.Mesh(config(upstream.address), observe=meshlib.Observe(tracing=provider)) as mesh,
            httpx.Client(transport=MeshTransport(mesh)) as client,
            inside(provider) as span,
        ):
            client.get("http://reviews/")
            assert trace.get_current_span() is span


def test_tracing_can_be_off(provider: TracerProvider, receiver: Receiver) -> None:
    with Upstream() as upstream:
        with (
            meshlib.Mesh(config(upstream.address), observe=meshlib.Observe(tracing=False)) as mesh,
            httpx.Client(transport=MeshTransport(mesh)) as client,
            inside(provider),
        ):
            client.get("http://reviews/")
        (request,) = upstream.requests
    assert request.header("traceparent") is None


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_host_that_httpx_reaches_without_the_mesh(
    provider: TracerProvider, receiver: Receiver, asynchronous: bool
) -> None:
    async def fetch(mesh: meshlib.Mesh, url: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
            return await client.post(url, content=b"body")

    two = [config("127.0.0.1:9"), service("other", "127.0.0.1:9")]
    with Upstream() as upstream, inside(provider) as span:
        observe = meshlib.Observe(tracing=provider)
        with meshlib.Mesh(two, unknown_hosts="passthrough", observe=observe) as mesh:
            url = f"http://{upstream.address}/"
            if asynchronous:
                response = asyncio.run(fetch(mesh, url))
            else:
                with httpx.Client(transport=MeshTransport(mesh)) as client:
                    response = client.post(url, content=b"body")
        (request,) = upstream.requests
    context = span.get_span_context()
    sent = [value for name, value in request.headers if name == "traceparent"]
    assert [value[3:52] for value in sent] == [f"{context.trace_id:032x}-{context.span_id:016x}"]
    assert request.body == b"body"
    assert "traceparent" not in response.request.headers
    provider.force_flush()
    assert [each.name for each in receiver.spans] == ["checkout"]


@pytest.mark.parametrize("how", ["blocking", "with_call", "future", "aio"])
def test_a_target_that_grpc_reaches_without_the_mesh(
    provider: TracerProvider, receiver: Receiver, echo: tuple[Echo, str], how: str
) -> None:
    handler, address = echo
    handler.seen.append({})  # so that it does not refuse

    async def calling(mesh: meshlib.Mesh) -> None:
        async with aio_channel(address, mesh=mesh) as channel:
            await channel.unary_unary("/s.Echo/Unary")(b"hello", metadata=(("own", "x"),))

    two = [config("127.0.0.1:9", http2=True), service("other", "127.0.0.1:9")]
    observe = meshlib.Observe(tracing=provider)
    with inside(provider) as span, meshlib.Mesh(two, unknown_hosts="passthrough", observe=observe) as mesh:
        if how == "aio":
            asyncio.run(calling(mesh))
        else:
            with mesh_channel(address, mesh=mesh) as channel:
                method = channel.unary_unary("/s.Echo/Unary")
                if how == "future":
                    method.future(b"hello", metadata=(("own", "x"),)).result()
                elif how == "with_call":
                    method.with_call(b"hello", metadata=(("own", "x"),))
                else:
                    method(b"hello", metadata=(("own", "x"),))
    context = span.get_span_context()
    assert handler.seen[-1]["own"] == "x"
    assert handler.seen[-1]["traceparent"][3:52] == f"{context.trace_id:032x}-{context.span_id:016x}"


@pytest.mark.parametrize("how", ["httpx", "httpx-async", "cancelled"])
def test_who_gives_up(provider: TracerProvider, receiver: Receiver, how: str) -> None:
    """httpx's own timeout is an error of the call; a call that is cancelled is none."""

    async def fetch(mesh: meshlib.Mesh) -> None:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh), timeout=0.05) as client:
            await client.get("http://reviews/")

    async def cancel(mesh: meshlib.Mesh) -> None:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
            task = asyncio.create_task(client.get("http://reviews/"))
            while not upstream.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])

    with Upstream(default=Hang()) as upstream:
        observe = meshlib.Observe(tracing=provider)
        with meshlib.Mesh(config(upstream.address), observe=observe) as mesh:
            if how == "httpx":
                with httpx.Client(transport=MeshTransport(mesh), timeout=0.05) as client:
                    with pytest.raises(httpx.ReadTimeout):
                        client.get("http://reviews/")
            elif how == "httpx-async":
                with pytest.raises(httpx.ReadTimeout):
                    asyncio.run(fetch(mesh))
            else:
                asyncio.run(cancel(mesh))
    provider.force_flush()
    (whole,) = [span for span in receiver.spans if span.kind == "INTERNAL"]
    expected = "read_timeout" if how.startswith("httpx") else None
    assert whole.attributes.get("error.type") == expected
    assert whole.status == (2 if expected else 0)
    assert whole.attributes["response_flags"] == "DC"
