"""A tunnel, with the test in C-core's place."""

from __future__ import annotations

import socket
import struct
import threading

from meshlib.identity.store import IdentityStore
from meshlib.policy.failure import FailureKind
from meshlib.resources.tls import CommonTls, UpstreamTls
from meshlib.state import ClusterState
from meshlib.stats import Registry
from meshlib.transport.grpc.tunnel import Tunnel, TunnelFailure
from meshlib.transport.grpc.tunnel_loop import opening_loop
from tests.identity.configs import roots
from tests.transport.grpc.secure.world import World

LIMIT = 10
RESET = struct.pack("ii", 1, 0)


def test_a_reset_after_the_handshake_ends_a_connection_that_was_open(world: World) -> None:
    """A server of TLS 1.3 refuses a certificate after that. C-core may not have come to the door yet."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        verified, over = threading.Event(), threading.Event()

        def serve() -> None:
            plain = listener.accept()[0]
            plain.settimeout(LIMIT)
            secure = world.context(require=False).wrap_socket(plain, server_side=True)
            assert verified.wait(LIMIT)
            secure.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            secure.close()
            over.set()

        thread = threading.Thread(target=serve)
        thread.start()
        endpoint = ClusterState("c", Registry()).endpoint("e", "127.0.0.1", listener.getsockname()[1])
        security = IdentityStore().client(UpstreamTls(common=CommonTls(validation=roots(world.ca))))
        counted: list[str] = []
        tunnel = Tunnel(endpoint, security, "c", counted.append)
        tunnel.begin(LIMIT)
        pause = threading.Event()
        while not tunnel._verified:
            pause.wait(0.001)
        verified.set()
        assert over.wait(LIMIT)
        thread.join()
        seen = threading.Event()
        opening_loop().submit(lambda: opening_loop().submit(seen.set))  # the loop has looked at what has come
        assert seen.wait(LIMIT)
        before: TunnelFailure | None = tunnel.failure
        assert before is None, "it is no failure to connect"
        with socket.socket(socket.AF_UNIX) as local:
            local.settimeout(LIMIT)
            local.connect("\0" + tunnel.target.removeprefix("unix-abstract:"))
            assert local.recv(1) == b""
        ended: TunnelFailure | None = tunnel.failure
        assert ended is not None
        assert ended.kind is FailureKind.TERMINATED
        assert "handshake" in counted
