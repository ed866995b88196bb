"""Random numbers that a forked child does not share with its parent, or its traces would have the parent's identifiers."""

from __future__ import annotations

from random import Random

from meshlib.runtime import fork

__all__ = ["OwnRandom"]


class OwnRandom(Random):
    """Seeded anew in each child."""

    def __init__(self) -> None:
        super().__init__()
        fork.register(self)

    def before_fork(self) -> None:
        """Nothing to pause."""

    def after_fork_in_parent(self) -> None:
        """Nothing was paused."""

    def after_fork_in_child(self) -> None:
        self.seed()
