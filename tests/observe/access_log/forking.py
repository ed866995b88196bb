"""A process that forks between lines of its access log. `python -m tests.observe.access_log.forking FILE`, by test_fork.py."""

from __future__ import annotations

import os
import sys
from random import Random

from meshlib.engine.observer import InboundCall
from meshlib.observe.access_log.inbound import InboundFacts
from meshlib.observe.access_log.logs import Logs
from meshlib.resources.access_log import TextFormat
from meshlib.resources.format import parse
from meshlib.runtime.clock import SystemClock
from meshlib.stats import Registry

LINES = 20


def main(path: str) -> None:
    logs = Logs(Registry(), SystemClock(), Random())
    write = logs.to_file(path, TextFormat(format=parse("%PATH%\n")), None)

    def log(name: str) -> None:
        for number in range(LINES):
            record = InboundCall(
                method="GET", scheme="http", authority="a", path=f"/{name}/{number}", headers=[],
                protocol="HTTP/1.1", remote="", started=0.0, epoch=0.0,
            )  # fmt: skip
            write(InboundFacts(record))

    log("before")
    children = []
    for child in range(3):
        pid = os.fork()
        if pid == 0:
            log(f"child{child}")
            sys.exit(0)  # its exit handlers write what waits
        children.append(pid)
        log(f"after{child}")
    for pid in children:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


if __name__ == "__main__":
    main(sys.argv[1])
