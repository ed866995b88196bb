"""The process directory: how the processes of one user on one machine find each other.

A folder that only its owner may enter. Each process whose Mesh has its admin on has a Unix socket there, `<pid>.sock`, which
speaks the admin's HTTP, and beside it a note, `<pid>.json`, of who it is. Everything that needs more than one process goes
through here: exact totals over the workers of gunicorn, `meshlib status`, `graph`, `--process PID`.

The folder's place can be guessed (it may be in the machine's temporary folder), so it is trusted only after a look: a real
folder, of this user, closed to all others. It is opened once and every name is used through that descriptor, so that nobody
can put another folder in its place afterwards, and so that its path may be longer than a socket's address allows.

A process that is killed leaves its socket behind. Its pid says nothing (it may be another process's by now): a socket is dead
when a connection to it is refused. Whoever finds a dead one removes it, under the directory's lock, so that nobody removes
what a new process has just put there. A second Mesh in one process has `<pid>-2.sock`, and so on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from meshlib.admin.client import Answer, Asker, by_socket
from meshlib.errors import ConfigError

__all__ = ["RUN_DIRECTORY_VARIABLE", "Process", "ProcessDirectory", "Seat", "default_path", "renew_lock"]

RUN_DIRECTORY_VARIABLE = "MESHLIB_RUN_DIR"

_SOCKET = re.compile(r"(\d{1,10})(?:-(\d{1,4}))?\.sock")
_BACKLOG = 16
_CONNECT_TIMEOUT = 1.0

_turn = threading.Lock()


def renew_lock() -> None:
    """In a forked child, where the holder of the lock may not exist."""
    global _turn
    _turn = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A Mesh of a process, as its note says. name: `PID`, or `PID-2` for the second Mesh of a process. group: that of its
    application, see `meshlib.admin.family`. started: of the Mesh's admin, seconds since 1970. service: as in traces and
    metrics, may be empty. command: what the process runs, for people. url: of its admin for a browser, empty
    when there is none.
    """

    name: str
    pid: int
    group: str
    started: float
    service: str = ""
    command: str = ""
    url: str = ""


def default_path() -> Path:
    """MESHLIB_RUN_DIR, else `meshlib` in XDG_RUNTIME_DIR, else `meshlib-<uid>` in the folder for temporary files."""
    named = os.environ.get(RUN_DIRECTORY_VARIABLE)
    if named:
        return Path(named)
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_absolute() and os.access(runtime, os.W_OK):
        return Path(runtime, "meshlib")
    return Path(tempfile.gettempdir(), f"meshlib-{os.getuid()}")


