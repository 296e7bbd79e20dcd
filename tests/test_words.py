"""Docstrings say what a thing is or does: an imperative sentence or a noun phrase, in every file of the project."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A first line with one of these describes a thing from outside, and does not name it.
QUESTIONS = re.compile(r"(Of|What|Whether|That|Which|How)\b")


def docstrings(file: Path) -> list[tuple[int, str]]:
    """Return the docstrings of a module, of its classes and functions, and of attributes, with their lines."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                found.append((statement.lineno, value.value))
    return found


@pytest.mark.parametrize("part", ["data", "pipeline", "student", "cli", "benchmarks", "tests"])
def test_no_docstring_begins_as_a_question(part):
    wrong = [
        f"{file.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for file in sorted((ROOT / part).rglob("*.py"))
        for line, text in docstrings(file)
        if QUESTIONS.match(text.lstrip())
    ]
    assert not wrong, "\n".join(wrong)
