"""One run: the processes, the root rotations, and what it has come to."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import memory_mib, tasks
from benchmarks.soak.clients import NAMES, Load
from benchmarks.soak.verdict import CLIENT, SERVERS
from benchmarks.worker import Worker
from meshlib.policy.rotation import within

__all__ = ["Late", "Plan", "certificates_in", "faults", "run"]

LOOK = 0.2
"""Seconds between two looks at how it goes."""

Answer = dict[str, Any]


class Late(Exception):
    """What was waited for has not happened in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """lifetime: of an SVID, seconds, renewed at half. certificates: how many each end has had at the end, at least.

    root_rotations: whole ones (old -> both -> new), evenly spread. concurrency: calls under way, of all four clients.
    pause: seconds between two calls of a caller. haste: the steps of a root rotation follow each other as soon as everybody has
    heard; otherwise when all connections have been exchanged for which a certificate was renewed before.
    """

    lifetime: float
    certificates: int
    root_rotations: int = 1
    concurrency: int = 16
    pause: float = 0.0
    haste: bool = False

    def exchange(self, left: float) -> float:
        """Seconds to wait after a renewal. left: what was left of the earlier certificate, as a part of its lifetime."""
        return 0.0 if self.haste else 2 * within(left * self.lifetime)

    @property
    def settle(self) -> float:
        """Seconds in which both ends of a connection hear of a rotation."""
        return max(2.0, self.lifetime / 20)

    @property
    def limit(self) -> float:
        """Seconds after which something is wrong."""
        return 60.0 + self.certificates * self.lifetime

    @property
    def load(self) -> Load:
        return Load(
            callers=max(1, self.concurrency // len(NAMES)),
            long=min(10.0, self.lifetime / 8),
            pause=self.pause,
        )


class _Soak:
    """The processes of a run, under way. workers: whose status counts."""

    def __init__(self, plan: Plan, ca: Worker, workers: dict[str, Worker]) -> None:
        self._due = time.monotonic() + plan.limit
        self._ca = ca
        self._workers = workers

    def status(self) -> dict[str, Answer]:
        return {name: worker.ask(status=True) for name, worker in self._workers.items()}

    def wait(self, what: str, reached: Callable[[Answer], bool]) -> None:
        """Until it is so at every end. Raises: Late."""
        while not all(map(reached, (status := self.status()).values())):
            if time.monotonic() > self._due:
                raise Late(f"waited in vain for {what}: {status}")
            time.sleep(LOOK)

    def wait_certificates(self, count: int) -> None:
        self.wait(f"certificate {count}", lambda end: end["certificates"] >= count)

    def rotate_root(self, plan: Plan) -> None:
        """All three steps, each when the one before has come to everybody, and calls have been made since."""
        self._step("prepared", lambda end: end["roots"] == 2)
        time.sleep(plan.exchange(0.5))
        before = max(end["certificates"] for end in self.status().values())
        self._step("activated", lambda end: end["certificates"] > before)
        time.sleep(plan.exchange(1.0))
        self._step("steady", lambda end: end["roots"] == 1)

    def _step(self, phase: str, reached: Callable[[Answer], bool]) -> None:
        answer = self._ca.ask(rotate=True)
        if answer["phase"] != phase:
            raise Late(f"the root rotation is {answer['phase']}, not {phase}")
        self.wait(f"the root rotation to be {phase}", lambda end: reached(end) and end["settled"])
        calls = self._calls()
        self.wait(
            "calls",
            lambda end: all(end["calls"][name] > calls[name] for name in calls) if "calls" in end else True,
        )

    def _calls(self) -> dict[str, int]:
        found: dict[str, int] = self._workers["clients"].ask(status=True)["calls"]
        return found


def run(plan: Plan, say: Callable[[str], None] = lambda _text: None) -> Answer:
    """Raises: Late; RuntimeError: a process failed."""
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="meshlib-soak-")))
        socket = str(folder / "agent.sock")
        ca = stack.enter_context(Worker("benchmarks.soak.ca", socket, str(plan.lifetime)))
        servers = {name: stack.enter_context(Worker("benchmarks.soak.server", name)) for name in SERVERS}
        clients = stack.enter_context(Worker("benchmarks.soak.clients"))
        ca.ask(entries={CLIENT: clients.pid} | {SERVERS[name]: each.pid for name, each in servers.items()})
        ports = {name: each.ask(socket=socket, settle=plan.settle)["port"] for name, each in servers.items()}
        clients.ask(
            start={"ports": ports, "socket": socket, "settle": plan.settle, "load": asdict(plan.load)}
        )
        workers = {"clients": clients, **servers}
        soak = _Soak(plan, ca, workers)
        soak.wait_certificates(2)
        first = {name: _costs(each.pid) for name, each in workers.items()}
        for number in range(plan.root_rotations):
            soak.wait_certificates(2 + (plan.certificates - 2) * (number + 1) // (plan.root_rotations + 1))
            soak.rotate_root(plan)
            say(f"root rotation {number + 1} of {plan.root_rotations} is over")
        soak.wait_certificates(plan.certificates)
        last = {name: _costs(each.pid) for name, each in workers.items()}
        ends = soak.status()
        found: dict[str, Answer] = clients.ask(stop=True)["clients"]
        return {
            "plan": asdict(plan),
            "seconds": time.monotonic() - begun,
            "certificates": {name: end["certificates"] for name, end in ends.items()},
            "root_rotations": plan.root_rotations,
            "clients": found,
            "processes": {name: {"first": first[name], "last": last[name]} for name in workers},
        }


def faults(found: Answer) -> list[str]:
    """What must not be; empty when all is well."""
    said = []
    for name, client in found["clients"].items():
        if client["failed"]:
            said += [f"{name}: {client['failed']} calls failed", *client["failures"]]
        if not client["calls"] or not client["long_calls"]:
            said.append(f"{name}: no calls")
        if client["oldest_own"] > 1 or client["oldest_peer"] > 1:
            said.append(f"{name}: a connection in use was more than one rotation old")
        if client["unknown_certificates"]:
            said.append(f"{name}: a server has seen a certificate that was never ours")
        # The last one need not have been shown, nor those that the renewal of a root rotation overtook.
        plan = found["plan"]
        if client["certificates"] < plan["certificates"] - 1 - plan["root_rotations"]:
            said.append(f"{name}: the servers have seen {client['certificates']} of its certificates only")
    return said


def _costs(pid: int) -> dict[str, float]:
    return {
        "rss_mib": memory_mib(pid)["rss"],
        "threads": len(tasks(pid)),
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),  # noqa: PTH208 - names only
    }


def certificates_in(minutes: float, lifetime: float, root_rotations: int) -> int:
    """How many certificates each end gets in so many minutes: each root rotation brings one ahead of its time."""
    return 1 + math.ceil(minutes * 60 / (lifetime / 2)) + root_rotations
