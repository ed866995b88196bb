"""What the documentation shows is valid, and its tables are complete."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

import meshlib
import meshlib.httpx
from meshlib.cli.app import app
from meshlib.xds import bootstrap

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]


def blocks(language: str) -> list[tuple[str, str]]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(document.name, code) for document in DOCUMENTS for code in pattern.findall(document.read_text())]


def test_configurations_are_valid(tmp_path: Path) -> None:
    shown = [code for _, code in blocks("yaml") if code.startswith("resources:")]
    assert len(shown) >= 2
    for code in shown:
        file = tmp_path / "mesh.yaml"
        file.write_text(code)
        result = CliRunner().invoke(app, ["validate", str(file)])
        assert (result.exit_code, result.output) == (0, "4 resources, all valid\n")


def test_python_is_python() -> None:
    shown = blocks("python")
    assert shown
    for name, code in shown:
        ast.parse(code, name)


def test_the_bootstrap_is_one() -> None:
    (code,) = (code for name, code in blocks("json") if name == "configuration.md")
    assert bootstrap.parse(json.loads(code)).unsupported == ()


def test_the_error_in_the_quickstart_is_what_is_printed(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "quickstart.md").read_text()
    code = next(code for name, code in blocks("yaml") if name == "quickstart.md")
    (tmp_path / "mesh.yaml").write_text(code.replace("domains: [reviews]", "domain: [reviews]"))
    result = CliRunner().invoke(app, ["validate", str(tmp_path / "mesh.yaml")])
    assert f"    {result.stderr.removeprefix(f'{tmp_path}/')}" in text


def test_the_explanation_is_what_is_printed(tmp_path: Path) -> None:
    code = next(code for name, code in blocks("yaml") if name == "quickstart.md")
    (tmp_path / "mesh.yaml").write_text(code)
    result = CliRunner().invoke(
        app, ["explain", "--seed", "0", str(tmp_path / "mesh.yaml"), "http://reviews/"]
    )
    shown = (ROOT / "docs" / "explain.md").read_text()
    for line in result.stdout.splitlines():
        assert f"    {line}\n" in shown


def test_every_error_is_in_the_table() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|.*\| (`[^|]*) \|$", text, re.MULTILINE)
    told: dict[str, set[str]] = {}
    for name, classes in rows:
        told.setdefault(name, set()).update(re.findall(r"`(\w+)`", classes))
    others = {"AsyncMeshTransport", "MeshTransport", "OtherMeshError"}
    assert told.keys() == set(meshlib.httpx.__all__) - others
    for name, classes in told.items():
        bases = {base.__name__ for base in getattr(meshlib.httpx, name).__bases__}
        assert classes <= bases
    for name in meshlib.__all__:
        value = getattr(meshlib, name)
        if (
            isinstance(value, type)
            and issubclass(value, meshlib.MeshError)
            and value is not meshlib.MeshError
        ):
            assert f"`{name}`" in text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text()):
        assert (document.parent / target).exists(), f"{document.name}: {target}"
