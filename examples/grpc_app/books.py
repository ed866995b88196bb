"""The front end, `books`: an ordinary blocking gRPC server whose calls to `reviews` go through the mesh.

Nothing here knows about clusters, weights or retries. The control plane is named by GRPC_XDS_BOOTSTRAP_CONFIG.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2_grpc

from examples.grpc_app.channels import channel
from examples.grpc_app.stubs import messages, services
from meshlib.server.grpc import MeshInterceptor, serve

CANARY = "x-canary"


class Books(services.BooksServicer):  # type: ignore[misc]
    def __init__(self, reviews: Any) -> None:
        self._reviews = services.ReviewsStub(reviews)

    def GetBook(self, request: Any, context: Any) -> Any:  # noqa: N802
        """The caller's deadline ends the calls below too: MeshInterceptor has seen to it."""
        canary = [item for item in context.invocation_metadata() if item[0] == CANARY]
        rating = self._reviews.GetRating(request, metadata=canary)
        reviews = self._reviews.ListReviews(request, metadata=canary)
        return messages.Book(book=request.book, rating=rating, reviews=reviews)


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(16), interceptors=[MeshInterceptor()])
    status = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    with channel("reviews:9080") as reviews:  # connects to nothing before its first call
        services.add_BooksServicer_to_server(Books(reviews), server)
        print("listening on", server.add_insecure_port("127.0.0.1:0"), flush=True)
        serve(server, status, grace=5.0)


if __name__ == "__main__":
    main()
