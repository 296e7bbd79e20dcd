"""Readers of table formats: Parquet, Arrow IPC, and CSV or TSV; a record is a row, its text one column or two."""

import csv
import io
import textwrap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import IO, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from sentence_distill.data.errors import UserError
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record, join_sides
from sentence_distill.data.sources import Source, check_encoding, open_seekable, open_source

BATCH_ROWS = 8192
_HEADER_BYTES = 1 << 20
# Of what CSV's reader takes at a time, and so the most that a row may have; its own default is 1 MiB.
_BLOCK_BYTES = 1 << 24
_NAMES_CHARACTERS = 1000


def read_parquet(source: Source, start: Position, fields: Sequence[str]) -> Iterator[Record]:
    """Yield the one or two columns `fields` of a Parquet file."""
    with open_seekable(source) as stream:
        file = pa.parquet.ParquetFile(stream)
        _check(source, file.schema_arrow, fields)
        yield from _rows(file.iter_batches(batch_size=BATCH_ROWS, columns=list(fields)), start, fields)


def read_arrow(source: Source, start: Position, fields: Sequence[str]) -> Iterator[Record]:
    """Yield the one or two columns `fields` of an Arrow IPC file or stream (the form in which `datasets` saves)."""
    with open_seekable(source) as stream:
        schema, batches = arrow_batches(stream)
        _check(source, schema, fields)
        yield from _rows(batches, start, fields)


def arrow_batches(stream: IO[bytes]) -> tuple[pa.Schema, Iterable[pa.RecordBatch]]:
    """Schema and batches of an Arrow IPC file or stream."""
    magic = stream.read(6)
    stream.seek(0)
    if magic != b"ARROW1":
        reader = pa.ipc.open_stream(stream)
        return reader.schema, reader
    file = pa.ipc.open_file(stream)
    return file.schema, (file.get_batch(i) for i in range(file.num_record_batches))


def quoting(delimiter: str) -> Literal[0, 3]:
    """How cells are quoted, as `csv` calls it: in TSV never, which is how GLUE's and most are written."""
    return csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL


def read_csv(source: Source, start: Position, fields: Sequence[str], delimiter: str) -> Iterator[Record]:
    """Yield the one or two columns `fields` of a CSV or TSV with a header; CSV's quoted cells may hold line ends."""
    quoted = quoting(delimiter) != csv.QUOTE_NONE
    _check_header(source, _csv_header(source, delimiter), fields)
    ragged: deque[pa.csv.InvalidRow] = deque()

    def skip(row: pa.csv.InvalidRow) -> str:
        ragged.append(row)
        return "skip"

    with open_source(source) as stream, _named_long_row(source, quoted):
        reader = pa.csv.open_csv(
            stream,
            # Threads would not tell a ragged row's number.
            read_options=pa.csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES),
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=skip,
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(fields), column_types=dict.fromkeys(fields, pa.binary())
            ),
        )
        # An empty batch at the end, for the ragged rows behind the last whole one.
        batches = chain(reader, [pa.RecordBatch.from_pylist([], reader.schema)])
        yield from _rows(batches, start, fields, ragged)


@contextmanager
def _named_long_row(source: Source, quoted: bool) -> Iterator[None]:
    try:
        yield
    except pa.ArrowInvalid as error:
        if "straddling object" not in str(error):
            raise
        cause = "is a quote in it or before it never closed?" if quoted else "does it lack line ends?"
        raise UserError(
            f"{source.name} has a row of over {_BLOCK_BYTES:,} bytes; {cause} Correct or shorten it"
        ) from error


def _csv_header(source: Source, delimiter: str) -> list[str]:
    with open_source(source) as stream:
        head = stream.read(_HEADER_BYTES)
    check_encoding(source, head)
    # Its own limit is lower, and a first line may be no header but text.
    csv.field_size_limit(_HEADER_BYTES)
    lines = io.StringIO(head.decode("utf-8-sig", errors="replace"), newline="")
    return next(csv.reader(lines, delimiter=delimiter, quoting=quoting(delimiter)), [])


def _rows(
    batches: Iterable[pa.RecordBatch],
    start: Position,
    fields: Sequence[str],
    ragged: "deque[pa.csv.InvalidRow] | None" = None,
) -> Iterator[Record]:
    """Yield the rows of `batches`, and as rejected those that CSV's reader left out of them and put into `ragged`."""
    row = 0
    for batch in batches:
        between = _take_ragged(ragged, row + batch.num_rows) if ragged else {}
        end = row + batch.num_rows + len(between)
        if end > start.record:
            cells = zip(*(_cells(batch.column(field)) for field in fields), strict=True)
            for number in range(row, end):
                position = Position(start.file, number)
                if number in between:
                    record = Record(position, None, "wrong number of cells", between[number][:EXCERPT_CHARACTERS])
                else:
                    record = _record(position, next(cells))
                if number >= start.record:
                    yield record
        row = end


def _take_ragged(ragged: "deque[pa.csv.InvalidRow]", end: int) -> dict[int, str]:
    """Take the rows before row `end`, which is moved on by each of them, out of `ragged`: their numbers and texts."""
    taken: dict[int, str] = {}
    # The reader counts from 1, and the header too; it is ahead by some batches.
    while ragged and (number := ragged[0].number - 2) <= end + len(taken):
        taken[number] = ragged.popleft().text
    return taken


def _cells(column: pa.Array) -> list[bytes | None]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    # As bytes, so that a row that is not UTF-8 is rejected and not the file.
    return column.cast(pa.large_binary()).to_pylist()  # type: ignore[no-any-return]


def _record(position: Position, values: Sequence[bytes | None]) -> Record:
    sides = []
    for value in values:
        if value is None:
            return Record(position, None, "null")
        try:
            sides.append(value.decode())
        except UnicodeDecodeError:
            return Record(position, None, "not UTF-8", repr(value[:EXCERPT_CHARACTERS])[2:-1])
    return Record(position, join_sides(sides))


def _check(source: Source, schema: pa.Schema, fields: Sequence[str]) -> None:
    _check_header(source, schema.names, fields)
    for field in fields:
        kind = schema.field(field).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
            raise UserError(f"{source.name}: column {field!r} holds {kind}, not text; name one with --text-field")


def _check_header(source: Source, names: list[str], fields: Sequence[str]) -> None:
    if missing := [field for field in fields if field not in names]:
        # A file without a header has its first row of text there.
        there = textwrap.shorten(", ".join(names), _NAMES_CHARACTERS, placeholder=" …") or "none"
        raise UserError(f"{source.name}: no column {missing[0]!r}; it has {there}; name one with --text-field")
    if twice := [field for field in fields if names.count(field) > 1]:
        raise UserError(f"{source.name} has two columns {twice[0]!r}; rename one of them")
