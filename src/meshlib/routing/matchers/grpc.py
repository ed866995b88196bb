"""RouteMatch.grpc (config.route.v3): is the request gRPC?"""

from __future__ import annotations

from meshlib.routing.matchers.header import HasHeaders

__all__ = ["is_grpc"]


def is_grpc(message: HasHeaders) -> bool:
    """The content type is `application/grpc` or starts with `application/grpc+` (so not `application/grpc-web`)."""
    values = message.values("content-type")
    return bool(values) and (values[0] == "application/grpc" or values[0].startswith("application/grpc+"))
