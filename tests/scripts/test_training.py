"""The calls that a compiled build is trained with are made as they should be: each of them raises unless it succeeds."""

from __future__ import annotations

import pytest

from scripts import training


def test_every_call_succeeds() -> None:
    training.train(calls=40)


@pytest.mark.interpreted
def test_an_interpreted_build_can_not_be_trained() -> None:
    with pytest.raises(training.NotCompiled, match="PYTHONPATH"):
        training.main()
