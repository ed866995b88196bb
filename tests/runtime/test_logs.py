from __future__ import annotations

import logging
import threading

import pytest

from meshlib.runtime.logs import Once, about, failed

logger = logging.getLogger("meshlib.tests")


def test_once() -> None:
    once = Once()
    assert [once("a"), once("a"), once("b"), once(("a", 1))] == [True, False, True, True]
    assert once.forget("a")
    assert not once.forget("a")
    assert once("a")
    once.clear()
    assert once("b")


def test_so_much_is_remembered_and_no_more() -> None:
    once = Once(most=2)
    assert [once(number) for number in range(4)] == [True, True, False, False]
    once.forget(0)
    assert once(3)


def test_threads_agree_who_says_it() -> None:
    once = Once()
    said: list[int] = []
    start = threading.Barrier(8)

    def say() -> None:
        start.wait()
        said.extend(number for number in range(200) if once(number))

    threads = [threading.Thread(target=say) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == list(range(200))


def test_what_a_record_is_about(caplog: pytest.LogCaptureFixture) -> None:
    logger.warning("%s is gone", "x", extra=about(name="x", version=3))
    assert vars(caplog.records[0])["meshlib"] == {"name": "x", "version": 3}


def test_a_failure_is_said_once_for_each_place(caplog: pytest.LogCaptureFixture) -> None:
    def first() -> None:
        raise ValueError("one")

    def second() -> None:
        raise ValueError("two")

    for function in (first, first, second, first):
        try:
            function()
        except ValueError:
            failed(logger, "work of %s failed", "tests")
    assert [record.exc_info is not None for record in caplog.records] == [True, True]
    assert caplog.records[0].getMessage() == "work of tests failed"
    failed(logger, "nothing has failed")
    assert len(caplog.records) == 2
