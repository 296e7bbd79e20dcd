"""Records and rows: a text, or the reason why there is none, and a table row with all its columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

LINE_FORMATS = ("text", "wikiextractor")
"""Formats whose records are lines or paragraphs, without columns; the others are tables."""
InputFormat = Literal["text", "wikiextractor", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]

# Separates the two sides of a pair. A sentence can't contain it, because normalization replaces it by a blank.
PAIR_SEPARATOR = "\t"
EXCERPT_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Position:
    """A position in a corpus from which reading can start."""

    file: int = 0
    record: int = 0
    """Number of lines or rows before it in the file."""
    offset: int = 0
    """Number of bytes before it in the decompressed file; 0 for Parquet and Arrow, which are not read by bytes."""


@dataclass(frozen=True, slots=True)
class Record:
    """The text of a line or row, a pair joined by `PAIR_SEPARATOR`; or None, and the `reason` why it can't be used."""

    position: Position
    text: str | None
    reason: str = ""
    excerpt: str = ""
    """Beginning of a record that can't be used, for rejected.jsonl."""
    headings: tuple[str, ...] = ()
    """Lines of an article that are headings, removed from its text."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row with its columns, or the `reason` why it can't be used."""

    where: str
    """File and line, or row, for messages."""
    cells: dict[str, Any]
    schema: "pa.Schema | None" = None
    """Schema of the Parquet or Arrow file that the row is from; None for formats without types."""
    position: Position = Position()
    reason: str = ""
    excerpt: str = ""

    def value(self, column: str) -> Any:
        """Return the value of a column; refuse a row that can't be used or lacks the column."""
        if self.reason:
            raise UserError(f"{self.where}: {self.reason}; correct or remove that row")
        if column not in self.cells:
            there = ", ".join(map(str, self.cells)) or "none"
            raise UserError(f"{self.where}: no column {column!r}, it has {there}")
        return self.cells[column]

    def text(self, column: str) -> str:
        """Return the text in a column, "" for a null; refuse other values."""
        value = self.value(column)
        if value is None:
            return ""
        text, problem = as_text(value)
        if problem == "not text":
            raise UserError(f"{self.where}: column {column!r} holds {value!r}, not text; name another column")
        if problem:
            raise UserError(f"{self.where}: the text in column {column!r} is {problem}; correct that row")
        return text

    def record(self, columns: Sequence[str]) -> Record:
        """Make a record of the text in one column or the pair in two; what makes it unusable is its reason."""
        if self.reason:
            return Record(self.position, None, self.reason, self.excerpt)
        sides = []
        for column in columns:
            if column not in self.cells:
                return self._rejected(f"no field {column}", self.cells)
            value = self.cells[column]
            if value is None:
                return Record(self.position, None, "null")
            text, problem = as_text(value)
            if problem:
                return self._rejected(f"field {column} is not a string" if problem == "not text" else problem, value)
            sides.append(text)
        if len(sides) > 1:
            sides = [side.replace(PAIR_SEPARATOR, " ") for side in sides]
        return Record(self.position, PAIR_SEPARATOR.join(sides))

    def _rejected(self, reason: str, value: Any) -> Record:
        excerpt = repr(value)[2:-1] if isinstance(value, bytes) else str(value)
        # Lone surrogates can't be written to rejected.jsonl.
        excerpt = excerpt[:EXCERPT_CHARACTERS].encode(errors="backslashreplace").decode()
        return Record(self.position, None, reason, excerpt)


def as_text(value: Any) -> tuple[str, str]:
    """Return the text in a cell and "", or "" and the problem: "not text" or "not UTF-8".

    Bytes are read as UTF-8: Parquet files written by Hive, Impala or Java often lack the string annotation.
    """
    try:
        if isinstance(value, bytes):
            return value.decode(), ""
        if not isinstance(value, str):
            return "", "not text"
        if not value.isascii():
            # JSON escapes may spell lone surrogates, which no encoding can represent.
            value.encode()
    except UnicodeError:
        return "", "not UTF-8"
    return value, ""
