"""Rows of a table with all their columns: labels are read from them, and predictions written beside them."""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet

from sentence_distill.data.corpus import detect_format
from sentence_distill.data.errors import UserError
from sentence_distill.data.lines import MAX_LINE_BYTES
from sentence_distill.data.sources import Source, cut_short, open_seekable, open_source
from sentence_distill.data.tables import BATCH_ROWS, arrow_batches, quoting

STREAM_FORMATS = ("jsonl", "csv", "tsv", "text")
"""Formats that can be read from a pipe; beside them there are Parquet and Arrow."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Args:
        where: file and line, or row, for messages.
        cells: values by column.
        schema: of the Parquet or Arrow file that the row is from; None where columns have no types.
    """

    where: str
    cells: dict[str, Any]
    schema: pa.Schema | None = None

    def text(self, column: str) -> str:
        """The text in a column; "" where it is null.

        Raises:
            UserError: there is no such column in this row, or it holds something else.
        """
        value = self.value(column)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise UserError(f"{self.where}: column {column!r} holds {value!r}, not text; name another column")
        try:
            # A lone surrogate is legal in JSON's escapes, and in no encoding of text.
            value.isascii() or value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{self.where}: the text in column {column!r} is not Unicode; correct that row") from None
        return value

    def value(self, column: str) -> Any:
        """What a column holds.

        Raises:
            UserError: there is no such column in this row.
        """
        try:
            return self.cells[column]
        except KeyError:
            raise UserError(f"{self.where}: no column {column!r}, it has {', '.join(self.cells) or 'none'}") from None


def read_rows(source: Source, format: str | None = None, text_column: str = "text") -> Iterator[Row]:
    """Yield the rows of a file, compressed or not, from first to last.

    Args:
        source: the file.
        format: one of `STREAM_FORMATS`, "parquet" or "arrow"; None finds it from the name and the first bytes.
        text_column: the column of which a line of a plain text file is a row.

    Raises:
        UserError: the file can't be read to its end; it names the file and, where there are lines, the line.
    """
    with cut_short(source.name):
        kind = format or detect_format(source)
        if kind in ("parquet", "arrow"):
            with open_seekable(source) as stream:
                yield from _arrow_rows(arrow_batches(stream)[1] if kind == "arrow" else _parquet(stream), source.name)
            return
        with open_source(source) as stream:
            yield from rows_of_stream(stream, source.name, kind, text_column)


def rows_of_stream(stream: BinaryIO, name: str, format: str, text_column: str = "text") -> Iterator[Row]:
    """Yield the rows of a stream of bytes; see `read_rows`.

    Args:
        stream: what to read, decompressed.
        name: of it, for messages.
        format: one of `STREAM_FORMATS`.
        text_column: see `read_rows`.
    """
    if format in ("csv", "tsv"):
        yield from _csv_rows(stream, name, "," if format == "csv" else "\t")
        return
    for number, line in enumerate(stream, start=1):
        where = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
        if format != "jsonl":
            yield Row(where, {text_column: text})
        elif text.strip():
            yield Row(where, _json_object(text, where))


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error}); write one object a line") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}: not a JSON object; write one object a line")
    return value


def _csv_rows(stream: BinaryIO, name: str, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(
        io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, quoting=quoting(delimiter), strict=True
    )
    try:
        header = next(reader, [])
        _check_names(header, name)
        for cells in reader:
            where = f"{name}, line {reader.line_num}"
            if not cells:
                continue
            if len(cells) != len(header):
                raise UserError(f"{where}: {len(cells)} cells, where the header names {len(header)} columns")
            yield Row(where, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        where = f"{name}, line {reader.line_num}"
        if "field limit" in str(error):
            open_quote = "; is a quote before it never closed?" if delimiter == "," else "; shorten it"
            raise UserError(f"{where}: a cell of over {MAX_LINE_BYTES:,} characters{open_quote}") from None
        raise UserError(f"{where}: {error}; quote cells as CSV does") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{name}, behind line {reader.line_num}: not UTF-8; save the file as UTF-8") from error


def _check_names(columns: Sequence[str], name: str) -> None:
    if twice := [column for column in columns if columns.count(column) > 1]:
        raise UserError(f"{name}: its header names {twice[0]!r} twice; rename one of them")


def _parquet(stream: Any) -> Iterator[pa.RecordBatch]:
    yield from pa.parquet.ParquetFile(stream).iter_batches(batch_size=BATCH_ROWS)


def _arrow_rows(batches: Iterable[pa.RecordBatch], name: str) -> Iterator[Row]:
    number = 0
    for batch in batches:
        schema = batch.schema
        _check_names(schema.names, name)
        try:
            rows = batch.to_pylist()
        except (ValueError, OverflowError) as error:
            # Text that is not UTF-8, or a date beyond those that Python has.
            raise UserError(f"{name}, row {number + 1} and on: a value can't be read ({error})") from None
        for cells in rows:
            number += 1
            yield Row(f"{name}, row {number}", cells, schema)


def texts_of(rows: Sequence[Row], columns: Sequence[str]) -> tuple[list[str], ...]:
    """The texts of rows, column after column."""
    return tuple([row.text(column) for row in rows] for column in columns)
