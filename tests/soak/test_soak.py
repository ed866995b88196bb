"""`make soak` in a minute: the same processes and the same questions, with certificates that live for seconds, and a root that is
withdrawn before its connections were exchanged."""

from __future__ import annotations

import pytest

from benchmarks.soak.run import Plan, certificates_in, faults, run


@pytest.mark.once
@pytest.mark.timeout(180)
def test_no_call_fails_while_certificates_and_roots_rotate() -> None:
    wanted = certificates_in(minutes=1.0, lifetime=12.0, root_rotations=1)
    found = run(Plan(lifetime=12.0, certificates=wanted, root_rotations=1, pause=0.02, haste=True))
    assert not faults(found)
    assert min(found["certificates"].values()) >= wanted
