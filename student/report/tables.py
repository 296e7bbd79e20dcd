"""Tables of a report, as plain values that a template lays out."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: as it is read.
        value: what the column is sorted by; None is always last.
        best: whether it is the best of its column.
        notes: numbers of footnotes.
        detail: in small letters below the text.
    """

    text: str
    value: float | None = None
    best: bool = False
    notes: tuple[int, ...] = ()
    detail: str = ""


EMPTY = Cell("")


@dataclass(frozen=True)
class Column:
    """Head of a column, with a second line."""

    title: str
    unit: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Rows:
    """Rows that stay together however the table is sorted; the first cell of each is its name."""

    title: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Table:
    """A table with groups of rows."""

    caption: str
    columns: Sequence[Column]
    groups: Sequence[Rows]


def number(value: float, form: str = ",.3f") -> Cell:
    """A cell for a number."""
    return Cell(format(value, form), value)
