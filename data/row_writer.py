"""Writers of rows: JSON lines, CSV, TSV and Parquet."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import PurePath
from typing import Any, BinaryIO, Protocol

import pyarrow as pa
import pyarrow.parquet

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.records import Row
from sentence_distill.data.tables import quoting

OUTPUT_FORMATS = ("jsonl", "csv", "tsv", "parquet")


class RowWriter(Protocol):
    """Writes rows."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows.

        Raises:
            UserError: the format can't hold one of them; it names the row.
        """

    def close(self) -> None:
        """Write what is left; the file stays open."""


def output_format(name: str) -> str:
    """The format that a file's name stands for.

    Raises:
        UserError: it is none of `OUTPUT_FORMATS`.
    """
    suffix = PurePath(name).suffix.lower().removeprefix(".")
    if suffix not in OUTPUT_FORMATS:
        raise UserError(f"--out {name}: the name should end in .{', .'.join(OUTPUT_FORMATS)}")
    return suffix


@contextmanager
def open_writer(file: BinaryIO, format: str) -> Iterator[RowWriter]:
    """A writer of one of `OUTPUT_FORMATS` into an open file."""
    writer: RowWriter
    if format == "parquet":
        writer = _Parquet(file)
    else:
        writer = _JsonLines(file) if format == "jsonl" else _Csv(file, "," if format == "csv" else "\t")
    try:
        yield writer
    finally:
        writer.close()


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, rows: Sequence[Row]) -> None:
        self._file.write(_encoded("".join(f"{_json(row)}\n" for row in rows), rows))

    def close(self) -> None:
        self._file.flush()


class _Csv:
    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        self._file = file
        self._delimiter = delimiter
        self._columns: list[str] = []

    def write(self, rows: Sequence[Row]) -> None:
        lines = []
        if not self._columns:
            self._columns = list(rows[0].cells)
            lines = [_line(self._columns, self._delimiter, rows[0])]
        _check_columns(rows, self._columns)
        lines += (_line([row.cells[column] for column in self._columns], self._delimiter, row) for row in rows)
        self._file.write(_encoded("".join(lines), rows))

    def close(self) -> None:
        self._file.flush()


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._writer: pa.parquet.ParquetWriter | None = None

    def write(self, rows: Sequence[Row]) -> None:
        for _, alike in groupby(rows, key=attrgetter("schema")):
            self._write_alike(list(alike))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _write_alike(self, rows: Sequence[Row]) -> None:
        """Append rows of one schema."""
        _check_columns(rows, self._writer.schema.names if self._writer else list(rows[0].cells))
        try:
            schema = _schema(rows)
            if self._writer is None:
                self._writer = pa.parquet.ParquetWriter(self._file, schema)
            elif pa.unify_schemas([self._writer.schema, schema], promote_options="permissive") != self._writer.schema:
                # Arrow would leave out what a struct of the first rows lacks.
                raise pa.ArrowTypeError("types are not those of the first rows")
            self._writer.write_table(pa.Table.from_pylist([row.cells for row in rows], schema=self._writer.schema))
        except (pa.ArrowException, OverflowError) as error:
            raise UserError(
                f"{rows[0].where} and on: a column's values have no type of Parquet, or several ({first_line(error)}); "
                "write .jsonl instead"
            ) from None
        except UnicodeEncodeError:
            _check_unicode(rows)
            raise


def _schema(rows: Sequence[Row]) -> pa.Schema:
    """The types of the table that rows are from; those of other columns follow from what these hold."""
    given = [] if rows[0].schema is None else list(rows[0].schema)
    known = {field.name for field in given}
    others = pa.Table.from_pylist(
        [{column: value for column, value in row.cells.items() if column not in known} for row in rows]
    ).schema
    # Text is the likeliest of what may follow where nothing is held so far.
    return pa.schema(
        [*given, *(field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in others)]
    )


def _check_columns(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Refuse a row whose columns are not those of the first one, which a table would leave out or leave empty."""
    expected = set(columns)
    for row in rows:
        if row.cells.keys() != expected:
            column = min(row.cells.keys() ^ expected)
            lacks = "there is no" if column in expected else "the first row has no"
            raise UserError(f"{row.where}: {lacks} column {column!r}; write .jsonl, whose rows may differ")


def _json(row: Row) -> str:
    # Dates and decimals of Parquet have no other form in JSON.
    def other(value: Any) -> str:
        if isinstance(value, bytes):
            raise UserError(f"{row.where}: a column holds bytes, which JSON can't; write .parquet")
        return str(value)

    try:
        return json.dumps(row.cells, ensure_ascii=False, allow_nan=False, default=other)
    except ValueError:
        return json.dumps(_finite(row.cells), ensure_ascii=False, default=other)


def _finite(value: Any) -> Any:
    """A value with null in place of NaN and the infinities, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _line(values: Sequence[Any], delimiter: str, row: Row) -> str:
    """A line of CSV, or of TSV without quotation marks."""
    plain = quoting(delimiter) == csv.QUOTE_NONE
    for value in values:
        if isinstance(value, bytes):
            raise UserError(f"{row.where}: a column holds bytes, which a text file can't; write .parquet")
        if isinstance(value, list | tuple | dict):
            nested = "an object" if isinstance(value, dict) else "a list"
            raise UserError(f"{row.where}: a column holds {nested}, which a cell can't; write .jsonl")
        if plain and any(mark in str(value) for mark in "\t\n\r"):
            raise UserError(f"{row.where}: a cell holds a tab or a line end, which TSV can't; write .csv or .jsonl")
    if plain:
        return "\t".join("" if value is None else str(value) for value in values) + "\n"
    text = io.StringIO(newline="")
    # Cells with a character of the line end are quoted, and readers end lines at a lone \r too.
    csv.writer(text, lineterminator="\r\n").writerow(values)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _encoded(text: str, rows: Sequence[Row]) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        _check_unicode(rows)
        raise


def _check_unicode(rows: Sequence[Row]) -> None:
    """Refuse text that no encoding has: a lone surrogate, which JSON's escapes allow."""
    for row in rows:
        for column, value in row.cells.items():
            try:
                json.dumps([column, value], ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                raise UserError(f"{row.where}: what column {column!r} holds is not Unicode; correct that row") from None
