from __future__ import annotations

from meshlib.runtime.memo import Memo


class Thing:
    """Equal to every other one."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing)

    def __hash__(self) -> int:
        return 0


def test_each_object_has_its_own_made_once() -> None:
    memo = Memo[Thing, list[Thing]](lambda thing: [thing])
    one, other = Thing(), Thing()
    assert memo(one) is memo(one)
    assert memo(one) is not memo(other)
    assert memo(other)[0] is other


def test_an_id_that_is_used_again_is_another_object() -> None:
    memo = Memo[list[int], int](lambda numbers: numbers[0])
    assert [memo([number]) for number in range(10_000)] == list(range(10_000))


def test_it_does_not_grow_for_ever() -> None:
    memo = Memo[list[int], int](lambda numbers: numbers[0])
    for number in range(10_000):
        memo([number])
    assert len(memo._entries) <= 4096
