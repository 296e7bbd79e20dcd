"""Units of reading: a record, which is a text or the reason why there is none, and a row with all its columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

LINE_FORMATS = ("text", "wikiextractor")
"""Formats whose records are lines or paragraphs, without columns."""
TABLE_FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow")
"""Formats whose rows have columns."""
FORMATS = (*LINE_FORMATS, *TABLE_FORMATS)
InputFormat = Literal["text", "wikiextractor", "jsonl", "json", "csv", "tsv", "parquet", "arrow"]
"""One of `FORMATS`, as the type of an option."""

# Between the two sides of a pair: a sentence can't hold one, because normalisation makes it a blank.
PAIR_SEPARATOR = "\t"
EXCERPT_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a corpus from which reading can begin.

    `file` counts the sources, `record` the lines or rows before this one in that file, `offset` the bytes
    before it in the decompressed file (0 in Parquet and Arrow, which are not read byte by byte).
    """

    file: int = 0
    record: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its text, that of a pair joined by `join_sides`, or, if it can't be used, None and the `reason`.

    `excerpt` shows a record that can't be used in rejected.jsonl. `headings` are lines of an article that are no
    sentences and were taken out of its text.
    """

    position: Position
    text: str | None
    reason: str = ""
    excerpt: str = ""
    headings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One row with its columns.

    Args:
        where: file and line, or row, for messages.
        cells: values by column.
        schema: of the Parquet or Arrow file that the row is from; None if columns have no types.
        position: where it begins.
        reason: why the row can't be used, or "".
        excerpt: the beginning of a row that can't be used.
    """

    where: str
    cells: dict[str, Any]
    schema: "pa.Schema | None" = None
    position: Position = Position()
    reason: str = ""
    excerpt: str = ""

    def text(self, column: str) -> str:
        """Return the text in a column; "" for a null.

        Raises:
            UserError: the row can't be used, has no such column, or holds something else there.
        """
        value = self.value(column)
        if value is None:
            return ""
        text, problem = as_text(value)
        if problem == "not text":
            raise UserError(f"{self.where}: column {column!r} holds {value!r}, not text; name another column")
        if problem:
            raise UserError(f"{self.where}: the text in column {column!r} is {problem}; correct that row")
        return text

    def value(self, column: str) -> Any:
        """Return what a column holds.

        Raises:
            UserError: the row can't be used, or has no such column.
        """
        if self.reason:
            raise UserError(f"{self.where}: {self.reason}; correct or remove that row")
        try:
            return self.cells[column]
        except KeyError:
            raise UserError(
                f"{self.where}: no column {column!r}, it has {', '.join(map(str, self.cells)) or 'none'}"
            ) from None

    def record(self, columns: Sequence[str]) -> Record:
        """Make a record of the text in one column, or of the pair in two; what can't be used becomes its reason."""
        if self.reason:
            return Record(self.position, None, self.reason, self.excerpt)
        sides = []
        for column in columns:
            if column not in self.cells:
                return self._rejected(f"no field {column}")
            value = self.cells[column]
            if value is None:
                return Record(self.position, None, "null")
            text, problem = as_text(value)
            if problem:
                return self._rejected(f"field {column} is not a string" if problem == "not text" else problem, value)
            sides.append(text)
        return Record(self.position, join_sides(sides))

    def _rejected(self, reason: str, value: Any = None) -> Record:
        excerpt = repr(value)[2:-1] if isinstance(value, bytes) else str(self.cells if value is None else value)
        # A lone surrogate could not be written to rejected.jsonl.
        return Record(
            self.position, None, reason, excerpt[:EXCERPT_CHARACTERS].encode(errors="backslashreplace").decode()
        )


def as_text(value: Any) -> tuple[str, str]:
    """Return the text that a cell holds and "", or "" and why it is none: "not text", or "not UTF-8".

    Bytes are text in UTF-8: Parquet files written by Hive, Impala or Java often lack the mark that says so.
    """
    if isinstance(value, bytes):
        try:
            return value.decode(), ""
        except UnicodeDecodeError:
            return "", "not UTF-8"
    if not isinstance(value, str):
        return "", "not text"
    if not value.isascii():
        try:
            # Lone surrogates are legal in JSON's escapes, and in no encoding of text.
            value.encode()
        except UnicodeEncodeError:
            return "", "not UTF-8"
    return value, ""


def join_sides(sides: Sequence[str]) -> str:
    """Join the text of a record from one column, or from the two of a pair."""
    if len(sides) == 1:
        return sides[0]
    return PAIR_SEPARATOR.join(side.replace(PAIR_SEPARATOR, " ") for side in sides)
