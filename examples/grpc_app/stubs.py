"""What protoc generates from library.proto. grpcio-tools makes it when this module is imported, so no generated file has to
fit your version of protobuf; a project that ships its generated files imports those instead."""

from __future__ import annotations

from typing import Any

import grpc

messages: Any
services: Any
messages, services = grpc.protos_and_services("examples/grpc_app/library.proto")
