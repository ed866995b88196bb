"""Small things for tests of gRPC calls."""

from __future__ import annotations

from meshlib.routing.request import RequestView
from tests.engine.wire import FakeCall, request

__all__ = ["rpc", "status"]


def rpc(*metadata: tuple[str, str]) -> RequestView:
    return request("/s.S/M", "POST", [("content-type", "application/grpc"), ("te", "trailers"), *metadata])


def status(call: FakeCall) -> tuple[str | None, str | None]:
    """grpc-status and grpc-message of the local reply."""
    assert call.error is not None
    assert call.error.local_reply is not None
    headers = dict(call.error.local_reply.headers)
    return headers.get("grpc-status"), headers.get("grpc-message")
