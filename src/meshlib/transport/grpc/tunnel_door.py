"""The socket by which an inner channel comes to us: an abstract Unix socket, where only this process is let in.

Its name is random, it takes one connection and is closed then. An abstract name has no permissions, so whoever connects is
asked for its process id, as the kernel saw it (SO_PEERCRED); a stranger is turned away and the door stays open for our own.
Where there are no abstract names, it is a socket in a folder that only this user may enter.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import struct
import sys
import tempfile

__all__ = ["Door", "process_of"]

_CREDENTIALS = struct.Struct("3i")
_BACKLOG = 16


class Door:
    """target: what C-core connects to. abstract: False for a path in a folder; None as the platform allows.

    Raises OSError where there is no place for it.
    """

    __slots__ = ("_folder", "socket", "target")

    def __init__(self, abstract: bool | None = None) -> None:
        if abstract is None:
            abstract = sys.platform == "linux"
        self._folder = ""
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            if abstract:
                name = f"meshlib-{os.getpid()}-{secrets.token_hex(16)}"
                self.socket.bind("\0" + name)
                self.target = "unix-abstract:" + name
            else:
                self._folder = tempfile.mkdtemp(prefix="meshlib-")  # mode 0700
                path = os.path.join(self._folder, "tls")  # noqa: PTH118 - a str is what bind takes
                self.socket.bind(path)
                self.target = "unix:" + path
            self.socket.listen(_BACKLOG)
            self.socket.setblocking(False)
        except OSError:
            self.close()
            raise

    def admit(self) -> socket.socket | None:
        """The connection of this process, None when there is none yet. Raises OSError when there will be none."""
        while True:
            try:
                caller, _ = self.socket.accept()
            except (BlockingIOError, InterruptedError):
                return None
            if process_of(caller) == os.getpid():
                caller.setblocking(False)
                return caller
            caller.close()

    def close(self) -> None:
        """Idempotent."""
        self.socket.close()
        folder, self._folder = self._folder, ""
        if folder:
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)


def process_of(caller: socket.socket) -> int:
    """The id of the process at the other end. Where the kernel does not tell, the folder has kept others out: our own."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return os.getpid()
    credentials = caller.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    process: int = _CREDENTIALS.unpack(credentials)[0]
    return process
