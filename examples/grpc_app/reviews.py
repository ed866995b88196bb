"""The back end, `reviews`, on asyncio: answers with its version. `VERSION` is in the environment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from examples.grpc_app.stubs import messages, services
from meshlib.server.grpc import AsyncMeshInterceptor, aio_serve

VERSION = os.environ.get("VERSION", "v1")


class Reviews(services.ReviewsServicer):  # type: ignore[misc]
    async def GetRating(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.Rating(stars=5 if VERSION == "v2" else 0, version=VERSION)

    async def ListReviews(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        for text in ("could not put it down", "the ending is weak"):
            yield messages.Review(text=text, version=VERSION)


async def main() -> None:
    server = grpc.aio.server(interceptors=[AsyncMeshInterceptor()])
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    services.add_ReviewsServicer_to_server(Reviews(), server)
    print("listening on", server.add_insecure_port("127.0.0.1:0"), flush=True)
    await aio_serve(server, status, grace=5.0)


if __name__ == "__main__":
    asyncio.run(main())
