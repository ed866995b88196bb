"""Exact totals of an application that is several processes: what its workers count now, and what those counted that have ended.

Each process writes what it has counted into a file of the process directory: `NAME.totals`. A scrape of one worker asks the
others and adds the files of those that no longer answer. Three rules keep every total from ever going down:

- A process that is asked writes before it answers. So whatever has been told is in the file, however the process ends.
- Otherwise it writes at most once a second, and only after calls. So a killed process loses less than what it counted since.
- A clean end writes once more, before the process can no longer be asked.

Files of ended processes are folded into one for the whole group, `GROUP.group`, which remembers whom it contains. A reader takes
the single files first and the folded one last: who was asked or read and is in the folded file as well counts once. So readers
need no lock; only those who fold keep each other out.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import os
import re
import stat
import threading
import weakref
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from meshlib.observe.document import Document, document, merge
from meshlib.runtime import fork
from meshlib.runtime.clock import SystemClock
from meshlib.stats import Registry

if TYPE_CHECKING:
    from meshlib.observe.tally import Tally

__all__ = ["GroupTotals", "Member", "identity"]

logger = logging.getLogger("meshlib.observe")

PAUSE = 1.0
"""Seconds between two writes at least; more where writing takes more than a fiftieth of that."""

REMEMBERED = 4096
"""So many of the processes that a folded file contains are remembered by name; a reader is never that late."""

_monotonic = SystemClock.monotonic

_TOTALS = re.compile(r"[0-9][0-9-]{0,31}\.totals")


class Member(NamedTuple):
    """A process that could be asked. name: in the process directory; started: seconds since 1970, of what is asked."""

    name: str
    started: float
    document: Document


def identity(name: str, started: float) -> str:
    """Of a process among all that ever had its number."""
    return f"{name}@{started:.6f}"


class GroupTotals:
    """What one process adds to its group. folder: of the process directory. name, started, group: as in there.

    Made when the process can be asked already. Thread safe. In a forked child it is closed: the child has a name of its own.

    Raises:
        OSError: the folder can't be opened, or is not this user's alone.
    """

    def __init__(self, registry: Registry, *, folder: Path, name: str, started: float, group: str) -> None:
        self.identity = identity(name, started)
        self.name = name
        self._registry = registry
        self._key = _group_key(group)
        self._folder = _opened(folder)
        self._lock = threading.Lock()
        self._written: bytes | None = None
        self._tally: Tally | None = None
        self._wanted = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._fold(lambda: _AllBut(name), wait=True)  # of a process that had this number before
        fork.register(self)
        _open.add(self)

    def follow(self, tally: Tally) -> None:
        """Write from now on after calls. Starts a thread, which sleeps while there are none."""
        self._tally = tally
        tally.changed = self._wanted.set
        self._thread = threading.Thread(target=self._run, name="meshlib-totals", daemon=True)
        self._thread.start()
        tally.idle = True

    def close(self) -> None:
        """Write once more. Idempotent. Call it before the process can no longer be asked."""
        with self._lock:
            closed, self._closed = self._closed, True
        if closed:
            return
        _open.discard(self)
        if self._tally is not None:
            self._tally.changed = None
            self._tally.idle = False
        self._ending.set()
        self._wanted.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(2.0)
        self._save(document(self._registry, used_only=True))
        with self._lock:
            os.close(self._folder)

    # --- of this process ---------------------------------------------------------------------------------------------

    def answer(self, *, used_only: bool = True) -> Document:
        """What this process has counted, when it is asked: it is on disk when this returns.

        Raises:
            RuntimeError: it has been closed; what it has written last is its last word.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("this process is ending")
            found = document(self._registry, used_only=used_only)
            self._save(found)
        return found

    def _save(self, found: Document) -> None:
        totals = found.totals()
        data = json.dumps({"id": self.identity, "group": self._key}).encode()[:-1] + b","
        data += totals.to_json()[1:]
        if data == self._written or (self._written is None and not totals.families):
            return
        try:
            self._write(f"{self.name}.totals", data)
        except OSError as error:
            logger.warning("what this process has counted can't be kept for its group: %s", error)
        self._written = data  # on an error too: once for each cause

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            began = _monotonic()
            if self._tally is not None:
                self._tally.idle = True
            try:
                self.answer()
            except RuntimeError:
                return
            if self._ending.wait(max(PAUSE, 50 * (_monotonic() - began))):
                return

    # --- of the group ------------------------------------------------------------------------------------------------

    def whole(self, members: Iterable[Member], alive: Callable[[], Container[str]]) -> Document:
        """The sum of this process, of the others that have answered, and of all that count no more or do not answer now.

        alive: the names of all processes that could be asked at the moment in which it is called.

        Raises:
            RuntimeError: as of `answer`.
        """
        parts = {identity(member.name, member.started): member.document for member in members}
        parts[self.identity] = self.answer(used_only=False)
        single = {kept.id: kept for kept in self._files() if kept.group == self._key}
        folded = self._folded()
        for kept in single.values():
            parts.setdefault(kept.id, kept.document)
        counted = [found for who, found in parts.items() if who not in folded.ids or who == self.identity]
        if any(who != self.identity for who in single):
            with contextlib.suppress(OSError):  # the folder is gone, or full: the files stay as they are
                self._fold(alive)
        return merge([*counted, folded.document])

    def _files(self) -> Iterator[_Kept]:
        with os.scandir(self._folder) as entries:
            names = [entry.name for entry in entries if _TOTALS.fullmatch(entry.name)]
        for name in names:
            kept = _kept(name.removesuffix(".totals"), self._read(name))
            if kept is not None:
                yield kept

    def _folded(self) -> _Folded:
        return _folded(self._read(f"{self._key}.group"))

    def _fold(self, alive: Callable[[], Container[str]], *, wait: bool = False) -> None:
        """Put the files of ended processes, of whatever group, into their groups'. wait: also while another process is at it.

        Who is alive is asked after the files were read: whoever wrote one could be asked already, so who can't has ended.
        """
        with self._turn(wait=wait) as mine:
            if not mine:
                return
            files = list(self._files())
            living = alive()
            for kept in files:
                if kept.id != self.identity and (self._over(kept.group) or kept.name not in living):
                    self._fold_one(kept)
            with os.scandir(self._folder) as entries:
                groups = [entry.name for entry in entries if entry.name.endswith(".group")]
            for name in groups:
                if self._over(name.removesuffix(".group")):
                    self._remove(name)

    def _fold_one(self, kept: _Kept) -> None:
        if not self._over(kept.group):
            into = _folded(self._read(f"{kept.group}.group"))
            if kept.id not in into.ids:
                self._write(f"{kept.group}.group", into.plus(kept))
        self._remove(f"{kept.name}.totals")

    def _over(self, group: str) -> bool:
        """Whether nobody will ask for the totals of that group any more."""
        return group != self._key and _is_over(group)

    @contextlib.contextmanager
    def _turn(self, *, wait: bool) -> Iterator[bool]:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        lock = os.open("totals.lock", flags, 0o600, dir_fd=self._folder)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(lock)

    def _read(self, name: str) -> bytes:
        try:
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=self._folder)
        except OSError:
            return b""
        with os.fdopen(file, "rb") as opened:
            return opened.read()

    def _write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        temporary = f"{name}.{os.getpid()}.new"
        with os.fdopen(os.open(temporary, flags, 0o600, dir_fd=self._folder), "wb") as file:
            file.write(data)
        os.replace(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._folder)

    # --- around a fork -----------------------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Nothing to pause: the child takes nothing over."""

    def after_fork_in_parent(self) -> None:
        """All goes on."""

    def after_fork_in_child(self) -> None:
        self._lock = threading.Lock()
        self._thread = None
        _open.discard(self)
        if self._tally is not None:
            self._tally.changed = None
            self._tally.idle = False
        if not self._closed:
            self._closed = True
            os.close(self._folder)


