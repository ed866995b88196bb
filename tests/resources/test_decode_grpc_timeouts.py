"""RouteAction's deprecated gRPC timeouts."""

from __future__ import annotations

from meshlib.resources.route import RouteAction
from tests.resources.building import decode_one_route


def test_they_are_read() -> None:
    found = decode_one_route(
        route={"cluster": "c", "max_grpc_timeout": "1.5s", "grpc_timeout_offset": "0.25s"}
    ).action
    assert isinstance(found, RouteAction)
    assert (found.max_grpc_timeout, found.grpc_timeout_offset) == (1.5, 0.25)


def test_zero_is_a_value() -> None:
    found = decode_one_route(route={"cluster": "c", "max_grpc_timeout": "0s"}).action
    assert isinstance(found, RouteAction)
    assert (found.max_grpc_timeout, found.grpc_timeout_offset) == (0.0, None)
