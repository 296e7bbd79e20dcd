"""Writers of rows: with predictions to JSON lines, CSV, TSV and Parquet, with vectors also to Arrow and npy.

Rows with predictions are `Row`s, which keep their own columns; rows with vectors are record batches of one schema.
"""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from typing import Any, BinaryIO

import numpy as np
import polars
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.records import Row
from sentence_distill.data.tables import quoting

ROW_FORMATS = ("jsonl", "csv", "tsv", "parquet")
VECTOR_FORMATS = ("jsonl", "parquet", "arrow", "npy")
VECTOR = "embedding"
"""Column of the vectors, always the last one."""
WriteBatch = Callable[[pa.RecordBatch], None]
_JSON_ROWS = 4096


@contextmanager
def open_writer(file: BinaryIO, format: str) -> Iterator["RowWriter"]:
    """Open a writer of one of `ROW_FORMATS`; the file itself is left open."""
    writer: RowWriter
    if format in ("csv", "tsv"):
        writer = _Csv(file, "," if format == "csv" else "\t")
    else:
        writer = _JsonLines(file) if format == "jsonl" else _Parquet(file)
    try:
        yield writer
    finally:
        writer.close()


class RowWriter:
    """Writer of rows in one format."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows; an error names the first one that the format can't hold."""
        try:
            self._write(rows)
        except UnicodeEncodeError:
            _refuse_surrogates(rows)
            raise

    def _write(self, rows: Sequence[Row]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Write what is buffered."""
        self._file.flush()


def _refuse_surrogates(rows: Sequence[Row]) -> None:
    """Refuse text with a lone surrogate, which JSON escapes can spell but UTF-8 can't encode."""
    for row in rows:
        for column, value in row.cells.items():
            try:
                json.dumps([column, value], ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                raise UserError(f"{row.where}: column {column!r} holds invalid Unicode; correct that row") from None


class _JsonLines(RowWriter):
    def _write(self, rows: Sequence[Row]) -> None:
        self._file.write("".join(f"{_json(row)}\n" for row in rows).encode())


def _json(row: Row) -> str:
    # Parquet's dates and decimals are written as strings, since JSON has no type for them.
    def other(value: Any) -> str:
        if isinstance(value, bytes):
            raise UserError(f"{row.where}: a column holds bytes, which JSON can't represent; write .parquet")
        return str(value)

    try:
        return json.dumps(row.cells, ensure_ascii=False, allow_nan=False, default=other)
    except ValueError:
        return json.dumps(_finite(row.cells), ensure_ascii=False, default=other)


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Csv(RowWriter):
    """Writer of CSV, and of TSV, which has no quotes."""

    def __init__(self, file: BinaryIO, delimiter: str) -> None:
        super().__init__(file)
        self._delimiter = delimiter
        self._columns: list[str] = []

    def _write(self, rows: Sequence[Row]) -> None:
        lines = []
        if not self._columns:
            self._columns = list(rows[0].cells)
            lines = [self._line(self._columns, rows[0])]
        _check_columns(rows, self._columns)
        lines += (self._line([row.cells[column] for column in self._columns], row) for row in rows)
        self._file.write("".join(lines).encode())

    def _line(self, values: Sequence[Any], row: Row) -> str:
        plain = quoting(self._delimiter) == csv.QUOTE_NONE
        for value in values:
            if isinstance(value, bytes):
                raise UserError(f"{row.where}: a column holds bytes, which a text file can't hold; write .parquet")
            if isinstance(value, list | tuple | dict):
                nested = "an object" if isinstance(value, dict) else "a list"
                raise UserError(f"{row.where}: a column holds {nested}, which a cell can't hold; write .jsonl")
            if plain and any(mark in str(value) for mark in "\t\n\r"):
                raise UserError(f"{row.where}: a tab or line end in a cell, which TSV can't hold; write .csv or .jsonl")
        if plain:
            return "\t".join("" if value is None else str(value) for value in values) + "\n"
        text = io.StringIO(newline="")
        # The writer quotes cells that contain a character of its line end. With "\r\n" it quotes a lone \r, too,
        # at which readers would end the line.
        csv.writer(text, lineterminator="\r\n").writerow(values)
        return text.getvalue().removesuffix("\r\n") + "\n"


class _Parquet(RowWriter):
    _writer: pa.parquet.ParquetWriter | None = None

    def _write(self, rows: Sequence[Row]) -> None:
        for _, alike in groupby(rows, key=attrgetter("schema")):
            self._write_alike(list(alike))

    def _write_alike(self, rows: Sequence[Row]) -> None:
        """Append rows of one schema."""
        _check_columns(rows, self._writer.schema.names if self._writer else list(rows[0].cells))
        try:
            schema = _schema(rows)
            if self._writer is None:
                self._writer = pa.parquet.ParquetWriter(self._file, schema)
            elif pa.unify_schemas([self._writer.schema, schema], promote_options="permissive") != self._writer.schema:
                # Arrow would silently drop fields of a struct that the first rows lack.
                raise pa.ArrowTypeError("types are not those of the first rows")
            self._writer.write_table(pa.Table.from_pylist([row.cells for row in rows], schema=self._writer.schema))
        except (pa.ArrowException, OverflowError) as error:
            raise UserError(
                f"{rows[0].where} and after: the values of a column have no common Parquet type ({first_line(error)}); "
                "write .jsonl instead"
            ) from None

    def close(self) -> None:
        """Write the last rows and the file's footer."""
        if self._writer is not None:
            self._writer.close()


def _schema(rows: Sequence[Row]) -> pa.Schema:
    """Return the schema of the rows' table, with the types of added columns inferred from their values."""
    given = [] if rows[0].schema is None else list(rows[0].schema)
    known = {field.name for field in given}
    others = [{column: value for column, value in row.cells.items() if column not in known} for row in rows]
    return pa.schema([*given, *settled(pa.Table.from_pylist(others).schema)])


def _check_columns(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Refuse a row whose columns differ from the first row's: a table would drop them or leave them empty."""
    expected = set(columns)
    for row in rows:
        if row.cells.keys() != expected:
            column = min(row.cells.keys() ^ expected)
            lacks = "there is no" if column in expected else "the first row has no"
            raise UserError(f"{row.where}: {lacks} column {column!r}; write .jsonl, whose rows may differ")


# Rows with vectors.


def make_batch(rows: Sequence[Row], columns: Sequence[str] | None, vectors: np.ndarray, dtype: str) -> pa.RecordBatch:
    """Make a record batch of n rows and their vectors, float[n, dim].

    It has the given `columns` of the rows, or all of them in their order, then `VECTOR`, a fixed_size_list of `dtype`.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.cells))
    if columns is not None:
        if missing := [name for name in columns if name not in names and any(row.cells for row in rows)]:
            raise UserError(f"{rows[0].where} and after: no column {missing[0]!r}, only {', '.join(names) or 'none'}")
        names = list(columns)
    if VECTOR in names:
        raise UserError(f"{rows[0].where} already has a column {VECTOR!r}; name the columns to keep with --columns")
    flat = np.ascontiguousarray(vectors, dtype=dtype).reshape(-1)
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), vectors.shape[1])
    arrays = [*(_column(rows, name) for name in names), pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)]
    fields = [pa.field(name, array.type) for name, array in zip(names, arrays[:-1], strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*fields, pa.field(VECTOR, kind, nullable=False)]))


def _column(rows: Sequence[Row], name: str) -> pa.Array:
    schemas = {id(row.schema): row.schema for row in rows}
    given = {schema.field(name).type for schema in schemas.values() if schema is not None and name in schema.names}
    # Parquet and Arrow files declare the type; for other formats, Arrow infers it from the values.
    known = given.pop() if len(given) == 1 and None not in schemas.values() else None
    if known is not None and pa.types.is_dictionary(known):
        known = known.value_type
    try:
        return pa.array([row.cells.get(name) for row in rows], known)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
        raise _no_common_type(f"{rows[0].where} and after: the values of column {name!r}", error) from None


def _no_common_type(what: str, error: Exception) -> UserError:
    return UserError(
        f"{what} have no common type ({first_line(error)}); name the columns to keep with --columns, or write only the "
        "vectors with --no-text"
    )


def joined_schema(known: pa.Schema | None, batch: pa.Schema, where: str) -> pa.Schema:
    """Unify two schemas, widening types if necessary; the vectors stay last."""
    if known is None or known == batch:
        return batch
    both = [schema.remove(schema.get_field_index(VECTOR)) for schema in (known, batch)]
    try:
        return pa.unify_schemas(both, promote_options="permissive").append(batch.field(VECTOR))
    except pa.ArrowException as error:
        raise _no_common_type(f"{where} and after: the values of a column and those before", error) from None


def settled(schema: pa.Schema) -> pa.Schema:
    """Return the schema with string for columns that are all null so far: text is the likeliest to follow."""
    return pa.schema([field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in schema])


def fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with the columns of `schema` (see `joined_schema`); those that it lacks are null."""
    if batch.schema == schema:
        return batch
    names = set(batch.schema.names)
    arrays = [
        batch.column(field.name).cast(field.type) if field.name in names else pa.nulls(batch.num_rows, field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@contextmanager
def vector_writer(file: BinaryIO, format: str, schema: pa.Schema, *, seekable: bool) -> Iterator[WriteBatch]:
    """Yield a function that appends batches of one schema to `file`, which is complete after the block.

    "npy" holds only the vectors, and needs a seekable file. To a pipe, Arrow is written in its streaming format.
    """
    if format == "npy":
        with _npy(file, schema) as write:
            yield write
    elif format == "jsonl":
        yield lambda batch: _write_jsonl(file, batch)
    elif format == "arrow":
        open_arrow = pa.ipc.new_file if seekable else pa.ipc.new_stream
        with open_arrow(pa.PythonFile(file, "w"), schema) as arrow:
            yield arrow.write_batch
    else:
        # Dictionaries and compression don't make vectors smaller; they only take time.
        compression = {name: "zstd" for name in schema.names if name != VECTOR} | {f"{VECTOR}.list.element": "none"}
        options: dict[str, Any] = {"compression": compression, "use_dictionary": False}
        with pa.parquet.ParquetWriter(pa.PythonFile(file, "w"), schema, **options) as parquet:
            yield parquet.write_batch


def _write_jsonl(file: BinaryIO, batch: pa.RecordBatch) -> None:
    for first in range(0, batch.num_rows, _JSON_ROWS):
        # Written to memory first: while polars is blocked on a pipe, Python can't handle signals.
        text = io.BytesIO()
        # Polars writes each number with the fewest digits that read back to the same value of its type.
        polars.DataFrame(batch.slice(first, _JSON_ROWS)).write_ndjson(text)
        file.write(text.getbuffer())


@contextmanager
def _npy(file: BinaryIO, schema: pa.Schema) -> Iterator[WriteBatch]:
    kind = schema.field(VECTOR).type
    dtype, rows, start = np.dtype(kind.value_type.to_pandas_dtype()), 0, file.tell()

    def header() -> None:
        shape = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, kind.list_size)}
        # NumPy pads the header so that the number of rows can be updated in place.
        np.lib.format.write_array_header_1_0(file, shape)

    def write(batch: pa.RecordBatch) -> None:
        nonlocal rows
        file.write(batch.column(VECTOR).flatten().to_numpy().tobytes())
        rows += batch.num_rows

    header()
    yield write
    file.seek(start)
    header()
    file.seek(0, 2)
