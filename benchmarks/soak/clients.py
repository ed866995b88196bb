"""The four clients in one process, on one Mesh: `python -m benchmarks.soak.clients`.

Each has the same number of callers, which call without a pause; the last one of each makes calls that take long, so that there is
always something under way when a rotation comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

import meshlib
import meshlib.grpc
from benchmarks.soak.record import Record, summary
from benchmarks.soak.rotations import Rotations
from benchmarks.soak.verdict import SERVERS, Question
from benchmarks.worker import serve
from meshlib import testing
from meshlib.httpx import AsyncMeshTransport, MeshTransport

NAMES = ("httpx sync", "httpx async", "grpc sync", "grpc asyncio")

_TLS = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_ADS = {"ads": {}, "resource_api_version": "V3"}
_PATIENCE = 60.0
"""Seconds that a call may take beside its own length, however busy the machine is."""

Ask = Callable[[Question], bytes]
"""One call. Returns the whole answer."""
AsyncAsk = Callable[[Question], Awaitable[bytes]]


def configuration(ports: dict[str, int]) -> list[dict[str, Any]]:
    """As one would write it for an Envoy beside a SPIRE agent. ports: by service."""
    documents = []
    for name, port in ports.items():
        document = testing.service(name, f"127.0.0.1:{port}")
        _, routes, cluster, _ = document["resources"]
        routes["virtual_hosts"][0]["routes"][0]["route"]["timeout"] = "0s"
        cluster["connect_timeout"] = f"{_PATIENCE}s"
        matches = [{"san_type": "URI", "matcher": {"exact": SERVERS[name]}}]
        common = {
            "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": _ADS}],
            "combined_validation_context": {
                "default_validation_context": {"match_typed_subject_alt_names": matches},
                "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": _ADS},
            },
        }
        cluster["transport_socket"] = {
            "name": "tls",
            "typed_config": {"@type": f"{_TLS}.UpstreamTlsContext", "common_tls_context": common},
        }
        documents.append(document)
    return documents


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """callers: of each client. long: seconds of a long call. pause: seconds between two calls of a caller."""

    callers: int
    long: float
    pause: float


class Clients:
    """Call until `stop`."""

    def __init__(self, mesh: meshlib.Mesh, rotations: Rotations, load: Load) -> None:
        self._mesh = mesh
        self._load = load
        self._over = threading.Event()
        self.records = {name: [Record(rotations=rotations) for _ in range(load.callers)] for name in NAMES}
        # One thread for each blocking caller, one for the loop of each asyncio client.
        self._threads = [threading.Thread(target=run) for run in self._runs()]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Waits for what is under way."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _length(self, number: int) -> float:
        return self._load.long if number == self._load.callers - 1 else 0.0

    def _runs(self) -> Iterator[Callable[[], None]]:
        for name, blocking in (("httpx sync", self._httpx), ("grpc sync", self._grpc)):
            yield partial(self._blocking, name, blocking)
        for name, client in (("httpx async", self._httpx_async), ("grpc asyncio", self._grpc_asyncio)):
            yield partial(self._loop, name, client)

    def _loop(
        self, name: str, client: Callable[[], contextlib.AbstractAsyncContextManager[AsyncAsk]]
    ) -> None:
        asyncio.run(self._asyncio(name, client))

    def _blocking(self, name: str, client: Callable[[], contextlib.AbstractContextManager[Ask]]) -> None:
        with client() as ask:

            def call_again(record: Record, seconds: float) -> None:
                while not self._over.is_set():
                    call = record.begin(seconds)
                    try:
                        record.end(call, ask(call.question))
                    except Exception as error:
                        record.fail(call, error)
                        time.sleep(0.1)
                    if self._load.pause:
                        self._over.wait(self._load.pause)

            threads = [
                threading.Thread(target=call_again, args=(record, self._length(number)))
                for number, record in enumerate(self.records[name])
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    async def _asyncio(
        self, name: str, client: Callable[[], contextlib.AbstractAsyncContextManager[AsyncAsk]]
    ) -> None:
        async with client() as ask:

            async def call_again(record: Record, seconds: float) -> None:
                while not self._over.is_set():
                    call = record.begin(seconds)
                    try:
                        record.end(call, await ask(call.question))
                    except Exception as error:
                        record.fail(call, error)
                        await asyncio.sleep(0.1)
                    await asyncio.sleep(self._load.pause)

            await asyncio.gather(
                *(
                    call_again(record, self._length(number))
                    for number, record in enumerate(self.records[name])
                )
            )

    @contextlib.contextmanager
    def _httpx(self) -> Iterator[Ask]:
        with httpx.Client(transport=MeshTransport(self._mesh), timeout=_PATIENCE) as client:

            def ask(question: Question) -> bytes:
                return client.get(_url(question)).raise_for_status().content

            yield ask

    @contextlib.asynccontextmanager
    async def _httpx_async(self) -> Any:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(self._mesh), timeout=_PATIENCE) as client:

            async def ask(question: Question) -> bytes:
                return (await client.get(_url(question))).raise_for_status().content

            yield ask

    @contextlib.contextmanager
    def _grpc(self) -> Iterator[Ask]:
        with meshlib.grpc.channel("rpc:80", mesh=self._mesh) as channel:
            short, long = channel.unary_unary("/soak.Soak/Ask"), channel.unary_stream("/soak.Soak/Tell")

            def ask(question: Question) -> bytes:
                request, timeout = question.encode().encode(), _PATIENCE + question.seconds
                if not question.seconds:
                    answer: bytes = short(request, timeout=timeout)
                    return answer
                return b"".join(long(request, timeout=timeout))

            yield ask

    @contextlib.asynccontextmanager
    async def _grpc_asyncio(self) -> Any:
        async with meshlib.grpc.aio_channel("rpc:80", mesh=self._mesh) as channel:
            short, long = channel.unary_unary("/soak.Soak/Ask"), channel.unary_stream("/soak.Soak/Tell")

            async def ask(question: Question) -> bytes:
                request, timeout = question.encode().encode(), _PATIENCE + question.seconds
                if not question.seconds:
                    answer: bytes = await short(request, timeout=timeout)
                    return answer
                return b"".join([piece async for piece in long(request, timeout=timeout)])

            yield ask


def _url(question: Question) -> str:
    return f"http://web/{question.encode()}"


def main() -> None:
    """Commands: start, status, stop."""
    with contextlib.ExitStack() as stack:
        rotations: Rotations | None = None
        clients: Clients | None = None
        begun = 0.0

        def handle(command: dict[str, Any]) -> dict[str, Any]:
            nonlocal rotations, clients, begun
            if "start" in command:
                how = command["start"]
                mesh = stack.enter_context(
                    meshlib.Mesh(config=configuration(how["ports"]), identity=f"unix://{how['socket']}")
                )
                mesh.wait_ready(timeout=_PATIENCE)
                security = mesh.engine.program.clusters["web"].cluster.tls
                assert security is not None
                # The same object as the clusters', whose TLS it is.
                client = mesh.identity.client(security)
                rotations = Rotations(mesh.identity, lambda: client.epoch, how["settle"])
                clients = Clients(mesh, rotations, Load(**how["load"]))
                begun = time.monotonic()
            assert rotations is not None
            assert clients is not None
            if "stop" in command:
                clients.stop()
                return {"clients": {name: summary(each, begun) for name, each in clients.records.items()}}
            calls = {name: sum(len(record.took) for record in each) for name, each in clients.records.items()}
            return rotations.status() | {"calls": calls}

        try:
            serve(handle)
        finally:
            if clients is not None:
                clients.stop()


if __name__ == "__main__":
    main()
