"""The scripts that make environments and add up test results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts import env, pythons, test_pythons


def executable(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def test_a_shim_that_does_not_run_is_no_python(tmp_path: Path) -> None:
    assert (
        pythons.version_of(executable(tmp_path / "python3.12", "echo 'command not found' >&2; exit 127"))
        is None
    )
    assert pythons.version_of(str(tmp_path / "missing")) is None


def test_the_running_python_is_found() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = pythons.find(version)
    assert found is not None
    assert pythons.version_of(found) == version
    assert pythons.find("2.1") is None


def test_pyenv_versions_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "versions" / "3.99.4"
    (home / "bin").mkdir(parents=True)
    interpreter = executable(home / "bin" / "python", "echo 3.99")
    executable(tmp_path / "python3.99", "exit 127")
    executable(tmp_path / "pyenv", f'[ "$1" = versions ] && echo "3.98.1 3.99.4" || echo {home}')
    monkeypatch.setenv("PATH", str(tmp_path))
    assert pythons.find("3.99") == interpreter
    assert pythons.find("3.98") is None


def test_an_environment_is_current_until_what_it_was_made_from_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, venv = tmp_path / "root", tmp_path / "venv"
    root.mkdir()
    (root / "pyproject.toml").write_text("a")
    (root / "constraints.txt").write_text("b")
    monkeypatch.setattr(env, "ROOT", root)
    monkeypatch.setattr(env, "CONSTRAINTS", root / "constraints.txt")
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").touch()
    assert not env._is_current(venv, "demo", "3.11")
    (venv / env.STAMP).write_text(env._fingerprint("dev", "3.11"))
    assert env._is_current(venv, "dev", "3.11")
    assert env._is_current(venv, "demo", "3.11"), "dev holds everything that demo needs"
    assert not env._is_current(venv, "dev", "3.12")
    (root / "pyproject.toml").write_text("changed")
    assert not env._is_current(venv, "dev", "3.11")
    (venv / env.STAMP).write_text(env._fingerprint("demo", "3.11"))
    assert not env._is_current(venv, "dev", "3.11")


def test_a_failed_installation_says_what_failed(tmp_path: Path) -> None:
    with pytest.raises(env.SetupFailed, match="no such option"):
        env._run([executable(tmp_path / "pip", "echo 'no such option'; exit 2")], tmp_path / "log")


REPORT = '<testsuites><testsuite tests="9" failures="2" errors="1" skipped="3"/></testsuites>'


@pytest.mark.parametrize(("content", "counts"), [(REPORT, (3, 3, 3)), ("<testsuites>", None), (None, None)])
def test_totals_of_a_report(tmp_path: Path, content: str | None, counts: tuple[int, int, int] | None) -> None:
    report = tmp_path / "report.xml"
    if content is not None:
        report.write_text(content)
    assert test_pythons._read_totals(report) == counts


def test_a_run_that_dies_counts_as_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    totals = test_pythons.Totals()
    test_pythons.run_tests("tests", executable(tmp_path / "python", "echo dying; exit 139"), (), totals)
    assert (totals.passed, totals.failed, totals.broken) == (0, 1, ["tests: 0 passed, 1 failed, 0 skipped"])
    assert "dying" in capsys.readouterr().out


def test_a_check_passes_with_exit_code_0_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    totals = test_pythons.Totals()
    test_pythons.check("good", executable(tmp_path / "good", "exit 0"), (), totals)
    test_pythons.check("bad", executable(tmp_path / "bad", "echo why; exit 1"), (), totals)
    assert (totals.passed, totals.failed, totals.broken) == (1, 1, ["bad"])
    assert "why" in capsys.readouterr().out


def test_a_python_that_is_not_there_is_skipped_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_pythons, "find", lambda version: None)
    totals, work = test_pythons.Totals(), test_pythons.Work()
    test_pythons.OtherPython("3.99", totals, work).prepare()
    assert not work
    assert (totals.passed, totals.failed, totals.skipped) == (0, 0, 1)


def test_the_parts_leave_no_test_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    *apart, (everything, *left_out) = test_pythons.PARTS.values()
    folders = [folder for part in apart for folder in part]
    assert everything == "tests"
    assert sorted(left_out) == sorted(f"--ignore={folder}" for folder in folders)
    assert all((env.ROOT / folder).is_dir() for folder in folders)

    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(test_pythons, "run_tests", lambda name, python, arguments, *_: ran.append(arguments))
    monkeypatch.setattr(test_pythons, "check", lambda *_, **__: None)
    monkeypatch.setattr(test_pythons, "find", lambda version: version)
    monkeypatch.setattr(test_pythons, "ensure", lambda *_, **__: Path("python"))
    monkeypatch.setattr(test_pythons, "compiler", lambda: None)
    test_pythons._take(test_pythons._everything(test_pythons.Totals()))
    once, each = test_pythons.ONCE, f"not ({test_pythons.ONCE})"
    wanted = [("-m", once, "tests")] + [("-m", each, *paths) for paths in test_pythons.PARTS.values()] * 3
    assert sorted(ran) == sorted(wanted)
