"""Files of vectors, written piece by piece: Parquet, Arrow, JSON lines and NumPy's."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet

Write = Callable[[pa.RecordBatch], None]
_JSON_ROWS = 4096
FORMATS = ("jsonl", "parquet", "arrow", "npy")


def schema(dim: int, dtype: str, *, text: bool) -> pa.Schema:
    """Columns "text", where it is kept, and "embedding", a fixed_size_list of `dtype`."""
    embedding = pa.field("embedding", pa.list_(pa.from_numpy_dtype(np.dtype(dtype)), dim), nullable=False)
    return pa.schema([pa.field("text", pa.string()), embedding] if text else [embedding])


def make_batch(columns: pa.Schema, texts: Sequence[str | None], vectors: np.ndarray) -> pa.RecordBatch:
    """Rows of a file of vectors.

    Args:
        columns: see `schema`.
        texts: n texts, None where a record has none.
        vectors: float[n, dim].
    """
    kind = columns.field("embedding").type
    flat = pa.array(np.ascontiguousarray(vectors, dtype=kind.value_type.to_pandas_dtype()).reshape(-1))
    embedding = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    arrays = [pa.array(texts, pa.string()), embedding] if "text" in columns.names else [embedding]
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def vectors_of(batch: pa.RecordBatch) -> np.ndarray:
    """float[n, dim] of a batch's embeddings, without a copy."""
    column = batch.column("embedding")
    return column.flatten().to_numpy().reshape(batch.num_rows, column.type.list_size)  # type: ignore[no-any-return]


@contextmanager
def vector_writer(file: BinaryIO, format: str, columns: pa.Schema, *, seekable: bool) -> Iterator[Write]:
    """A function that appends batches to `file`; when the block ends well the file is complete.

    Args:
        file: open for writing.
        format: one of `FORMATS`; of "npy" the texts are left out.
        columns: see `schema`.
        seekable: False for a pipe, into which Arrow goes as a stream; "npy" can't.
    """
    if format == "npy":
        with _npy(file, columns) as write:
            yield write
    elif format == "jsonl":
        yield lambda batch: _write_jsonl(file, batch)
    elif format == "arrow":
        open_arrow = pa.ipc.new_file if seekable else pa.ipc.new_stream
        with open_arrow(pa.PythonFile(file, "w"), columns) as arrow:
            yield arrow.write_batch
    else:
        # Neither dictionaries nor compression make numbers of vectors smaller; they only cost time.
        compression = {"text": "zstd", "embedding.list.element": "none"}
        options: dict[str, Any] = {"compression": compression, "use_dictionary": False}
        with pa.parquet.ParquetWriter(pa.PythonFile(file, "w"), columns, **options) as parquet:
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
def _npy(file: BinaryIO, columns: pa.Schema) -> Iterator[Write]:
    kind = columns.field("embedding").type
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
