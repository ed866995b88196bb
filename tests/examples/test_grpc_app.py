"""examples/grpc_app, as its README starts it."""

from __future__ import annotations

import re
import signal

import pytest

from tests.examples.running import finish, processes_of, start

EXAMPLE = ("-m", "examples.grpc_app")

both = pytest.mark.parametrize("options", [(), ("--ccore",)], ids=["meshlib", "grpcio"])


@pytest.mark.timeout(120)
@both
def test_it_runs_once(options: tuple[str, ...]) -> None:
    with start(*EXAMPLE, "--once", *options) as process:
        output, errors = finish(process)
    assert process.returncode == 0, output + errors
    everyone, canary = output.split("with x-canary: always: ")
    assert everyone.startswith("everyone: 100 calls, 0 failed\n")
    shares = {version: int(count) for version, count in re.findall(r"by reviews (v\d): (\d+)", everyone)}
    assert sum(shares.values()) == 100
    assert 5 <= shares["v2"] <= 40  # 20 expected, standard deviation 4
    assert canary == "100 calls, 0 failed\n  rated by reviews v2: 100\n"
    assert options or errors == ""  # what C-core logs is its own
    assert processes_of(process.pid) == []


@pytest.mark.timeout(120)
@both
def test_it_runs_until_it_is_told_to_end(options: tuple[str, ...]) -> None:
    with start(*EXAMPLE, *options) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Ctrl-C ends it" in line:
                break
        process.send_signal(signal.SIGINT)
        output, errors = finish(process)
    assert process.returncode == 0, output + errors
    assert processes_of(process.pid) == []
