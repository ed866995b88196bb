"""What a process costs and where it runs, read from /proc and set by CPU affinity."""

from __future__ import annotations

import os
from collections.abc import Iterable, Set
from pathlib import Path


def tasks(pid: int) -> list[int]:
    """Thread ids of a process; empty when it has ended."""
    try:
        return [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    except FileNotFoundError:
        return []


def cpu_seconds(pids: Iterable[int]) -> float:
    """Seconds of CPU that all threads of these processes have had, to the nanosecond (schedstat)."""
    total = 0
    for pid in pids:
        for tid in tasks(pid):
            try:
                text = Path(f"/proc/{pid}/task/{tid}/schedstat").read_text()
            except FileNotFoundError:
                continue
            total += int(text.split(None, 1)[0])
    return total / 1e9


def segments() -> int:
    """TCP segments with data that have been sent in this network namespace; 0 where the kernel does not say."""
    try:
        lines = Path("/proc/net/netstat").read_text().splitlines()
    except OSError:
        return 0
    names, values = (line.split() for line in lines if line.startswith("TcpExt:"))
    return int(dict(zip(names, values, strict=True)).get("TCPOrigDataSent", 0))


def memory_mib(pid: int) -> dict[str, float]:
    """Resident and proportional set size of a process, MiB."""
    fields: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Rss", "Pss"):
            fields[name.lower()] = int(rest.split()[0]) / 1024
    return fields


def place(pids: Iterable[int], cpus: Set[int]) -> None:
    """Lets every thread of these processes run on `cpus` only; threads made later inherit it."""
    for pid in pids:
        for tid in tasks(pid):
            try:
                os.sched_setaffinity(tid, cpus)
            except ProcessLookupError:
                continue
