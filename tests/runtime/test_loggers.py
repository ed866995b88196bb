"""Who logs, under which name: `meshlib.<folder>` for each folder, and `meshlib.access` for what users ask for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import meshlib

ROOT = Path(meshlib.__file__).parent


def loggers() -> Iterator[tuple[Path, str]]:
    """Each call of getLogger with a constant."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger":
                assert node.args, path
                if isinstance(node.args[0], ast.Constant):
                    yield path.relative_to(ROOT), str(node.args[0].value)


def test_names_of_loggers() -> None:
    found = list(loggers())
    assert len(found) > 10
    wrong = [
        (str(path), name)
        for path, name in found
        if name not in (f"meshlib.{path.parts[0]}", "meshlib.access")
        and not (name == "meshlib" and path.parts[0] == "admin")  # which sets levels
    ]
    assert not wrong


def test_nobody_logs_past_those_names() -> None:
    """The root logger is the application's."""
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                forbidden = ("basicConfig", "debug", "info", "warning", "error", "exception")
                assert name not in {f"logging.{each}" for each in forbidden}, path
