"""Readers of formats with columns: JSON lines and arrays, CSV, TSV, Parquet and Arrow, shared by all commands."""

import csv
import json
import re
import textwrap
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import accumulate, chain
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
    open_text,
    read_lines,
    shown_bytes,
)
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Row, as_text
from sentence_distill.data.sources import Source, cut_short

BATCH_ROWS = 8192
_NAMES_CHARACTERS = 1000
_CHUNK_CHARACTERS = 1 << 16
# Delimiters of files that are called CSV; the first one found in the header is used.
_DELIMITERS = (",", ";", "\t", "|")
# Text before the first object of a JSON array, and between two objects.
_BEFORE = re.compile(r"[\ufeff \t\r\n\[]*")
_BETWEEN = re.compile(r"[ \t\r\n]*,?[ \t\r\n]*")


def read_table(
    source: Source, kind: str, start: Position, columns: Sequence[str], only: Sequence[str] | None = None
) -> Iterator[Row]:
    """Yield the rows of a file in format `kind` from `start` on; rows that can't be used have a reason.

    The text columns, `columns`, must exist. From Parquet and Arrow, the columns `only` are read, by default all.
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


def _check_columns(name: str, there: list[str], columns: Sequence[str], only: Sequence[str] | None = None) -> None:
    """Refuse a table that lacks one of `columns`, or has two columns of one name among those that are read."""
    if missing := [column for column in columns if column not in there]:
        # Shortened: in a file without a header, the first row of text is taken for names.
        found = textwrap.shorten(", ".join(map(str, there)), _NAMES_CHARACTERS, placeholder=" …") or "none"
        raise UserError(f"{name}: no column {missing[0]!r}; it has {found}; name one with --text-column")
    if twice := [column for column in (there if only is None else columns) if there.count(column) > 1]:
        raise UserError(f"{name} has two columns {twice[0]!r}; rename one of them")


def _json_lines(source: Source, start: Position, columns: Sequence[str]) -> Iterator[Row]:
    # A reader that starts further on has a plan, and making it checked the first object.
    is_first = start.record == 0
    for line in read_lines(source, start):
        position, where = line.position, f"{source.name}, line {line.position.record + 1}"
        if line.text is None:
            yield Row(where, {}, position=position, reason=line.reason, excerpt=line.excerpt)
            continue
        if not line.text.strip():
            continue
        try:
            value, reason = json.loads(line.text), "not a JSON object"
        except (ValueError, RecursionError):  # not JSON, or a number with thousands of digits
            value, reason = None, "not JSON"
        if isinstance(value, dict):
            if is_first:
                _check_columns(f"{where}: its first object", list(value), columns)
                is_first = False
            yield Row(where, value, position=position)
            continue
        if is_first and position.record == 0 and line.text.lstrip().startswith("{"):
            raise UserError(
                f"{where} begins a JSON object that continues on the next line; write one object per line: "
                "jq -c . FILE.json > FILE.jsonl (or jq -c '.NAME[]' for the objects in a list)"
            )
        yield Row(where, {}, position=position, reason=reason, excerpt=line.text[:EXCERPT_CHARACTERS])


def _json_array(source: Source, start: Position, columns: Sequence[str]) -> Iterator[Row]:
    """Yield the objects of a JSON array one at a time, so that the array is never in memory as a whole."""
    decoder = json.JSONDecoder()
    number, offset, buffer, place = start.record, start.offset, "", 0
    with open_text(source, offset) as text:
        while True:
            between = (_BETWEEN if number else _BEFORE).match(buffer, place)
            assert between is not None, "both patterns match the empty string"
            offset += byte_size(between[0])
            place = between.end()
            if buffer.startswith("]", place):
                return
            try:
                value, end = decoder.raw_decode(buffer, place)
            except (ValueError, RecursionError) as error:
                # Doubling the buffer keeps the number of attempts to parse a long object small.
                waiting = len(buffer) - place
                more = text.read(max(waiting, _CHUNK_CHARACTERS)) if waiting <= MAX_LINE_CHARACTERS else ""
                if not more:
                    raise UserError(
                        f"{source.name}, object {number + 1}, which begins at byte {offset + 1:,}, is not JSON, or the "
                        f"array is truncated there ({error.args[0].partition(':')[0]}); correct it"
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
                _check_columns(f"{where}: its first object", list(value), columns)
            yield Row(where, value, position=position)


def quoting(delimiter: str) -> Literal[0, 3]:
    """Return the `csv` constant for quoting: none in TSV, as in GLUE's files and most others."""
    return csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL


def _csv(
    source: Source, kind: str, start: Position, columns: Sequence[str], only: Sequence[str] | None
) -> Iterator[Row]:
    """Yield the rows of a CSV or TSV with a header; quoted cells of a CSV may contain line ends."""
    with closing(lines_of(source, 0)) as lines:
        ahead = []
        for line in lines:
            ahead.append(line)
            if line[0].strip():
                break
        first = ahead[-1][0] if ahead else ""
        delimiter = "\t" if kind == "tsv" else next((mark for mark in _DELIMITERS if mark in first), ",")
        # A tab-separated file named .csv may have quotes, like other CSV.
        format = {"delimiter": delimiter, "quoting": quoting("\t" if kind == "tsv" else ",")}
        table = _CsvRows(source.name, chain(ahead, lines), format)
        header = table.next_row()
        if header is None:
            raise UserError(f"{source.name} is empty; its first line should name the columns")
        _check_columns(source.name, header, columns, only)
        if not start.record:
            yield from table.after(header, Position(start.file))
            return
    with closing(lines_of(source, start.offset)) as lines:
        yield from _CsvRows(source.name, lines, format).after(header, start)


