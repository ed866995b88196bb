"""Request messages that are kept for another attempt."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.transport.grpc.replay import OverrunError, Requests, SerializeError


def requests(*messages: bytes) -> Requests:
    return Requests(iter(messages), None, lambda: None)


@given(st.lists(st.binary(max_size=4), max_size=8), st.data())
def test_every_attempt_sees_every_message(messages: list[bytes], data: st.DataObject) -> None:
    kept = requests(*messages)
    readers = [object() for _ in range(3)]
    streams = [kept.messages(reader) for reader in readers]
    seen: list[list[bytes]] = [[] for _ in readers]
    over: set[int] = set()
    while len(over) < 3:
        index = data.draw(st.sampled_from(sorted({0, 1, 2} - over)))
        try:
            seen[index].append(next(streams[index]))
        except StopIteration:
            over.add(index)
    assert seen == [messages] * 3


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=8), st.integers(0, 8), st.integers(0, 2))
def test_only_the_accepted_one_goes_on(messages: list[bytes], before: int, ahead: int) -> None:
    kept = requests(*messages)
    loser, winner = object(), object()
    losing, winning = kept.messages(loser), kept.messages(winner)
    for _ in range(min(before + ahead, len(messages))):
        next(losing)
    seen = [next(winning) for _ in range(min(before, len(messages)))]
    kept.commit(winner)
    assert [*seen, *winning] == messages
    assert list(losing) == []


@given(st.lists(st.binary(min_size=1, max_size=4), max_size=8), st.integers(0, 12))
def test_beyond_the_limit_nothing_is_kept(messages: list[bytes], limit: int) -> None:
    kept = requests(*messages)
    kept.limit = limit
    assert list(kept.messages(object())) == messages
    assert kept.replayable is (sum(map(len, messages)) <= limit)


def test_an_attempt_that_was_left_behind_is_told() -> None:
    kept = requests(b"one", b"two", b"three")
    kept.limit = 4
    slow = kept.messages(object())
    fast = kept.messages(object())
    assert [next(fast), next(fast)] == [b"one", b"two"]
    with pytest.raises(OverrunError):
        next(slow)


def test_a_message_that_a_dead_attempt_waits_for_is_not_lost() -> None:
    """Its thread is inside the application's iterator when it is given up; the next attempt gets what it brings."""
    inside, go = threading.Event(), threading.Event()

    def source() -> Iterator[bytes]:
        yield b"one"
        inside.set()
        assert go.wait(10)
        yield b"two"

    kept = Requests(source(), None, lambda: None)
    kept.limit = 3
    thread = threading.Thread(target=list, args=(kept.messages(object()),))
    thread.start()
    assert inside.wait(10)
    reader = object()
    following = kept.messages(reader)
    assert next(following) == b"one"
    kept.commit(reader)
    go.set()
    assert list(following) == [b"two"]
    thread.join(10)


def test_exhausted_is_told_once() -> None:
    told: list[None] = []
    kept = Requests(iter([b"one"]), None, lambda: told.append(None))
    reader = object()
    first, second = kept.messages(object()), kept.messages(reader)
    assert list(first) == [b"one"]
    assert list(second) == [b"one"]
    assert len(told) == 1


def test_exhausted_is_told_after_the_commit_too() -> None:
    told: list[None] = []
    kept = Requests(iter([b"one", b"two"]), None, lambda: told.append(None))
    reader = object()
    stream = kept.messages(reader)
    assert next(stream) == b"one"
    kept.commit(reader)
    assert list(stream) == [b"two"]
    assert len(told) == 1


def test_a_serializer_that_fails() -> None:
    kept = Requests(iter([1]), lambda _: 1 / 0, lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(SerializeError):
        next(kept.messages(object()))


def test_nobody_waits_for_messages_of_a_call_that_is_over() -> None:
    kept = requests(b"one")
    stream = kept.messages(object())
    kept.stop()
    assert list(stream) == []
