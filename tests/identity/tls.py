"""TLS between two ends without a socket: handshakes through memory, and what each end has sent."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field

__all__ = ["Ends", "join"]

ROUNDS = 10


@dataclass(slots=True)
class Ends:
    """Two ends after as much of a handshake as was possible. errors: by `client` and `server`."""

    client: ssl.SSLObject
    server: ssl.SSLObject
    to_server: ssl.MemoryBIO
    to_client: ssl.MemoryBIO
    errors: dict[str, ssl.SSLError] = field(default_factory=dict)

    @property
    def done(self) -> bool:
        return not self.errors

    def client_reads_nothing(self) -> None:
        """Take in what came after the handshake (tickets), and see that it is no data."""
        try:
            data = self.client.read(100)
        except ssl.SSLWantReadError:
            return
        raise AssertionError(data)

    def send_from_client(self, data: bytes) -> bytes:
        """Sends, moves, and gives back what the server has read."""
        self.client.write(data)
        self.move()
        return self.server.read(len(data) + 1)

    def move(self) -> None:
        self.to_server.write(self.client_out.read())
        self.to_client.write(self.server_out.read())

    client_out: ssl.MemoryBIO = field(default_factory=ssl.MemoryBIO)
    server_out: ssl.MemoryBIO = field(default_factory=ssl.MemoryBIO)


def join(
    client: ssl.SSLContext,
    server: ssl.SSLContext,
    server_hostname: str | None = None,
    session: ssl.SSLSession | None = None,
) -> Ends:
    """Shake hands until both are done, or one has failed and the other has heard of it."""
    to_server, to_client, client_out, server_out = (ssl.MemoryBIO() for _ in range(4))
    ends = Ends(
        client.wrap_bio(to_client, client_out, server_hostname=server_hostname, session=session),
        server.wrap_bio(to_server, server_out, server_side=True),
        to_server,
        to_client,
        client_out=client_out,
        server_out=server_out,
    )
    for _ in range(ROUNDS):
        for name, end in (("client", ends.client), ("server", ends.server)):
            if name not in ends.errors:
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError as error:
                    ends.errors[name] = error
        ends.move()
    return ends
