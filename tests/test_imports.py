"""Who may import whom: data flows one way."""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ["data", "pipeline", "student", "cli"]


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


def test_no_modules_import_each_other_in_a_circle():
    """Imports inside functions count: one that hides a circle is a fault of design."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for part in PARTS
        for file in (ROOT / part).rglob("*.py")
    }
    graph = {}
    for module, file in files.items():
        graph[module] = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sentence_distill."):
                base = node.module.removeprefix("sentence_distill.")
                graph[module] |= {name if (name := f"{base}.{alias.name}") in files else base for alias in node.names}
    assert set().union(*graph.values()) <= files.keys() | set(PARTS)
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(" imports ".join(reversed(error.args[1]))) from None


def test_benchmarks_import_what_is_there():
    missing = []
    for file in (ROOT / "benchmarks").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sentence_distill"):
                # A module of a package is no attribute of it before it is imported.
                missing += [
                    f"{file.relative_to(ROOT)}: {node.module}.{alias.name}"
                    for alias in node.names
                    if not (find_spec(node.module) and hasattr(import_module(node.module), alias.name))
                    and not find_spec(f"{node.module}.{alias.name}")
                ]
    assert not missing


def test_the_tree_in_the_design_names_every_module_and_no_other():
    tree = (ROOT / "docs/design.md").read_text(encoding="utf-8").split("```")[1]
    named: dict[str, set[str]] = {}
    for line in tree.splitlines()[1:]:
        if not line.startswith(" "):
            part = line.partition("/")[0]
            named[part] = set()
        else:
            # Two blanks at least between names and what they are.
            named[part] |= set(re.split(r"\s{2,}", line.strip())[0].split(", "))
    there = {part: {file.stem for file in (ROOT / part).glob("*.py")} - {"__init__", "__main__"} for part in PARTS}
    assert named == there
