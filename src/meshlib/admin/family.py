"""Which processes are one application: the workers of one gunicorn, of one celery, of one multiprocessing pool.

A worker is a fork of its master that runs no other program. That can be seen from outside, whatever the processes call
themselves: the auxiliary vector that the kernel gives a program at its start holds random addresses, and a fork has the same
ones. So the family's head is found by going up as long as the parent's vector is equal. Workers that multiprocessing spawned
are programs of their own; they know their parent.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from meshlib.errors import ConfigError

__all__ = ["GROUP_VARIABLE", "family_head", "group"]

GROUP_VARIABLE = "MESHLIB_GROUP"
"""Names the group of this process, for applications whose workers are started otherwise."""

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")


def group() -> str:
    """The name of this process's group: MESHLIB_GROUP, else the pid of the application's first process.

    Raises:
        ConfigError: MESHLIB_GROUP is not made of up to 64 letters, digits, `.`, `_` and `-`, or begins with a dot.
    """
    named = os.environ.get(GROUP_VARIABLE)
    if named:
        if not _NAME.fullmatch(named):
            raise ConfigError(f"{GROUP_VARIABLE}={named!r}: write up to 64 letters, digits, '.', '_' and '-'")
        return named
    spawner = _spawner()
    return str(family_head(os.getpid() if spawner is None else spawner))


def family_head(pid: int) -> int:
    """The process from which this one descends by forks alone; itself when by none, or when that can't be seen."""
    own = _vector(pid)
    if own is not None:
        while (parent := _parent(pid)) > 1 and _vector(parent) == own:
            pid = parent
    return pid


def _vector(pid: int) -> bytes | None:
    try:
        return Path(f"/proc/{pid}/auxv").read_bytes() or None
    except OSError:  # it has ended, is another user's, or there is no /proc
        return None


def _parent(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(text.rpartition(")")[2].split()[1])


def _spawner() -> int | None:
    """The process that made this one by multiprocessing's spawn or forkserver."""
    multiprocessing = sys.modules.get("multiprocessing.process")
    parent = multiprocessing.parent_process() if multiprocessing is not None else None
    return parent.pid if parent is not None else None
