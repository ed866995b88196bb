"""examples/flask_app, as its README starts it."""

from __future__ import annotations

import re
import signal

import pytest

from tests.examples.running import finish, processes_of, start

pytest.importorskip("gunicorn")
pytest.importorskip("flask")

EXAMPLE = "examples/flask_app/run.py"


@pytest.mark.timeout(120)
def test_it_runs_once() -> None:
    with start(EXAMPLE, "--once") as process:
        output, errors = finish(process)
    assert process.returncode == 0, output + errors
    assert "100 requests, 0 failed\n" in output
    shares = {version: int(count) for version, count in re.findall(r"by reviews (v\d): (\d+)", output)}
    assert sum(shares.values()) == 100
    assert 5 <= shares["v2"] <= 40  # 20 expected, standard deviation 4
    assert re.search(r"through gunicorn's worker \d+: \d+", output)
    assert processes_of(process.pid) == []


@pytest.mark.timeout(120)
def test_it_runs_until_it_is_told_to_end() -> None:
    with start(EXAMPLE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "the front end is at" in line:
                break
        process.send_signal(signal.SIGINT)
        output, errors = finish(process)
    assert process.returncode == 0, output + errors
    assert processes_of(process.pid) == []
