"""The only place that knows how calls leave the process: through meshlib, or through grpcio's own `xds:` for comparison."""

from __future__ import annotations

import os
from typing import Any

import grpc

CCORE = "GRPC_APP_CCORE"
"""In the environment: use grpcio's own xDS client."""


def channel(target: str) -> Any:
    if os.environ.get(CCORE):
        return grpc.insecure_channel(f"xds:///{target}")
    import meshlib.grpc

    return meshlib.grpc.channel(target)


def aio_channel(target: str) -> Any:
    if os.environ.get(CCORE):
        return grpc.aio.insecure_channel(f"xds:///{target}")
    import meshlib.grpc

    return meshlib.grpc.aio_channel(target)
