"""hash_balance_factor: hosts beyond their share are passed over, in an order that only the hash decides."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from meshlib.balance.bounded_load import bounded, shuffled


class Load:
    """Three hosts with these requests under way; the hash chooses the first."""

    def __init__(self, active: list[int], factor: int = 100, weights: tuple[float, ...] = ()) -> None:
        self.active = active
        shares = weights or (1 / len(active),) * len(active)
        self.choose = bounded(
            lambda value: value % len(active),
            shares,
            factor,
            self.active.__getitem__,
            lambda: sum(self.active),
        )


def test_the_host_of_the_hash_while_it_is_within_its_share() -> None:
    assert Load([0, 0, 0]).choose(1) == 1
    assert Load([1, 1, 1]).choose(1) == 1
    assert Load([0, 1, 0]).choose(1) == 1, "one request is always within it"


def test_another_one_when_it_is_beyond() -> None:
    load = Load([0, 2, 0])
    other = load.choose(1)
    assert other in (0, 2)
    assert load.choose(1) == other, "always the same"
    assert len({load.choose(1 + 3 * number) for number in range(50)}) == 2, "but not for each hash"


def test_a_share_is_rounded_up_and_follows_the_weight() -> None:
    # 5 under way, the next is the 6th: ceil(6 * 1.5) = 9 slots, of which 2/3 are 6.
    assert Load([5, 0, 0], 150, (2 / 3, 1 / 6, 1 / 6)).choose(0) == 0
    assert Load([7, 0, 0], 100, (2 / 3, 1 / 6, 1 / 6)).choose(0) != 0


def test_all_are_beyond() -> None:
    choose = bounded(lambda value: 0, (0.5, 0.5), 100, [9, 5].__getitem__, lambda: 0)
    assert choose(7) == 1, "the one that is least beyond it"


def test_an_empty_ring() -> None:
    assert bounded(lambda value: None, (), 100, [].__getitem__, lambda: 0)(1) is None


def test_the_shuffle_is_that_of_cxx() -> None:
    # mt19937(1) begins 1791095845, 4282876139, 3093770124; each is divided by 2**32 // left.
    assert list(shuffled(1, 3)) == [1, 2, 0]
    assert list(shuffled(2**32 + 1, 3)) == [1, 2, 0], "the seed has 32 bits"


@given(seed=st.integers(0, 2**64 - 1), size=st.integers(0, 40))
def test_every_host_once(seed: int, size: int) -> None:
    assert sorted(shuffled(seed, size)) == list(range(size))
