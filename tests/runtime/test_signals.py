from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import closing
from types import FrameType
from typing import Any

import pytest

from meshlib.runtime import signals
from meshlib.runtime.signals import Signals

USR1, USR2 = signal.SIGUSR1, signal.SIGUSR2


def test_signals_come_in_their_order() -> None:
    with closing(Signals((USR1, USR2))) as told:
        for number in (USR2, USR1, USR2):
            signal.raise_signal(number)
        assert [told.next(), told.next(), told.next(0.0)] == [USR2, USR1, USR2]
        assert told.next(0.0) is None


def test_handlers_of_before_get_their_signals_back() -> None:
    before = signal.getsignal(USR1)
    with closing(Signals((USR1,))):
        assert signal.getsignal(USR1) is not before
    assert signal.getsignal(USR1) is before


def test_a_signal_from_another_process_wakes_the_waiting_thread() -> None:
    with closing(Signals((USR1,))) as told:
        sender = threading.Thread(target=os.kill, args=(os.getpid(), USR1))
        sender.start()
        assert told.next() == USR1
        sender.join()


def test_only_the_main_thread_may_wait() -> None:
    raised: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(ValueError, match="main thread") as caught:
            Signals((USR1,))
        raised.append(caught.value)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert raised


@pytest.mark.parametrize("instruction", range(80))
def test_a_signal_at_any_instruction_is_seen(instruction: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "LOOK", 0.0)  # the thread comes by every one of its instructions soon
    left = instruction

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal left
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                signal.raise_signal(USR1)
        return trace

    with closing(Signals((USR1,))) as told:
        if instruction == 0:
            signal.raise_signal(USR1)
        sys.settrace(trace)
        try:
            assert told.next() == USR1
        finally:
            sys.settrace(None)
