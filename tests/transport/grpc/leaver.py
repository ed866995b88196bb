"""A process that ends while a channel, a stream, futures and subscribers are still there: `python -m ... ADDRESS MODE`."""

from __future__ import annotations

import sys
import threading

import grpc

import meshlib
from meshlib.grpc import channel
from tests.transport.grpc.support import config


def main(address: str, mode: str) -> None:
    mesh = meshlib.Mesh(config=[config(address, route={"timeout": "0s"})])
    chan = channel("echo:80", mesh=mesh)
    assert chan.unary_unary("/test.Echo/echo")(b"x") == b"x"
    stream = chan.unary_stream("/test.Echo/forever")(b"")
    next(stream)
    future = chan.unary_unary("/test.Echo/hang").future(b"")
    waiting = channel("nowhere:80", mesh=mesh).unary_unary("/a/b").future(b"", wait_for_ready=True)
    ready = grpc.channel_ready_future(chan)
    if mode == "reading":
        threading.Thread(target=list, args=(stream,), daemon=True).start()
    elif mode == "closed":
        chan.close()
        mesh.close()
        assert future.code() is grpc.StatusCode.CANCELLED
    print("over", bool(stream and waiting and ready))


if __name__ == "__main__":
    main(*sys.argv[1:])
