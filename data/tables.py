"""Readers of what has columns: JSON lines and arrays, CSV, TSV, Parquet and Arrow, each one for all commands."""

import csv
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from sentence_distill.data.errors import UserError
from sentence_distill.data.lines import (
    MAX_LINE_CHARACTERS,
    byte_size,
    is_utf8,
    lines_of,
    read_lines,
    shown_bytes,
    text_from,
)
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record, Row
from sentence_distill.data.sources import Source
from sentence_distill.data.streams import cut_short

BATCH_ROWS = 8192
_NAMES_CHARACTERS = 1000
_CHUNK_CHARACTERS = 1 << 16
# What separates the cells of files that are called CSV; the first that a header holds.
_DELIMITERS = (",", ";", "\t", "|")
# What stands in front of the first object of a JSON array, and between two.
_BEFORE = re.compile(r"[\ufeff \t\r\n\[]*")
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")


def read_table(
    source: Source, kind: str, start: Position, columns: Sequence[str], only: Sequence[str] | None = None
) -> Iterator[Row]:
    """Yield the rows of a file from `start` on; a row that can't be used has a reason.

    Args:
        source: the file.
        kind: one of `TABLE_FORMATS`.
        start: where a row began.
        columns: of texts, which must be there.
        only: the columns to read of Parquet and Arrow; None reads all. The other formats give all of them anyway.

    Raises:
        UserError: the file can't be read to its end, is damaged, or lacks one of `columns`; it says where.
    """
    with cut_short(source.name):
        if kind == "jsonl":
            yield from _json_lines(source, start, columns)
        elif kind == "json":
            yield from _json_array(source, start, columns)
        elif kind in ("csv", "tsv"):
            yield from _csv(source, kind, start, columns, only)
        else:
            with source.open_seekable() as stream:
                yield from _arrow(source.name, stream, kind, start, columns, only)


def check_columns(name: str, there: list[str], columns: Sequence[str], only: Sequence[str] | None = None) -> None:
    """Refuse a table that lacks one of `columns`, or has one that is read twice.

    Args:
        name: of the file, for messages.
        there: the columns of the table.
        columns: those that are needed.
        only: those that are read, see `read_table`.

    Raises:
        UserError: it says what there is.
    """
    if missing := [column for column in columns if column not in there]:
        # A file without a header has its first row of text there.
        found = textwrap.shorten(", ".join(map(str, there)), _NAMES_CHARACTERS, placeholder=" …") or "none"
        raise UserError(f"{name}: no column {missing[0]!r}; it has {found}; name one with --text-column")
    if twice := [column for column in (there if only is None else columns) if there.count(column) > 1]:
        raise UserError(f"{name} has two columns {twice[0]!r}; rename one of them")


def _json_lines(source: Source, start: Position, columns: Sequence[str]) -> Iterator[Row]:
    # Whoever begins further on has a plan, for which the file was read from its beginning.
    is_first = start.record == 0
    for line in read_lines(source, start):
        if line.text is not None and not line.text.strip():
            continue
        row = json_row(source.name, line)
        if is_first and line.text is not None:
            if row.reason and line.position.record == 0 and line.text.lstrip().startswith("{"):
                raise UserError(
                    f"{source.name}, line 1 begins a JSON object that does not end there; write one object a line: "
                    "jq -c . FILE.json > FILE.jsonl (or jq -c '.NAME[]' for the objects in a list)"
                )
            if not row.reason:
                check_columns(f"{row.where}: its first object", list(row.cells), columns)
                is_first = False
        yield row


def json_row(name: str, line: Record) -> Row:
    """Make a row of a line of JSON."""
    where = f"{name}, line {line.position.record + 1}"
    if line.text is None:
        return Row(where, {}, position=line.position, reason=line.reason, excerpt=line.excerpt)
    try:
        value = json.loads(line.text)
    except (ValueError, RecursionError):  # not JSON, or a number with thousands of digits
        value, reason = None, "not JSON"
    else:
        reason = "not a JSON object"
    if isinstance(value, dict):
        return Row(where, value, position=line.position)
    return Row(where, {}, position=line.position, reason=reason, excerpt=line.text[:EXCERPT_CHARACTERS])


