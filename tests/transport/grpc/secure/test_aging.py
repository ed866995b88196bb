"""How long a connection may be used, without a connection."""

from __future__ import annotations

import weakref
from math import inf
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshlib.policy import rotation
from meshlib.runtime.clock import SystemClock
from meshlib.runtime.threads import Timer
from meshlib.transport.grpc.aging import Aging


class FakeLoop:
    """Alarms are due when the test says so."""

    def __init__(self) -> None:
        self.alarms: list[Timer] = []

    def later(self, delay: float, task: Any) -> Timer:
        alarm = Timer(delay, task)
        self.alarms.append(alarm)
        return alarm

    @property
    def waiting(self) -> list[Timer]:
        return [alarm for alarm in self.alarms if alarm.task is not None]

    def ring(self) -> None:
        """What is due next."""
        (alarm,) = self.waiting
        task, alarm.task = alarm.task, None
        assert task is not None
        task()


class Connection:
    """One of a certificate that lives so many seconds more, and what it was told."""

    def __init__(self, left: float = 100.0) -> None:
        self.told: list[str] = []
        self.loop = FakeLoop()
        self.security: Any = SimpleNamespace(epoch=1)
        handshake: Any = SimpleNamespace(epoch=1, not_after=SystemClock.time() + left)
        self.aging = Aging(cast("Any", self.loop), self.security, handshake, weakref.ref(self))

    def due(self) -> None:
        self.told.append("due")

    def expired(self) -> None:
        self.told.append("expired")

    def renew(self) -> None:
        self.security.epoch += 1
        self.aging.look()


@pytest.fixture
def connection() -> Connection:
    made = Connection()
    made.aging.begin()
    return made


def test_it_ends_with_its_certificate(connection: Connection) -> None:
    (alarm,) = connection.loop.waiting
    assert 99.0 < alarm.when <= 100.0
    connection.loop.ring()
    assert connection.told == ["expired"]
    assert connection.loop.waiting == []


def test_a_connection_without_a_certificate_of_ours_has_no_end() -> None:
    connection = Connection(inf)
    connection.aging.begin()
    assert connection.loop.waiting == []
    connection.renew()
    connection.loop.ring()
    assert connection.told == ["due"]
    assert connection.loop.waiting == []


def test_a_renewal_gives_it_a_moment(connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "draw", lambda: 0.5)
    connection.renew()
    (alarm,) = connection.loop.waiting
    assert alarm.when == pytest.approx(12.5, abs=0.5)  # half of a quarter of what is left
    assert connection.told == []
    connection.loop.ring()
    assert connection.told == ["due"]


def test_an_exchange_that_never_comes_ends_with_the_certificate(connection: Connection) -> None:
    connection.renew()
    connection.loop.ring()
    (alarm,) = connection.loop.waiting
    assert 99.0 < alarm.when <= 100.0
    connection.loop.ring()
    assert connection.told == ["due", "expired"]


def test_a_second_renewal_while_it_is_exchanged_ends_it(connection: Connection) -> None:
    connection.renew()
    connection.loop.ring()
    connection.aging.look()  # after a push
    assert connection.told == ["due"]
    connection.renew()
    assert connection.told == ["due", "expired"]
    assert connection.loop.waiting == []


def test_a_second_renewal_before_its_moment_ends_it(connection: Connection) -> None:
    connection.renew()
    connection.renew()
    assert connection.loop.waiting == []
    assert connection.told == ["expired"]


def test_one_that_was_overtaken_while_it_was_opened() -> None:
    connection = Connection()
    connection.security.epoch += 1
    connection.aging.begin()
    connection.loop.ring()
    assert connection.told == ["due"]


def test_nothing_is_told_of_one_that_is_closed(connection: Connection) -> None:
    connection.aging.end()
    connection.renew()
    connection.aging.begin()
    assert connection.loop.waiting == []
    assert connection.told == []


def test_whoever_is_gone_is_not_told() -> None:
    connection = Connection()
    loop, aging = connection.loop, connection.aging
    aging.begin()
    del connection
    loop.ring()


@given(st.lists(st.sampled_from(["renew", "ring", "look", "end"]), max_size=12))
def test_whatever_happens(events: list[str]) -> None:
    """It is to be exchanged at most once, ends at most once and last, and one alarm at most is set."""
    connection = Connection()
    connection.aging.begin()
    renewals = 0
    ended = False
    for event in events:
        if event == "renew":
            connection.renew()
            renewals += 1
        elif event == "look":
            connection.aging.look()
        elif event == "end":
            connection.aging.end()
            ended = True
        elif connection.loop.waiting:
            connection.loop.ring()
        assert len(connection.loop.waiting) == (0 if ended or "expired" in connection.told else 1)
    assert connection.told in ([], ["due"], ["expired"], ["due", "expired"])
    assert "due" not in connection.told or renewals
