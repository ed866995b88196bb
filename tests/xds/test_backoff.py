from __future__ import annotations

from random import Random

import pytest
from tenacity import wait_fixed

from meshlib.xds.backoff import Backoff, reconnect_wait, wait_spread


def test_the_wait_grows_to_its_limit_and_starts_again() -> None:
    backoff = Backoff(reconnect_wait(lambda: 0.5))
    waits = [backoff.next() for _ in range(13)]
    assert waits[:4] == pytest.approx([1.0, 1.6, 2.56, 4.096])
    assert waits[10] == pytest.approx(1.6**10)
    assert waits[11:] == [120.0, 120.0]
    backoff.reset()
    assert backoff.next() == 1.0


def test_a_thousand_failures_are_no_overflow() -> None:
    backoff = Backoff(reconnect_wait(lambda: 0.5))
    assert [backoff.next() for _ in range(3000)][-1] == 120.0


def test_the_jitter_is_twenty_percent_both_ways() -> None:
    assert Backoff(reconnect_wait(lambda: 0.0)).next() == pytest.approx(0.8)
    assert Backoff(reconnect_wait(lambda: 1.0)).next() == pytest.approx(1.2)
    source = Random(1)
    waits = [Backoff(wait_spread(wait_fixed(10), 0.2, source.random)).next() for _ in range(2000)]
    assert min(waits) == pytest.approx(8, abs=0.05)
    assert max(waits) == pytest.approx(12, abs=0.05)
    assert sum(waits) / len(waits) == pytest.approx(10, abs=0.1)
