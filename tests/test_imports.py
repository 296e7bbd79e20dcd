"""Who may import whom: data flows one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ["data", "pipeline", "student", "cli"]
# Of the student, each may import those on lines above its own; "" is the student itself.
STUDENT = [
    [""],
    ["training", "encoding"],
    ["evaluation"],
    ["finetuning"],
    ["export", "reduction", "report"],
    ["sharing"],
]
# A student is written with its card, which is made of the tables that a report has.
EXEMPT = {("student/folder.py", "sharing")}


def imported(file: Path) -> set[tuple[str, str]]:
    """Part and, of the student, package of each module of this project that a file imports, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {f"{alias.name}." for alias in node.names}
    # The version alone is anybody's.
    names = {name for name in names if name.startswith("sentence_distill.") and name != "sentence_distill.__version__"}
    parts = [[*name.split("."), ""][1:3] for name in names]
    return {(part, package if (ROOT / part / package).is_dir() else "") for part, package in parts}


@pytest.mark.parametrize("part", PARTS)
def test_parts_import_only_those_below_them(part):
    below = PARTS[: PARTS.index(part) + 1]
    for file in (ROOT / part).rglob("*.py"):
        wrong = {other for other, _ in imported(file)} - {*below}
        assert not wrong, f"{file.relative_to(ROOT)} imports {wrong}"


def test_packages_of_the_student_import_only_those_below_them():
    levels = {package: level for level, packages in enumerate(STUDENT) for package in packages}
    assert {folder.parent.name for folder in (ROOT / "student").glob("*/__init__.py")} == levels.keys() - {""}
    for file in (ROOT / "student").rglob("*.py"):
        name, own = str(file.relative_to(ROOT)), "" if file.parent.name == "student" else file.parent.name
        for part, package in imported(file):
            allowed = levels[package] < levels[own] or package == own or (name, package) in EXEMPT
            assert part != "student" or allowed, f"{name} imports {package or 'the student'}"
