"""What `tests.transport.grpc.processes.client` does, with channels that use the relay: `python -m ... MODE ADDRESS`."""

from __future__ import annotations

import sys
from functools import partial

import meshlib.grpc
from tests.transport.grpc.processes import client

if __name__ == "__main__":
    meshlib.grpc.channel = partial(meshlib.grpc.channel, tls="relay")
    meshlib.grpc.aio_channel = partial(meshlib.grpc.aio_channel, tls="relay")
    client.main(*sys.argv[1:])