class _AllBut(Container[str]):
    def __init__(self, name: str) -> None:
        self._name = name

    def __contains__(self, name: object) -> bool:
        return name != self._name


class _Kept(NamedTuple):
    """What one process has written."""

    name: str
    id: str
    group: str
    document: Document


class _Folded(NamedTuple):
    """What ended processes of one group have counted. ids: the latest of them last."""

    ids: Mapping[str, None]
    document: Document

    def plus(self, kept: _Kept) -> bytes:
        ids = [*self.ids, kept.id][-REMEMBERED:]
        total = merge([self.document, kept.document])
        return json.dumps({"ids": ids}).encode()[:-1] + b"," + total.to_json()[1:]


def _kept(name: str, data: bytes) -> _Kept | None:
    try:
        found = json.loads(data)
        return _Kept(name, str(found["id"]), str(found["group"]), Document.from_json(data))
    except (ValueError, KeyError, TypeError):  # removed meanwhile, or not ours
        return None


def _folded(data: bytes) -> _Folded:
    if not data:
        return _Folded({}, Document())
    try:
        return _Folded(dict.fromkeys(json.loads(data)["ids"]), Document.from_json(data))
    except (ValueError, KeyError, TypeError):
        logger.warning("totals of ended processes can't be read: they begin anew")
        return _Folded({}, Document())


def _group_key(group: str) -> str:
    """The group, and when its first process began: the number of that process will be another's one day."""
    return f"{group}~{_start_of(group)}" if group.isdecimal() else group


def _is_over(key: str) -> bool:
    """Whether the first process of the group has ended. A group that was named by hand is never over."""
    pid, _, started = key.partition("~")
    return bool(started) and _start_of(pid) != started


def _start_of(pid: str) -> str:
    """In ticks since the machine's start; empty where that can't be seen."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[19]


def _opened(folder: Path) -> int:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    found = os.fstat(opened)
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(opened)
        raise PermissionError(f"{folder} is not this user's alone")
    return opened


_open: weakref.WeakSet[GroupTotals] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for totals in list(_open):
        totals.close()
