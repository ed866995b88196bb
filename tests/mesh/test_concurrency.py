"""One mesh, many threads and event loops."""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

import meshlib
from meshlib.httpx import AsyncMeshTransport, MeshTransport
from meshlib.testing import Reply, Upstream, service


def test_threads_share_a_client() -> None:
    with Upstream(default=Reply(body=b"1")) as one, Upstream(default=Reply(body=b"2")) as two:
        with (
            meshlib.Mesh(service("reviews", one.address, two.address)) as mesh,
            ThreadPoolExecutor(16) as pool,
        ):
            with httpx.Client(transport=MeshTransport(mesh)) as client:
                texts = Counter(pool.map(lambda _: client.get("http://reviews/").text, range(400)))
            assert mesh.engine.store.cluster("reviews").stats.upstream_rq_total.value == 400
    assert texts == {"1": 200, "2": 200}  # round robin is exact however many threads share it


def test_several_event_loops_share_a_transport() -> None:
    async def calls(client: httpx.AsyncClient, number: int) -> list[int]:
        responses = await asyncio.gather(*(client.get("http://reviews/") for _ in range(number)))
        return [response.status_code for response in responses]

    with Upstream() as upstream, meshlib.Mesh(service("reviews", upstream.address)) as mesh:
        transport = AsyncMeshTransport(mesh)

        def loop() -> list[int]:
            async def main() -> list[int]:
                client = httpx.AsyncClient(transport=transport)
                try:
                    return [*await calls(client, 20), *await calls(client, 20)]
                finally:
                    await client.aclose()

            return asyncio.run(main())

        with ThreadPoolExecutor(3) as pool:
            results = [pool.submit(loop) for _ in range(3)]
            assert [result.result() for result in results] == [[200] * 40] * 3
        assert loop() == [200] * 40
        assert len(upstream.requests) == 160


def test_sync_and_async_share_the_state() -> None:
    """Round-robin turns are the mesh's, not the transport's."""
    with Upstream(default=Reply(body=b"1")) as one, Upstream(default=Reply(body=b"2")) as two:
        with meshlib.Mesh(service("reviews", one.address, two.address)) as mesh:

            async def once() -> str:
                async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
                    return (await client.get("http://reviews/")).text

            with httpx.Client(transport=MeshTransport(mesh)) as client:
                turns = [(client.get("http://reviews/").text, asyncio.run(once())) for _ in range(4)]
    assert len(set(turns)) == 1
    assert set(turns[0]) == {"1", "2"}


def test_a_cancelled_call_gives_back_what_it_held() -> None:
    from meshlib.testing import Hang

    async def main(mesh: meshlib.Mesh, upstream: Upstream) -> None:
        async with httpx.AsyncClient(transport=AsyncMeshTransport(mesh)) as client:
            task = asyncio.create_task(client.get("http://reviews/"))
            await asyncio.to_thread(upstream.wait_for_requests, 1)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            assert (await client.get("http://reviews/")).status_code == 200

    with Upstream([Hang(), Reply()]) as upstream:
        config = service("reviews", upstream.address)
        config["resources"][2]["circuit_breakers"] = {"thresholds": [{"max_requests": 1}]}
        with meshlib.Mesh(config) as mesh:
            asyncio.run(main(mesh, upstream))
