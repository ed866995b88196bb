"""What all commands have in common."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from meshlib import __version__
from meshlib.cli.app import app
from tests.cli.conftest import Meshlib

COMMANDS = ("demo", "serve", "validate", "explain", "status", "dump", "tap", "graph", "doctor", "ca")


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert f" {command} " in result.stdout.splitlines()[0] + " "


def test_the_help_of_all(meshlib: Meshlib) -> None:
    done = meshlib("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert set(COMMANDS) <= set(done.stdout.split())


def test_the_version(meshlib: Meshlib) -> None:
    assert meshlib("--version").stdout.split()[-1] == __version__


def test_an_unknown_command(meshlib: Meshlib) -> None:
    done = meshlib("destroy")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'destroy'" in done.stderr


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_cli_extra(environment: dict[str, str], missing: str) -> None:
    """Only click is needed by every command; the demo's table does without rich."""
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['meshlib', '--version']\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "from meshlib.cli import main; main()"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
    )
    if missing == "rich":
        assert done.returncode == 0
    else:
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "meshlib: the command line needs click: pip install 'meshlib-xds[cli]'\n"
