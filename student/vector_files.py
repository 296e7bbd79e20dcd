"""Files of vectors: JSON lines, Parquet, Arrow and NumPy."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.records import Row

Write = Callable[[pa.RecordBatch], None]
_JSON_ROWS = 4096
FORMATS = ("jsonl", "parquet", "arrow", "npy")
VECTOR = "embedding"
"""The column of the vectors, the last one."""


def make_batch(rows: Sequence[Row], columns: Sequence[str] | None, vectors: np.ndarray, dtype: str) -> pa.RecordBatch:
    """Put rows and their vectors together.

    Args:
        rows: n rows.
        columns: those to keep beside the vectors; None keeps all, in the order in which they come.
        vectors: float[n, dim].
        dtype: of the vectors, float32 or float16.

    Returns:
        The columns, then `VECTOR`, a fixed_size_list of `dtype`.

    Raises:
        UserError: a column has the name of the vectors' or values of several types, or one to keep is nowhere.
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
    values = [row.cells.get(name) for row in rows]
    try:
        return pa.array(values, known)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError) as error:
        raise UserError(
            f"{rows[0].where} and on: the values of column {name!r} have no type in common ({first_line(error)}); name "
            "the columns to keep with --columns, or --no-text for the vectors alone"
        ) from None


def joined_schema(known: pa.Schema | None, batch: pa.Schema, where: str) -> pa.Schema:
    """Return the columns of both schemas, each with a type that holds the values of both; the vectors stay last.

    Raises:
        UserError: a column has two types of which none holds the values of the other.
    """
    if known is None or known == batch:
        return batch
    try:
        both = pa.unify_schemas([_without_vectors(known), _without_vectors(batch)], promote_options="permissive")
    except pa.ArrowException as error:
        raise UserError(
            f"{where} and on: a column's values are of another type than before ({first_line(error)}); name the "
            "columns to keep with --columns, or --no-text for the vectors alone"
        ) from None
    return both.append(batch.field(VECTOR))


def _without_vectors(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field for field in schema if field.name != VECTOR])


def settled(schema: pa.Schema) -> pa.Schema:
    """Return the schema with text in place of columns that hold nothing at all."""
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


def vectors_of(batch: pa.RecordBatch) -> np.ndarray:
    """Return float[n, dim] of a batch's vectors, without a copy."""
    column = batch.column(VECTOR)
    return column.flatten().to_numpy().reshape(batch.num_rows, column.type.list_size)  # type: ignore[no-any-return]


@contextmanager
def vector_writer(file: BinaryIO, format: str, schema: pa.Schema, *, seekable: bool) -> Iterator[Write]:
    """Yield a function that appends batches to `file`; when the block ends well the file is complete.

    Args:
        file: open for writing.
        format: one of `FORMATS`; of "npy" all but the vectors is left out.
        schema: of the batches.
        seekable: False for a pipe, into which Arrow goes as a stream; "npy" can't.
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
    import polars

    for first in range(0, batch.num_rows, _JSON_ROWS):
        # Not straight into the file: no signal gets through while polars waits for a pipe.
        text = io.BytesIO()
        # Its numbers are as short as reads back to the same number of this type.
        polars.DataFrame(batch.slice(first, _JSON_ROWS)).write_ndjson(text)
        file.write(text.getbuffer())


@contextmanager
def _npy(file: BinaryIO, schema: pa.Schema) -> Iterator[Write]:
    kind = schema.field(VECTOR).type
    dtype, rows, start = np.dtype(kind.value_type.to_pandas_dtype()), 0, file.tell()

    def header() -> None:
        shape = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, kind.list_size)}
        # NumPy leaves room in it for a first dimension that grows.
        np.lib.format.write_array_header_1_0(file, shape)

    def write(batch: pa.RecordBatch) -> None:
        nonlocal rows
        file.write(vectors_of(batch).tobytes())
        rows += batch.num_rows

    header()
    yield write
    file.seek(start)
    header()
    file.seek(0, 2)