class ProcessDirectory:
    """See the module's text. path: None takes `default_path`. Opening it makes the folder where there is none.

    Thread safe. Holds one descriptor until `close`.

    Raises:
        ConfigError: the folder can't be made, is a symbolic link, is somebody else's, or others may enter it.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = default_path() if path is None else Path(path)
        self._folder = _open_folder(self.path)
        self._base = f"/proc/self/fd/{self._folder}"
        if not os.path.exists(self._base):  # noqa: PTH110 - /proc may be missing
            self._base = str(self.path)

    def close(self) -> None:
        """Let go of the folder. Idempotent."""
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)

    def __enter__(self) -> ProcessDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def list(self, group: str | None = None) -> tuple[Process, ...]:
        """The processes that listen now, by pid; of one group only, when it is named. Dead sockets are removed."""
        found: list[tuple[int, int, Process]] = []
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries]
        for match in filter(None, map(_SOCKET.fullmatch, names)):
            name = match[0].removesuffix(".sock")
            process = self._note(name, int(match[1]))
            wanted = process is None or group is None or process.group == group
            if wanted and self._alive(name) and process is not None:
                found.append((process.pid, int(match[2] or 1), process))
        return tuple(process for _, _, process in sorted(found, key=lambda entry: entry[:2]))

    def asker(self, process: Process | str | int) -> Asker:
        """Who to ask for this process, by its name or pid. It need not be there."""
        name = process.name if isinstance(process, Process) else str(process)
        if not _SOCKET.fullmatch(f"{name}.sock"):
            raise ConfigError(f"{name!r} is not the pid of a process, nor one like 4711-2")
        return by_socket(f"process {name}", self._address(name))

    def ask(self, process: Process | str | int, path: str, *, timeout: float = 2.0) -> Answer:
        """`GET path` of this process. timeout: seconds for all of it.

        Raises:
            AdminError: there is no such process, or no complete answer in time.
        """
        return self.asker(process).ask(path, timeout=timeout)

    def sit_down(self, *, group: str, started: float, service: str = "", url: str = "") -> Seat:
        """Put a listening socket of this process into the directory.

        Raises:
            OSError: that can't be done.
        """
        pid = os.getpid()
        with self._locked():
            name = self._free_name(pid)
            process = Process(
                name=name,
                pid=pid,
                group=group,
                started=started,
                service=service,
                command=_command(),
                url=url,
            )
            self._write(f"{name}.json", json.dumps(asdict(process)).encode())
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                listener.bind(self._address(name))
                listener.listen(_BACKLOG)
            except OSError:
                listener.close()
                self._unlink(name)
                raise
        return Seat(self, process, listener)

    def remove(self, name: str) -> None:
        """This process's own socket of that name has been closed: remove it."""
        with self._locked():
            self._unlink(name)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process and one thread at a time. The lock ends with its holder, and a fork does not inherit it."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        with _turn:
            lock = os.open("lock", flags, 0o600, dir_fd=self._folder)
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)

    def _address(self, name: str) -> str:
        return f"{self._base}/{name}.sock"

    def _free_name(self, pid: int) -> str:
        """The caller holds the lock."""
        number = 1
        while True:
            name = str(pid) if number == 1 else f"{pid}-{number}"
            if not self._answers(name):
                self._unlink(name)
                return name
            number += 1

    def _alive(self, name: str) -> bool:
        """Whether somebody listens; removes the socket when not."""
        if self._answers(name):
            return True
        with self._locked():
            if self._answers(name):  # a new process took the name meanwhile
                return True
            self._unlink(name)
        return False

    def _answers(self, name: str) -> bool:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
            probe.settimeout(_CONNECT_TIMEOUT)
            try:
                probe.connect(self._address(name))
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except OSError:  # it is there, and too busy to say so
                return True
        return True

    def _note(self, name: str, pid: int) -> Process | None:
        try:
            note = os.open(f"{name}.json", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder)
        except OSError:
            return None
        with os.fdopen(note, "rb") as file:
            try:
                found = json.loads(file.read(65536))
            except ValueError:
                return None
        return _process(found, name, pid) if isinstance(found, Mapping) else None

    def _write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        temporary = f"{name}.{os.getpid()}.new"
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=self._folder), "wb") as file:
            file.write(data)
        os.replace(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _unlink(self, name: str) -> None:
        for suffix in (".sock", ".json"):
            with contextlib.suppress(OSError):
                os.unlink(name + suffix, dir_fd=self._folder)


class Seat:
    """The place of one Mesh in the directory: who it is, and the socket on which it is asked."""

    def __init__(self, directory: ProcessDirectory, process: Process, listener: socket.socket) -> None:
        self._directory = directory
        self.process = process
        self.listener = listener

    def leave(self) -> None:
        """Stop listening and remove the socket. Idempotent."""
        if self.listener.fileno() < 0:
            return
        self.listener.close()
        if self.process.pid == os.getpid():
            self._directory.remove(self.process.name)

    def forget(self) -> None:
        """In a forked child: the place is the parent's. As long as the child held its socket, it would never seem dead."""
        self.listener.close()


def _open_folder(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        reason = "it is a symbolic link or no folder" if path.is_symlink() else error.strerror
        raise ConfigError(f"the process directory {path} can't be used: {reason}") from error
    found = os.fstat(folder)
    wrong = None
    if found.st_uid != os.getuid():
        wrong = f"it belongs to user {found.st_uid}, not to {os.getuid()}"
    elif stat.S_IMODE(found.st_mode) & 0o077:
        wrong = f"others may enter it (mode {stat.S_IMODE(found.st_mode):04o}); it must be 0700"
    if wrong is not None:
        os.close(folder)
        raise ConfigError(
            f"the process directory {path} can't be used: {wrong}; {RUN_DIRECTORY_VARIABLE} names another"
        )
    return folder


def _process(found: Mapping[str, Any], name: str, pid: int) -> Process | None:
    try:
        return Process(
            name=name,
            pid=pid,
            group=str(found["group"]),
            started=float(found["started"]),
            service=str(found.get("service", "")),
            command=str(found.get("command", "")),
            url=str(found.get("url", "")),
        )
    except (KeyError, TypeError, ValueError):
        return None


def _command() -> str:
    """What the process runs, without its arguments: those may hold secrets."""
    return Path(sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c") else sys.executable).name
