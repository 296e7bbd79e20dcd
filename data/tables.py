"""Readers of table formats: Parquet, Arrow IPC, and CSV or TSV; a record is a row, its text one column or two."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.ipc
import pyarrow.parquet

from sentence_distill.data.errors import UserError
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record, join_sides
from sentence_distill.data.sources import Source, open_seekable, open_source

BATCH_ROWS = 8192
_HEADER_BYTES = 1 << 20


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
    with open_source(source) as stream:
        header = stream.readline(_HEADER_BYTES).decode("utf-8-sig", errors="replace")
    _check_header(source, next(csv.reader([header], delimiter=delimiter, quoting=quoting(delimiter)), []), fields)
    with open_source(source) as stream:
        reader = pa.csv.open_csv(
            stream,
            parse_options=pa.csv.ParseOptions(
                delimiter=delimiter, quote_char='"' if quoted else False, newlines_in_values=quoted
            ),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(fields), column_types=dict.fromkeys(fields, pa.binary())
            ),
        )
        yield from _rows(reader, start, fields)


def _rows(batches: Iterable[pa.RecordBatch], start: Position, fields: Sequence[str]) -> Iterator[Record]:
    row = 0
    for batch in batches:
        if row + batch.num_rows <= start.record:
            row += batch.num_rows
            continue
        for values in zip(*(_cells(batch.column(field)) for field in fields), strict=True):
            if row >= start.record:
                yield _record(Position(start.file, row), values)
            row += 1


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
        raise UserError(
            f"{source.name}: no column {missing[0]!r}; it has {', '.join(names)}; name one with --text-field"
        )
