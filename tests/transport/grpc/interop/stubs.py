"""The classes that protoc generates from service.proto, made when this is imported; nothing generated is kept."""

from __future__ import annotations

from typing import Any

import grpc

PROTO = "tests/transport/grpc/interop/service.proto"

pb: Any
services: Any
pb, services = grpc.protos_and_services(PROTO)


def payload(size: int) -> Any:
    """So many zero bytes."""
    return pb.Payload(body=bytes(size))
