"""Moves the bytes of one connection: plaintext on a Unix socket of this process, TLS on the socket to the endpoint.

Each direction reads a piece, encrypts or decrypts it, and writes. What the other side does not take at once waits, and until it
has been taken nothing more is read from where it came: so at most one piece waits in each direction, and C-core, or the
endpoint, is held back by the full buffers of its own socket.

An end is passed on. One side's end of stream becomes the other's, after everything that came before it: to the endpoint as
close_notify and FIN, to C-core as the end of its socket. When both directions have ended, or one side is gone, the connection
is over.

| the local socket ... | then |
|---|---|
| has bytes | encrypt, send to the endpoint |
| ends, and is still there | close_notify and FIN to the endpoint, go on with the other direction |
| is gone | the same; over as soon as everything is sent, at most `FLUSH` seconds later |

| the endpoint ... | then |
|---|---|
| sends bytes | decrypt, send to C-core |
| ends (close_notify, or FIN without it) | end of stream to C-core, which closes its socket |
| is gone, or breaks TLS | what has been decrypted goes to C-core; then over |
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable

from meshlib.runtime.threads import Timer
from meshlib.transport.grpc.tunnel_loop import BUFFER, GONE, IN, OUT, Loop

__all__ = ["FLUSH", "Pump"]

FLUSH = 2.0
"""Seconds that what C-core wrote before it closed may take to leave."""

RECORD = 32 * 1024
"""Room that decrypted bytes may need beyond what was read: a record that had not been complete before."""


class Pump:
    """tls, incoming, outgoing: after the handshake; what has been read of what follows it is in `incoming`.

    ended: called once, when the connection is of no use any more, before C-core can see it; with the error if TLS broke.
    unsent: what TLS has said that has not left yet. The pump owns both sockets, and closes them.
    """

    __slots__ = (
        "_alarm",
        "_broken",
        "_down",
        "_ended",
        "_incoming",
        "_local",
        "_local_gone",
        "_local_mask",
        "_local_over",
        "_loop",
        "_outgoing",
        "_over",
        "_read",
        "_remote",
        "_remote_gone",
        "_remote_mask",
        "_remote_over",
        "_tls",
        "_up",
        "_write",
    )

    def __init__(
        self,
        loop: Loop,
        local: socket.socket,
        remote: socket.socket,
        tls: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        ended: Callable[[BaseException | None], None],
        unsent: bytes = b"",
    ) -> None:
        self._loop = loop
        self._local = local
        self._remote = remote
        self._tls = tls
        self._incoming = incoming
        self._outgoing = outgoing
        self._read: Callable[[int, memoryview], int] = tls.read  # type: ignore[assignment]
        self._write = tls.write
        self._ended: Callable[[BaseException | None], None] | None = ended
        self._up: memoryview | None = memoryview(unsent) if unsent else None  # encrypted, for the endpoint
        self._down: memoryview | None = None  # decrypted, for C-core
        self._local_mask = self._remote_mask = IN
        self._local_over = self._remote_over = False  # its end of stream has been read
        self._local_gone = self._remote_gone = False  # closed by the other side, and watched no more
        self._over = False
        self._broken: BaseException | None = None
        self._alarm: Timer | None = None

    def start(self) -> None:
        """On the loop's thread."""
        self._loop.watch(self._local, IN, self._on_local, self._end)
        self._loop.watch(self._remote, IN, self._on_remote, self._end)
        self._send()
        self._decrypt()

    def _watch(self) -> None:
        """Read where nothing waits, write where something does."""
        if self._over:
            return
        local = (IN if self._up is None and not self._local_over else 0) | (OUT if self._down else 0)
        if local != self._local_mask and not self._local_gone:
            self._local_mask = local
            self._loop.change(self._local, local)
        remote = (IN if self._down is None and not self._remote_over else 0) | (OUT if self._up else 0)
        if remote != self._remote_mask and not self._remote_gone:
            self._remote_mask = remote
            self._loop.change(self._remote, remote)

    # --- from C-core to the endpoint -------------------------------------------------------------------------------

    def _on_local(self, mask: int) -> None:
        if mask == IN:
            self._push()
            return
        if mask & OUT:
            self._deliver()
        if self._over:
            return
        lost = bool(mask & GONE)
        if mask & IN and self._local_mask & IN:
            self._push()
            lost = lost and self._local_over  # after the last byte
        if lost:
            self._lose_local()

    def _push(self) -> None:
        """Read a piece, and send it encrypted."""
        if self._up is not None:  # something else was to be sent in the meantime
            return
        view = self._loop.view
        try:
            count = self._local.recv_into(view)
        except BlockingIOError:
            return
        except OSError:
            count = 0
        write = self._write
        try:
            if count:
                done = write(view[:count])
                while done < count:  # a record for each 16 KiB
                    done += write(view[done:count])
            else:
                self._local_over = True
                self._tls.unwrap()
        except ssl.SSLWantReadError:  # close_notify is written; that of the endpoint may never come
            pass
        except ssl.SSLError as error:
            self._end(error)
            return
        if not count:
            self._send()
            return
        data = self._outgoing.read()
        try:
            sent = self._remote.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._lose_remote()
            return
        if sent != len(data):
            self._up = memoryview(data)[sent:]
            self._watch()

    def _send(self) -> None:
        """Let the endpoint have what waits for it."""
        while True:
            if self._up is None:
                data = self._outgoing.read()
                if not data:
                    break
                self._up = memoryview(data)
            try:
                sent = self._remote.send(self._up)
            except BlockingIOError:
                self._watch()
                return
            except OSError:
                self._lose_remote()
                return
            self._up = self._up[sent:] if sent < len(self._up) else None
        if self._local_over:
            self._finish_up()
        self._watch()

    def _finish_up(self) -> None:
        """Everything that C-core wrote has been sent."""
        if self._remote_over or self._local_gone:
            self._end(self._broken)
            return
        try:
            self._remote.shutdown(socket.SHUT_WR)
        except OSError:
            self._end(self._broken)

    def _lose_local(self) -> None:
        """C-core has closed its socket. What it wrote before is sent, if the endpoint takes it in time. Idempotent."""
        if self._over or self._local_gone:
            return
        self._local_gone = True
        self._loop.forget(self._local)
        self._down = None
        if self._local_over and self._up is None:
            self._end(self._broken)
            return
        self._alarm = self._loop.later(FLUSH, self._give_up)
        self._catch_up()

    def _catch_up(self) -> None:
        while not self._over and self._local_gone and self._up is None and not self._local_over:
            self._push()

    def _give_up(self) -> None:
        self._end(self._broken)

    # --- from the endpoint to C-core -------------------------------------------------------------------------------

    def _on_remote(self, mask: int) -> None:
        if mask == IN:
            self._pull()
            return
        if mask & OUT:
            self._send()
            self._catch_up()
        if self._over:
            return
        if mask & IN and self._remote_mask & IN:
            self._pull()
        elif mask & GONE:
            self._lose_remote()

    def _pull(self) -> None:
        """Read a piece, and deliver it decrypted."""
        if self._down is not None:
            return
        view = self._loop.view
        try:
            count = self._remote.recv_into(view, BUFFER - RECORD)
        except BlockingIOError:
            if not self._remote_gone:
                return
            count = 0
        except OSError:
            count = 0
        if count:
            self._incoming.write(view[:count])
        else:
            self._incoming.write_eof()
        self._decrypt()

    def _decrypt(self) -> None:
        view, read, incoming = self._loop.view, self._read, self._incoming
        count = 0
        try:
            while incoming.pending or incoming.eof:
                got = read(BUFFER - count, view[count:])
                if not got:
                    self._remote_over = True  # close_notify
                    break
                count += got
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLEOFError:  # without it
            self._remote_over = True
        except ssl.SSLError as error:
            self._remote_over = True
            self._broken = error
        if count:
            try:
                sent = self._local.send(view[:count])
            except BlockingIOError:
                sent = 0
            except OSError:  # C-core does not read any more
                sent = count
            if sent < count:
                self._down = memoryview(bytes(view[sent:count]))
                self._watch()
        if self._outgoing.pending and self._up is None:
            self._send()
        if self._remote_over and self._down is None:
            self._finish_down()

    def _deliver(self) -> None:
        """Let C-core have what waits for it."""
        if self._down is not None:
            try:
                sent = self._local.send(self._down)
            except BlockingIOError:
                return
            except OSError:
                sent = len(self._down)
            self._down = self._down[sent:] if sent < len(self._down) else None
        while self._remote_gone and self._down is None and not self._remote_over and not self._over:
            self._pull()
        if self._remote_over and self._down is None:
            self._finish_down()
        self._watch()

    def _finish_down(self) -> None:
        """The endpoint sends nothing more, and C-core has everything that it sent."""
        if self._over:
            return
        if self._broken is not None or self._local_over or self._remote_gone:
            self._end(self._broken)
            return
        self._tell(None)
        try:
            self._local.shutdown(socket.SHUT_WR)
        except OSError:
            self._end(None)
            return
        self._watch()

    def _lose_remote(self) -> None:
        """The endpoint's connection is gone: nothing can be sent, or C-core has not taken all that came over it.

        What the endpoint said before, an alert for example, is still there to be read.
        """
        self._remote_gone = True
        self._loop.forget(self._remote)
        self._up = None
        self._deliver()

    # --- the end ---------------------------------------------------------------------------------------------------

    def _tell(self, error: BaseException | None) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(error)

    def _end(self, error: BaseException | None) -> None:
        """Idempotent."""
        if self._over:
            return
        self._over = True
        self._tell(error)
        if self._alarm is not None:
            self._alarm.cancel()
        for sock in (self._local, self._remote):
            self._loop.forget(sock)
            sock.close()
