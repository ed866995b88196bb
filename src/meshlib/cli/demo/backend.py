"""One version of the demo's service: answers every request with its name. `python -m meshlib.cli.demo.backend v1 0`.

`POST /-/fail` makes it answer 500 from then on, `POST /-/heal` ends that. The port is printed on the first line.
"""

from __future__ import annotations

import asyncio
import sys

__all__ = ["main"]


class Backend:
    """The server of one version."""

    def __init__(self, version: str) -> None:
        self._version = version
        self._failing = False

    async def serve(self, port: int) -> None:
        server = await asyncio.start_server(self._connection, "127.0.0.1", port)
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await server.serve_forever()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                writer.write(self._answer(head))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _answer(self, head: bytes) -> bytes:
        path = head.split(b" ", 2)[1]
        if path in (b"/-/fail", b"/-/heal"):
            self._failing = path == b"/-/fail"
            return b"HTTP/1.1 204 No Content\r\n\r\n"
        status = "500 Internal Server Error" if self._failing else "200 OK"
        body = f"{self._version}\n"
        return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nx-version: {self._version}\r\n\r\n{body}".encode()


def main() -> None:
    version, port = sys.argv[1:3]
    try:
        asyncio.run(Backend(version).serve(int(port)))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
