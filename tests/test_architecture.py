"""Imports go one way: down the table of docs/architecture.md, for whole rooms."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NOT_PRODUCT = ("tests", "benchmarks", "examples", "docker", "docs", "build", "dist", "runs")
# What makes a checkout importable, and the face of the package, which loads what it shows when it is asked for.
OUTSIDE = ("gpt_mesh.py", "__init__.py")


def rooms() -> list[list[str]]:
    """The rooms of each row of the table, top first."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    return [re.findall(r"`([^`]+)`", row) for row in rows]


ORDER = {room: number for number, row in enumerate(rooms()) for room in row}


def sources() -> list[str]:
    """Every source file of the product, in packages of any depth."""
    found = [path.relative_to(ROOT) for path in ROOT.rglob("*.py")]
    return sorted(
        str(path)
        for path in found
        if path.parts[0] not in NOT_PRODUCT and not path.parts[0].startswith(".") and str(path) not in OUTSIDE
    )


def room_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def imported_rooms(path: str) -> set[str]:
    """Rooms of this package that a file imports, wherever the import stands."""
    names: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("gpt_mesh.")}


def test_the_table_names_what_is_there() -> None:
    assert len(ORDER) > 20 and set(ORDER) == {room_of(path) for path in sources()}


@pytest.mark.parametrize("path", sources())
def test_imports_go_down(path: str) -> None:
    room = room_of(path)
    wrong = sorted(other for other in imported_rooms(path) if other != room and ORDER[other] <= ORDER[room])
    assert not wrong, f"{path} imports {wrong}, which do not stand below {room} in docs/architecture.md"


def test_packages_do_not_import_each_other() -> None:
    """No two packages of one row import each other either."""
    arrows = {(room_of(path), other) for path in sources() for other in imported_rooms(path)}
    assert not [(one, other) for one, other in arrows if one != other and (other, one) in arrows]