def _json_array(source: Source, start: Position, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the objects of a JSON array, one at a time, so that the whole of it is never in memory."""
    decoder = json.JSONDecoder()
    number, offset, buffer, place = start.record, start.offset, "", 0
    with (
        source.open() as stream,
        text_from(source.name, stream, offset, seekable=source.compression is None) as text,
    ):
        while True:
            between = (_BETWEEN if number else _BEFORE).match(buffer, place)
            assert between is not None, "both match nothing too"
            offset += byte_size(between[0])
            place = between.end()
            if buffer.startswith("]", place):
                return
            try:
                value, end = decoder.raw_decode(buffer, place)
            except (ValueError, RecursionError) as error:
                # As much again as is there, so that a long object is parsed few times.
                waiting = len(buffer) - place
                more = text.read(max(waiting, _CHUNK_CHARACTERS)) if waiting <= MAX_LINE_CHARACTERS else ""
                if not more:
                    raise UserError(
                        f"{source.name}, object {number + 1}, which begins at byte {offset + 1:,}, is not JSON, or the "
                        f"array is cut short there ({error.args[0].partition(':')[0]}); correct it"
                    ) from None
                buffer, place = buffer[place:] + more, 0
                continue
            found, place = buffer[place:end], end
            position, where = Position(start.file, number, offset), f"{source.name}, object {number + 1}"
            offset += byte_size(found)
            number += 1
            if not isinstance(value, dict):
                excerpt = found[:EXCERPT_CHARACTERS]
                yield Row(where, {}, position=position, reason="not a JSON object", excerpt=excerpt)
                continue
            if number == 1:
                check_columns(f"{where}: its first object", list(value), columns)
            yield Row(where, value, position=position)


def quoting(delimiter: str) -> Literal[0, 3]:
    """Return how cells are quoted, as `csv` calls it: in TSV never, which is how GLUE's and most are written."""
    return csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL


def _csv(
    source: Source, kind: str, start: Position, columns: Sequence[str], only: Sequence[str] | None
) -> Iterator[Row]:
    seekable = source.compression is None
    with source.open() as stream:
        table = CsvTable(source.name, lines_of(source.name, stream, 0, seekable=seekable), kind, columns, only)
        if not start.record:
            yield from table.rows(start)
            return
    with source.open() as stream:
        yield from table.rows(start, lines_of(source.name, stream, start.offset, seekable=seekable))


class CsvTable:
    """A CSV or TSV with a header; cells of CSV may be quoted, and then hold line ends.

    A cell that is quoted in another way than RFC 4180 has it, or a quote that is never closed, would join or cut cells,
    so both are errors.
    """

    def __init__(
        self,
        name: str,
        lines: Iterator[tuple[str, int, bool]],
        kind: str,
        columns: Sequence[str],
        only: Sequence[str] | None,
    ) -> None:
        """Read the header.

        Args:
            name: of the file, for messages.
            lines: see `lines_of`, from the file's beginning.
            kind: "csv" or "tsv".
            columns: see `read_table`.
            only: see `read_table`.

        Raises:
            UserError: a column is missing, or is there twice.
        """
        self._name = name
        self._lines = _CountedLines(name, lines)
        first = self._lines.peek()
        self._delimiter = "\t" if kind == "tsv" else next((mark for mark in _DELIMITERS if mark in first), ",")
        # A CSV that is parted by tabs quotes as others do.
        self._quoting = quoting("\t" if kind == "tsv" else ",")
        self._header = next(self._parsed(self._lines), [])
        if not self._header:
            raise UserError(f"{name} is empty; its first line should name the columns")
        check_columns(name, self._header, columns, only)

    def rows(self, start: Position, lines: Iterator[tuple[str, int, bool]] | None = None) -> Iterator[Row]:
        """Yield the rows from `start` on: those behind the header, or those of `lines`, which begin there."""
        counted = self._lines if lines is None else _CountedLines(self._name, lines)
        number, offset = start.record, start.offset
        parsed = self._parsed(counted)
        while True:
            before = counted.size
            line = counted.number + 1
            counted.row.clear()
            if (cells := next(parsed, None)) is None:
                return
            if lines is None or number > start.record:
                # Blank lines in front of a row are skipped with it.
                offset = before if lines is None else start.offset + before
            where = f"{self._name}, line {line}" if lines is None else f"{self._name}, row {number + 1}"
            position = Position(start.file, number, offset)
            number += 1
            if len(cells) == len(self._header):
                yield Row(where, dict(zip(self._header, cells, strict=True)), position=position)
            else:
                excerpt = "".join(counted.row).strip()[:EXCERPT_CHARACTERS]
                excerpt = excerpt if is_utf8(excerpt) else shown_bytes(excerpt)
                yield Row(where, {}, position=position, reason="wrong number of cells", excerpt=excerpt)

    def _parsed(self, lines: "_CountedLines") -> Iterator[list[str]]:
        csv.field_size_limit(MAX_LINE_CHARACTERS)
        reader = csv.reader(lines, delimiter=self._delimiter, quoting=self._quoting, strict=True)
        while True:
            try:
                # A blank line is no row.
                if cells := next(reader):
                    yield cells
            except StopIteration:
                return
            except csv.Error as error:
                raise UserError(self._problem(str(error), lines)) from None

    def _problem(self, said: str, lines: "_CountedLines") -> str:
        text = "".join(lines.row)
        quote = _last_quote(text, self._delimiter)
        first = lines.number - len(lines.row) + 1
        line = first + len(text[: quote or 0].splitlines()) - (0 if text[: quote or 0].endswith(("\n", "\r")) else 1)
        where = f"{self._name}, line {max(line, first)}"
        if "field limit" in said:
            open_quote = "" if quote is None else "; is the quote there never closed?"
            return f"{where}: a cell of over {MAX_LINE_CHARACTERS:,} characters{open_quote or '; shorten it'}"
        if '\\"' in text:
            return (
                f'{where}: quotes inside a cell are escaped by backslashes (\\"), as Spark and MySQL do; write JSON '
                'lines, or double the quotes: in Spark .option("escape", "\\"")'
            )
        if "end of data" in said:
            return f"{where}: a quote opens there and is never closed; close it, or double it if it is text"
        return f"{where}: there is text behind a cell's closing quote; double quotes inside a quoted cell ({said})"


class _CountedLines:
    """Feeds the CSV parser, and counts what it took; `row` holds the lines since somebody cleared it."""

    def __init__(self, name: str, lines: Iterator[tuple[str, int, bool]]) -> None:
        self._name, self._source = name, lines
        self._next: tuple[str, int, bool] | None = None
        self.row: list[str] = []
        self.number = self.size = 0

    def peek(self) -> str:
        """Return the first line that is not blank without taking it."""
        while self._next is None or not self._next[0].strip():
            if self._next is not None:
                next(self)
            if (line := next(self._source, None)) is None:
                return ""
            self._next = line
        return self._next[0]

    def __iter__(self) -> "_CountedLines":
        return self

    def __next__(self) -> str:
        line, size, complete = self._next or next(self._source)
        self._next = None
        self.number += 1
        self.size += size
        if not complete:
            raise UserError(
                f"{self._name}, line {self.number}: over {MAX_LINE_CHARACTERS:,} characters; does it lack line ends?"
            )
        self.row.append(line)
        return line


def _last_quote(text: str, delimiter: str) -> int | None:
    """Return where the last quoted cell of a row begins: the one that is not closed, or has something behind it."""
    begins, place, opened = True, 0, None
    while place < len(text):
        if begins and text[place] == '"':
            opened = place
            place = text.find('"', place + 1)
            while place >= 0 and text[place + 1 : place + 2] == '"':
                place = text.find('"', place + 2)
            if place < 0 or text[place + 1 : place + 2] not in (delimiter, "\r", "\n", ""):
                return opened
        begins = text[place] in (delimiter, "\r", "\n")
        place += 1
    return opened


def _arrow(
    name: str, stream: IO[bytes], kind: str, start: Position, columns: Sequence[str], only: Sequence[str] | None
) -> Iterator[Row]:
    schema, batches = _batches(stream, kind, start.record, only)
    check_columns(name, schema.names, columns, only)
    for column in columns:
        _require_text(name, column, schema.field(column).type)
    for number, batch in batches:
        # Text as bytes, so that a row that is not UTF-8 costs that row and not the file.
        cells = [_values(name, number, column) for column in batch.columns]
        for place, values in enumerate(zip(*cells, strict=True), start=number):
            if place >= start.record:
                cell = dict(zip(batch.schema.names, values, strict=True))
                yield Row(f"{name}, row {place + 1}", cell, schema, Position(start.file, place))


def _batches(
    stream: IO[bytes], kind: str, start: int, columns: Sequence[str] | None
) -> tuple[pa.Schema, Iterator[tuple[int, pa.RecordBatch]]]:
    """Return the schema, and batches with the number of their first row, from the one with row `start` on."""
    if kind == "parquet":
        file = pa.parquet.ParquetFile(stream)
        groups: list[int] = []
        first = 0
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            # Whole groups in front of the start are not even decoded.
            if not groups and first + rows <= start:
                first += rows
            else:
                groups.append(group)
        there = None if columns is None else [column for column in columns if column in file.schema_arrow.names]
        batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=there) if groups else iter(())
        return file.schema_arrow, _numbered(batches, first, start)
    magic = stream.read(6)
    stream.seek(0)
    if magic != b"ARROW1":
        reader = pa.ipc.open_stream(stream)
        return reader.schema, _numbered((_selected(batch, columns) for batch in reader), 0, start)
    arrow = pa.ipc.open_file(stream)
    every = (_selected(arrow.get_batch(place), columns) for place in range(arrow.num_record_batches))
    return arrow.schema, _numbered(every, 0, start)


def _selected(batch: pa.RecordBatch, columns: Sequence[str] | None) -> pa.RecordBatch:
    return batch if columns is None else batch.select([column for column in columns if column in batch.schema.names])


def _numbered(batches: Iterable[pa.RecordBatch], first: int, start: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    for batch in batches:
        if first + batch.num_rows > start:
            yield first, batch
        first += batch.num_rows


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _require_text(name: str, column: str, kind: pa.DataType) -> None:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    types = pa.types
    is_bytes = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    if not (_is_text(kind) or is_bytes or types.is_null(kind)):
        raise UserError(f"{name}: column {column!r} holds {kind}, not text; name one with --text-column")


def _values(name: str, first: int, column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError as error:
        if not _is_text(column.type):
            raise UserError(f"{name}, row {first + 1} and on: a value can't be read ({error})") from None
    except (ValueError, OverflowError) as error:
        # A date beyond those that Python has, for one.
        raise UserError(f"{name}, row {first + 1} and on: a value can't be read ({error})") from None
    values = column.cast(pa.large_binary()).to_pylist()
    return [value if value is None or not _decodes(value) else value.decode() for value in values]


def _decodes(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
