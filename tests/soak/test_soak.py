"""`make soak` in short: the same processes and the same questions, with certificates that live for seconds."""

from __future__ import annotations

import pytest

from benchmarks.soak.run import Plan, faults, run


@pytest.mark.once
@pytest.mark.timeout(180)
def test_no_call_fails_while_certificates_and_roots_rotate() -> None:
    found = run(Plan(lifetime=12.0, certificates=4, pause=0.02))
    assert not faults(found)
    assert min(found["certificates"].values()) >= 4
