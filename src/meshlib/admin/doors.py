"""The admin of a Mesh that is open without the application's doing: MESHLIB_ADMIN, or `Observe(admin=...)`.

Two doors: the Unix socket of the process directory, for the commands and the other workers, and a TCP port of the loopback
interface for a browser. They open when the Mesh starts, in each process: a child of a fork has its own, from its first call on.
That a door can't be opened is said in the log and troubles no call.
"""

from __future__ import annotations

import atexit
import logging
import socket
import threading
import weakref
from typing import TYPE_CHECKING

from meshlib.admin.admin import Admin
from meshlib.admin.family import group
from meshlib.admin.membership import Membership
from meshlib.admin.processes import ProcessDirectory, Seat, renew_lock
from meshlib.admin.server import AdminServer, listen_tcp, split_address
from meshlib.errors import ConfigError
from meshlib.runtime import fork

if TYPE_CHECKING:
    from meshlib.mesh import Mesh

__all__ = ["Doors", "doors"]

logger = logging.getLogger("meshlib.admin")

_ON = frozenset({"1", "true", "yes", "on"})
_OFF = frozenset({"0", "false", "no", "off"})
_UNIX = "unix"


def _text(wanted: bool | str) -> str:
    return str(wanted).strip().lower()


def doors(mesh: Mesh, wanted: bool | str) -> Doors | None:
    """Those that MESHLIB_ADMIN or `Observe(admin=...)` asks for, not open yet; None for `0` and its like."""
    return None if _text(wanted) in _OFF else Doors(mesh, wanted)


class Doors:
    """wanted: True, or a text as MESHLIB_ADMIN has it: `1`, `host:port` (a port that is taken, by another worker for example, is
    replaced by a free one), or `unix`: no port, for machines whose other users must not see it."""

    def __init__(self, mesh: Mesh, wanted: bool | str) -> None:
        text = _text(wanted)
        self._listen = None if text == _UNIX else "127.0.0.1:0" if text in _ON else str(wanted)
        self.admin = Admin(mesh)
        self._mesh = mesh
        self._lock = threading.Lock()
        self._server: AdminServer | None = None
        self._seat: Seat | None = None
        self._directory: ProcessDirectory | None = None
        self.membership: Membership | None = None
        self._opened = False
        fork.register(self)

    @property
    def url(self) -> str | None:
        """For a browser; None while there is none."""
        addresses = self._server.addresses if self._server is not None else []
        return f"http://{addresses[0]}" if addresses else None

    def open(self) -> None:
        """Unless that has been done in this process."""
        if self._opened:
            return
        with self._lock:
            if not self._opened:
                self._opened = True
                self._open()

    def close(self) -> None:
        """Idempotent; they stay closed."""
        with self._lock:
            self._opened = True
            server, self._server = self._server, None
            seat, self._seat = self._seat, None
            directory, self._directory = self._directory, None
            membership, self.membership = self.membership, None
        _open.discard(self)
        if membership is not None:
            membership.close()
        if seat is not None:
            seat.leave()
        if server is not None:
            server.close()
        if directory is not None:
            self.admin.handler.join(None, None)
            directory.close()

    def before_fork(self) -> None:
        """Nothing to pause: no lock is held for long."""

    def after_fork_in_parent(self) -> None:
        """All goes on."""

    def after_fork_in_child(self) -> None:
        renew_lock()
        self._lock = threading.Lock()
        self._opened = False
        server, self._server = self._server, None
        seat, self._seat = self._seat, None
        directory, self._directory = self._directory, None
        self.membership = None
        if server is not None:
            server.forget()
        if seat is not None:
            seat.forget()
        self.admin.handler.join(None, None)
        if directory is not None:
            directory.close()

    def _open(self) -> None:
        listeners: list[socket.socket] = []
        tcp = None if self._listen is None else self._tcp(self._listen)
        url = ""
        if tcp is not None:
            listeners.append(tcp)
            host, port = tcp.getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        seat = self._sit_down(url)
        if seat is not None:
            listeners.append(seat.listener)
        if listeners:
            self._server = AdminServer(self.admin.handle, listeners)
            _open.add(self)
        if url:
            logger.info("the admin of this process is at %s", url)

    def _tcp(self, listen: str) -> socket.socket | None:
        try:
            try:
                return listen_tcp(listen)
            except OSError:
                host, port = split_address(listen)
                if not port:
                    raise
                return listen_tcp(f"[{host}]:0" if ":" in host else f"{host}:0")
        except (OSError, ConfigError) as error:
            logger.warning("the admin can't listen on %s: %s", listen, error)
            return None

    def _sit_down(self, url: str) -> Seat | None:
        try:
            directory = ProcessDirectory()
            try:
                seat = directory.sit_down(
                    group=group(),
                    started=self._mesh.clock.time(),
                    service=self.admin.handler.service,
                    url=url,
                )
            except BaseException:
                directory.close()
                raise
        except (OSError, ConfigError) as error:
            logger.warning("this process can't be found by other processes: %s", error)
            return None
        self._directory, self._seat = directory, seat
        self.admin.handler.join(directory, seat.process)
        try:
            mesh = self._mesh
            self.membership = Membership(mesh.stats, mesh.engine.observers, directory, seat.process)
        except OSError as error:
            logger.warning("other processes of this application can't add up its counts: %s", error)
        return seat


_open: weakref.WeakSet[Doors] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for doors in list(_open):
        doors.close()
