"""A process that answers one JSON line on standard output to each JSON line on its standard input.

It ends when its input ends, so that an interrupted benchmark leaves nothing behind.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
Answer = dict[str, Any]


class Worker:
    """The asking end. `module` is run with `python -m`; its process lives until `close()`.

    In a group of its own, which an interrupt from the terminal does not reach, but in this session: Linux shares out the CPUs
    by session first (`sched_autogroup`), which now and then left one of several busy processes without any for 100 ms.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            process_group=0,
        )
        self.pid = self._process.pid

    def tell(self, **command: Any) -> None:
        """Sends a command; its answer is `answer()`'s."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Answer:
        """The next answer. RuntimeError when the worker failed or has ended."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: Answer = json.loads(line) if line else {"error": "the worker has ended"}
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, **command: Any) -> Answer:
        self.tell(**command)
        return self.answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def say(answer: Answer) -> None:
    print(json.dumps(answer), flush=True)


def serve(handle: Callable[[dict[str, Any]], Answer]) -> None:
    """The answering end: calls `handle` with each command; an exception becomes the answer `{"error": ...}`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for line in sys.stdin:
        try:
            answer = handle(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        say(answer)