class _CsvRows:
    """Rows of cells, with the number of lines and bytes that the parser has consumed.

    Quotes that violate RFC 4180, and quotes that are never closed, are errors: reading on would join or cut cells.
    """

    def __init__(self, name: str, lines: Iterable[tuple[str, int, bool]], format: dict[str, Any]) -> None:
        self._name = name
        self._number = self._size = 0
        # Lines of the current row, for error messages.
        self._lines: list[str] = []
        csv.field_size_limit(MAX_LINE_CHARACTERS)
        # Blank lines are not rows.
        self._rows = filter(None, csv.reader(self._counted(lines), strict=True, **format))

    def _counted(self, lines: Iterable[tuple[str, int, bool]]) -> Iterator[str]:
        for line, size, complete in lines:
            self._number += 1
            self._size += size
            if not complete:
                raise UserError(
                    f"{self._name}, line {self._number}: over {MAX_LINE_CHARACTERS:,} characters; are line ends "
                    "missing?"
                )
            self._lines.append(line)
            yield line

    def next_row(self) -> list[str] | None:
        """Return the cells of the next row; None at the end."""
        self._lines.clear()
        try:
            return next(self._rows, None)
        except csv.Error as error:
            where = f"{self._name}, line {self._number - len(self._lines) + 1}"
            text = "".join(self._lines)
            if "field limit" in str(error):
                problem = f"a cell of over {MAX_LINE_CHARACTERS:,} characters; is a quote there never closed?"
            elif '\\"' in text:
                problem = (
                    'quotes inside a cell are escaped by backslashes (\\"), as Spark and MySQL do; write JSON '
                    'lines, or double the quotes: in Spark .option("escape", "\\"")'
                )
            elif "end of data" in str(error):
                problem = "a quote opens there and is never closed; close it, or double it if it is text"
            else:
                problem = f"there is text after a cell's closing quote; double quotes inside a quoted cell ({error})"
            raise UserError(f"{where}: {problem}") from None

    def after(self, header: Sequence[str], start: Position) -> Iterator[Row]:
        """Yield the remaining rows, the first of which is at `start`."""
        number = start.record
        while True:
            # Blank lines before a row belong to it.
            position = Position(start.file, number, start.offset + self._size)
            # Line numbers are known only if the file is read from its beginning.
            place = f"row {number + 1}" if start.record else f"line {self._number + 1}"
            if (cells := self.next_row()) is None:
                return
            number += 1
            if len(cells) == len(header):
                yield Row(f"{self._name}, {place}", dict(zip(header, cells, strict=True)), position=position)
            else:
                excerpt = "".join(self._lines).strip()[:EXCERPT_CHARACTERS]
                excerpt = excerpt if is_utf8(excerpt) else shown_bytes(excerpt)
                yield Row(
                    f"{self._name}, {place}", {}, position=position, reason="wrong number of cells", excerpt=excerpt
                )


def _arrow(
    name: str, stream: IO[bytes], kind: str, start: Position, columns: Sequence[str], only: Sequence[str] | None
) -> Iterator[Row]:
    schema, number, batches = _batches(stream, kind, start.record, only)
    _check_columns(name, schema.names, columns, only)
    for column in columns:
        _require_text(name, column, schema.field(column).type)
    for batch in batches:
        skipped = min(start.record - number, batch.num_rows) if number < start.record else 0
        number += skipped
        cells = [_values(name, number, column) for column in batch.slice(skipped).columns]
        for values in zip(*cells, strict=True):
            row = dict(zip(batch.schema.names, values, strict=True))
            yield Row(f"{name}, row {number + 1}", row, schema, Position(start.file, number))
            number += 1


def _batches(
    stream: IO[bytes], kind: str, start: int, only: Sequence[str] | None
) -> tuple[pa.Schema, int, Iterator[pa.RecordBatch]]:
    """Return the schema, the number of the first row in the batches, and batches with row `start` and all after it."""
    if kind == "parquet":
        file = pa.parquet.ParquetFile(stream)
        ends = list(accumulate(file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)))
        # Row groups that end before the start are not decoded.
        skipped = bisect_right(ends, start)
        first, groups = ends[skipped - 1] if skipped else 0, list(range(skipped, len(ends)))
        there = None if only is None else [column for column in only if column in file.schema_arrow.names]
        batches = file.iter_batches(batch_size=BATCH_ROWS, row_groups=groups, columns=there) if groups else iter(())
        return file.schema_arrow, first, batches
    magic = stream.read(6)
    stream.seek(0)
    if magic == b"ARROW1":
        arrow = pa.ipc.open_file(stream)
        every = map(arrow.get_batch, range(arrow.num_record_batches))
    else:
        arrow = every = pa.ipc.open_stream(stream)
    if only is None:
        return arrow.schema, 0, iter(every)
    there = [column for column in only if column in arrow.schema.names]
    return arrow.schema, 0, (batch.select(there) for batch in every)


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
    """Return the values of a column; text that is not UTF-8 stays bytes, so that only its row is rejected."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError) as error:
        if not (isinstance(error, UnicodeDecodeError) and _is_text(column.type)):
            # For example, a date outside of Python's range.
            raise UserError(f"{name}, row {first + 1} and after: a value can't be read ({error})") from None
    values = column.cast(pa.large_binary()).to_pylist()
    return [value if value is None or (found := as_text(value))[1] else found[0] for value in values]
