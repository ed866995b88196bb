"""What mypyc asks of the modules that it compiles, and does not complain about itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from scripts import compiled


def classes(file: str) -> Iterator[ast.ClassDef]:
    tree = ast.parse((compiled.SOURCE / file).read_text())
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def members(annotation: ast.expr) -> list[str]:
    """Of a union, without None."""
    if isinstance(annotation, ast.BinOp):
        return members(annotation.left) + members(annotation.right)
    text = ast.unparse(annotation)
    return [] if text == "None" else [text]


def slotted_dataclass(made: ast.ClassDef) -> bool:
    decorators = [ast.unparse(each) for each in made.decorator_list]
    return any(each.startswith("dataclass(") and "slots=True" in each for each in decorators)


@pytest.fixture(scope="module")
def protocols() -> set[str]:
    files = [path.relative_to(compiled.SOURCE).as_posix() for path in compiled.SOURCE.rglob("*.py")]
    return {
        each.name
        for file in files
        for each in classes(file)
        if any(ast.unparse(base).startswith("Protocol") for base in each.bases)
    }


@pytest.mark.parametrize("file", compiled.modules())
def test_no_default_is_lost(file: str, protocols: set[str]) -> None:
    """A default of None is kept only for a class or a built-in type, not for a protocol or one of several types."""
    lost = [
        f"{each.name}.{ast.unparse(line.target)}"
        for each in classes(file)
        if not each.decorator_list or "dataclass" not in ast.unparse(each.decorator_list[0])
        for line in each.body
        if isinstance(line, ast.AnnAssign)
        and isinstance(line.value, ast.Constant)
        and line.value.value is None
        and (len(kinds := members(line.annotation)) != 1 or kinds[0] in protocols)
    ]
    assert lost == [], "set it in __init__"


def test_the_list_names_what_is_there() -> None:
    found = compiled.modules()
    assert {"meshlib/engine/call.py", "meshlib/transport/http/sync_exchange.py"} <= set(found)
    assert "meshlib/engine/options.py" not in found


INTERPRETED = {
    "balance/balancer.py": {"_Health"},
    "balance/hashing.py": {"_Made"},
    "balance/priorities.py": {"Loads", "Membership"},
    "engine/dialect.py": {"Dialect"},
    "engine/filters.py": {"Link"},
    "engine/observer.py": {"InboundCall"},
    "engine/replies.py": {"Ending"},
    "engine/steps.py": {"Answer", "Ask", "FilterContext", "FilterScope", "GoOn", "WaitUntil"},
    "policy/rbac.py": {"Verdict"},
    "policy/rbac_request.py": {"Caller"},
    "transport/http/description.py": {"Description", "TlsDescription"},
}
"""By module, without `meshlib/`."""


def test_what_stays_interpreted_among_what_is_compiled() -> None:
    """Dataclasses with slots do, and nothing says so: calls should read none of them."""
    found = {
        file.removeprefix("meshlib/"): names
        for file in compiled.modules()
        if (names := {each.name for each in classes(file) if slotted_dataclass(each)})
    }
    assert found == INTERPRETED
