"""`meshlib demo`: the whole thing once on a pipe, and what it says when a promise is broken."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from meshlib.cli.app import app
from meshlib.cli.demo import story as story_module
from meshlib.cli.demo.config import by_weight, together, write
from meshlib.cli.demo.processes import DemoError
from meshlib.cli.demo.story import Story
from meshlib.cli.demo.view import LiveView, PlainView
from meshlib.cli.demo.window import Window
from meshlib.resources import decode
from meshlib.resources.files import load, validate
from tests.cli.conftest import Meshlib

CHAPTERS = ["canary", "shift", "crash", "ejection", "control plane lost"]
PORTS = {"v1": 8001, "v2": 8002, "v3": 8003}


@pytest.mark.once
@pytest.mark.timeout(120)
def test_the_demo_on_a_pipe(meshlib: Meshlib) -> None:
    done = meshlib("demo")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert re.findall(r"^\[\d\] ([a-z ]+): ", done.stdout, re.MULTILINE) == CHAPTERS
    assert "BROKEN" not in done.stdout
    assert done.stdout.count("    ok: ") == 15
    summary = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"\d+ requests in \d+ s, 0 failed; 15 promises kept, 0 broken", summary)
    assert "\x1b" not in done.stdout


# --- the story, told by scripted processes -----------------------------------------------------------------------------


def report(answers: Mapping[str, int], rejected: int = 0, failed: int = 0, last: str = "") -> dict[str, Any]:
    return {"answers": dict(answers), "rejected": rejected, "failed": failed, "last": last}


def split(v1: int, v2: int, v3: int = 0) -> dict[str, Any]:
    return report({"v1": v1, "v2": v2, "v3": v3})


class Scripted:
    """Stands in for the processes. reports: what the client sees, depending on what the story has done so far."""

    def __init__(self, **changed: Iterable[dict[str, Any]]) -> None:
        good: dict[str, Iterable[dict[str, Any]]] = {
            "canary": repeat(split(90, 10)),
            "shift": repeat(split(50, 50)),
            "together": repeat(split(33, 33, 34)),
            "crashed": repeat(split(50, 50)),
            "restarted": repeat(split(33, 33, 34)),
            "failing": chain(
                [report({"v1": 50, "v3": 50}, rejected=5)], repeat(report({"v1": 50, "v3": 50}))
            ),
            "healed": repeat(split(33, 33, 34)),
            "lost": repeat(split(33, 33, 34)),
        }
        self._parts = {part: iter(reports) for part, reports in {**good, **changed}.items()}
        self._part = "canary"
        self.done: list[str] = []
        self.ports = PORTS
        self.address = "127.0.0.1:1"

    def _do(self, what: str, part: str) -> None:
        self.done.append(what)
        self._part = part

    def wrote(self, _path: Path, text: str) -> None:
        if "weighted_clusters" not in text:
            self._do("together", "together")
        elif "weight: 50" in text:
            self._do("50/50", "shift")

    def crash(self, version: str) -> None:
        self._do(f"crash {version}", "crashed")

    def restart(self, version: str) -> None:
        self._do(f"restart {version}", "restarted")

    def tell(self, version: str, what: str) -> None:
        self._do(f"{what} {version}", "failing" if what == "fail" else "healed")

    def kill(self) -> None:
        self._do("kill the control plane", "lost")

    def report(self) -> dict[str, Any]:
        return next(self._parts[self._part])

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        return None


def install(monkeypatch: pytest.MonkeyPatch, script: Scripted) -> None:
    monkeypatch.setattr(story_module, "Backends", lambda _: script)
    monkeypatch.setattr(story_module, "ControlPlaneProcess", lambda _: script)
    monkeypatch.setattr(story_module, "Client", lambda _: script)
    monkeypatch.setattr(story_module, "write", script.wrote)


def told(monkeypatch: pytest.MonkeyPatch, script: Scripted) -> Story:
    install(monkeypatch, script)
    story = Story(PlainView())
    story.run()
    return story


def test_every_promise_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted()
    story = told(monkeypatch, script)
    assert (story.kept, story.broken) == (15, [])
    assert script.done == [
        "50/50",
        "together",
        "crash v3",
        "restart v3",
        "fail v2",
        "heal v2",
        "kill the control plane",
    ]


@pytest.mark.parametrize(
    ("part", "reports", "broken"),
    [
        ("canary", repeat(split(70, 30)), ["v2 got 30.0% of"]),
        ("shift", repeat(split(90, 10)), ["the new weights take effect", "v2 got 10.0% of"]),
        ("together", repeat(split(50, 50)), ["v3 gets its third"]),
        ("crashed", repeat(split(33, 33, 34)), ["v3 answers nothing any more"]),
        (
            "crashed",
            repeat(report({"v1": 50, "v2": 50}, failed=1, last="no route")),
            ["the last with no route"],
        ),
        ("restarted", repeat(split(50, 50)), ["restarted, v3 is back in turn"]),
        ("failing", repeat(split(33, 33, 34)), ["v2 is ejected"]),
        ("failing", repeat(report({"v1": 50, "v3": 50}, rejected=5)), ["v2 is ejected after 75 bad answers"]),
        ("healed", repeat(report({"v1": 50, "v3": 50})), ["healed, v2 is taken back"]),
        ("lost", repeat(split(50, 50)), ["traffic goes on, a third to each version"]),
        ("lost", repeat(report({}, failed=3, last="down")), ["traffic goes on", "the last with down"]),
    ],
)
def test_a_broken_promise_is_told(
    monkeypatch: pytest.MonkeyPatch, part: str, reports: Iterable[dict[str, Any]], broken: list[str]
) -> None:
    story = told(monkeypatch, Scripted(**{part: reports}))
    assert len(story.broken) == len(broken)
    assert all(text in promise for text, promise in zip(broken, story.broken))
    assert story.kept == 15 - len(broken)


def test_a_broken_promise_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Scripted(canary=repeat(split(70, 30))))
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "    BROKEN: v2 got 30.0%" in result.stdout
    assert "14 promises kept, 1 broken" in result.stdout
    assert result.stderr.startswith("broken: v2 got 30.0%")


def test_a_demo_that_does_not_work_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_: object) -> Scripted:
        raise DemoError("no port is left")

    monkeypatch.setattr(story_module, "Backends", none)
    result = CliRunner().invoke(app, ["demo"])
    assert (result.exit_code, result.stderr) == (1, "meshlib demo: no port is left\n")


# --- the parts ---------------------------------------------------------------------------------------------------------


def test_a_window_keeps_its_latest_reports() -> None:
    window = Window(("v1", "v2"), size=2)
    assert (window.requests, window.shares()) == (0, {"v1": 0.0, "v2": 0.0})
    for number in (
        report({"v1": 7}),
        report({"v1": 1, "v2": 2}, failed=1, last="a"),
        report({"v2": 1}, rejected=2),
    ):
        window.add(number)
    assert (window.requests, window.failed, window.rejected, window.last_failure) == (5, 1, 2, "a")
    assert window.shares() == {"v1": 0.25, "v2": 0.75}


@pytest.mark.parametrize("text", [by_weight({"v1": 90, "v2": 10}, PORTS), together(PORTS)])
def test_the_files_of_the_demo_are_valid(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mesh.yaml"
    write(file, text)
    config = load([file])
    assert validate(config, decode) == []
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.yaml"]


def test_the_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    window = Window(("v1", "v2"))
    window.add(report({"v1": 9, "v2": 1}, failed=2))
    with LiveView() as view:
        console = Console(width=100, force_terminal=True, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
        monkeypatch.setattr(view, "_console", console)
        view.chapter(1, "canary", "nine to one")
        view.verdict(True, "as it should be")
        view.verdict(False, "as it should not be")
        view.traffic(window)
        console.print(view._live.renderable)
        console.file.close()
    shown = console.export_text()
    for text in (
        "[1] canary  nine to one",
        "kept   as it should be",
        "BROKEN as it should not be",
        "90%",
        "2 failed",
    ):
        assert text in shown
