"""Write rows: with predictions as JSON lines, CSV, TSV and Parquet; with vectors as JSON lines, Parquet, Arrow and npy.

A row with a prediction keeps its own columns, as `Row`s; rows with vectors are record batches of one schema.
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
"""The column of the vectors, the last one."""
WriteBatch = Callable[[pa.RecordBatch], None]
_JSON_ROWS = 4096


@contextmanager
def open_writer(file: BinaryIO, format: str) -> Iterator["RowWriter"]:
    """Open a writer of one of `ROW_FORMATS` into a file, which stays open."""
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
    """Writes rows of one format."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows; name the first that the format can't hold."""
        try:
            self._write(rows)
        except UnicodeEncodeError:
            _refuse_surrogates(rows)
            raise

    def _write(self, rows: Sequence[Row]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Write what is left."""
        self._file.flush()


def _refuse_surrogates(rows: Sequence[Row]) -> None:
    """Refuse text that no encoding has: a lone surrogate, which JSON's escapes allow."""
    for row in rows:
        for column, value in row.cells.items():
            try:
                json.dumps([column, value], ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                raise UserError(f"{row.where}: what column {column!r} holds is not Unicode; correct that row") from None


class _JsonLines(RowWriter):
    def _write(self, rows: Sequence[Row]) -> None:
        self._file.write("".join(f"{_json(row)}\n" for row in rows).encode())


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
    """Return a value with null in place of NaN and the infinities, which JSON has not."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Csv(RowWriter):
    """Writes CSV; or TSV, which has no quotation marks."""

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
                # Arrow would leave out what a struct of the first rows lacks.
                raise pa.ArrowTypeError("types are not those of the first rows")
            self._writer.write_table(pa.Table.from_pylist([row.cells for row in rows], schema=self._writer.schema))
        except (pa.ArrowException, OverflowError) as error:
            raise UserError(
                f"{rows[0].where} and on: a column's values have no type of Parquet, or several ({first_line(error)}); "
                "write .jsonl instead"
            ) from None

    def close(self) -> None:
        """Write the last rows and the index at the file's end."""
        if self._writer is not None:
            self._writer.close()


def _schema(rows: Sequence[Row]) -> pa.Schema:
    """Return the types of the table that rows are from; those of other columns follow from what these hold."""
    given = [] if rows[0].schema is None else list(rows[0].schema)
    known = {field.name for field in given}
    others = [{column: value for column, value in row.cells.items() if column not in known} for row in rows]
    return pa.schema([*given, *settled(pa.Table.from_pylist(others).schema)])


def _check_columns(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Refuse a row whose columns are not those of the first one, which a table would leave out or leave empty."""
    expected = set(columns)
    for row in rows:
        if row.cells.keys() != expected:
            column = min(row.cells.keys() ^ expected)
            lacks = "there is no" if column in expected else "the first row has no"
            raise UserError(f"{row.where}: {lacks} column {column!r}; write .jsonl, whose rows may differ")


# Rows with vectors.


def make_batch(rows: Sequence[Row], columns: Sequence[str] | None, vectors: np.ndarray, dtype: str) -> pa.RecordBatch:
    """Put n rows and their vectors, float[n, dim], together.

    The batch has some of the rows' `columns`, or all in the order in which they come; then `VECTOR`, a fixed_size_list
    of `dtype`.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.cells))
    if columns is not None:
        if missing := [name for name in columns if name not in names and any(row.cells for row in rows)]:
            raise UserError(f"{rows[0].where} and on: no column {missing[0]!r}, there is {', '.join(names) or 'none'}")
        names = list(columns)
    if VECTOR in names:
        raise UserError(f"{rows[0].where}: there is a column {VECTOR!r} already; name those to keep with --columns")
    flat = np.ascontiguousarray(vectors, dtype=dtype).reshape(-1)
    kind = pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), vectors.shape[1])
    arrays = [*(_column(rows, name) for name in names), pa.FixedSizeListArray.from_arrays(pa.array(flat), type=kind)]
    fields = [pa.field(name, array.type) for name, array in zip(names, arrays[:-1], strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema([*fields, pa.field(VECTOR, kind, nullable=False)]))


def _column(rows: Sequence[Row], name: str) -> pa.Array:
    schemas = {id(row.schema): row.schema for row in rows}
    given = {schema.field(name).type for schema in schemas.values() if schema is not None and name in schema.names}
    # The types of a table's file; those of JSON follow from the values.
    known = given.pop() if len(given) == 1 and None not in schemas.values() else None
    if known is not None and pa.types.is_dictionary(known):
        known = known.value_type
    try:
        return pa.array([row.cells.get(name) for row in rows], known)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
        raise _no_common_type(f"{rows[0].where} and on: the values of column {name!r}", error) from None


def _no_common_type(what: str, error: Exception) -> UserError:
    return UserError(
        f"{what} have no type in common ({first_line(error)}); name the columns to keep with --columns, or --no-text "
        "for the vectors alone"
    )


def joined_schema(known: pa.Schema | None, batch: pa.Schema, where: str) -> pa.Schema:
    """Return the columns of both schemas, each with a type that holds the values of both; the vectors stay last."""
    if known is None or known == batch:
        return batch
    both = [schema.remove(schema.get_field_index(VECTOR)) for schema in (known, batch)]
    try:
        return pa.unify_schemas(both, promote_options="permissive").append(batch.field(VECTOR))
    except pa.ArrowException as error:
        raise _no_common_type(f"{where} and on: the values of a column and those before", error) from None


def settled(schema: pa.Schema) -> pa.Schema:
    """Return the schema with text, the likeliest of what may follow, in place of columns that hold nothing so far."""
    return pa.schema([field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in schema])


def fitted(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch with the columns of `schema`, see `joined_schema`: others are null."""
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
    """Yield a function that appends batches of one schema to `file`; when the block ends well the file is complete.

    Of "npy" all but the vectors is left out. Into a pipe, which is not seekable, Arrow goes as a stream; "npy" can't.
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
        # Neither dictionaries nor compression make numbers of vectors smaller; they only cost time.
        compression = {name: "zstd" for name in schema.names if name != VECTOR} | {f"{VECTOR}.list.element": "none"}
        options: dict[str, Any] = {"compression": compression, "use_dictionary": False}
        with pa.parquet.ParquetWriter(pa.PythonFile(file, "w"), schema, **options) as parquet:
            yield parquet.write_batch


def _write_jsonl(file: BinaryIO, batch: pa.RecordBatch) -> None:
    for first in range(0, batch.num_rows, _JSON_ROWS):
        # Not straight into the file: no signal gets through while polars waits for a pipe.
        text = io.BytesIO()
        # Its numbers are as short as reads back to the same number of this type.
        polars.DataFrame(batch.slice(first, _JSON_ROWS)).write_ndjson(text)
        file.write(text.getbuffer())


@contextmanager
def _npy(file: BinaryIO, schema: pa.Schema) -> Iterator[WriteBatch]:
    kind = schema.field(VECTOR).type
    dtype, rows, start = np.dtype(kind.value_type.to_pandas_dtype()), 0, file.tell()

    def header() -> None:
        shape = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, kind.list_size)}
        # NumPy leaves room in it for a first dimension that grows.
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
