"""The shard format, version 1: one Arrow IPC file of rows, and its sidecar. See docs/shard-format.md."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from sentence_distill.data.hashing import file_hash, stream_hash
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.files import dump_json, is_local, load_json, replacing, write_atomically

FORMAT_VERSION = 1
DTYPES = {"float16": np.float16, "float32": np.float32}


def shard_name(index: int) -> str:
    """File name of shard `index`."""
    return f"shard-{index:05d}.arrow"


def sidecar_path(shard: Path) -> Path:
    """The sidecar of a shard file."""
    return shard.with_suffix(".json")


def token_dtype(vocabulary: int) -> type[np.unsignedinteger[Any]]:
    """Of token ids on disk: 2 bytes where the vocabulary allows it."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def make_table(ids: np.ndarray, tokens: Tokens, embeddings: np.ndarray, texts: Sequence[str] | None) -> pa.Table:
    """The rows of one shard, in corpus order, as an Arrow table.

    Args:
        ids: uint64[n], `sentence_id` of each sentence.
        tokens: of n sentences, of the teacher's tokenizer, without special tokens, in `token_dtype`.
        embeddings: float16 or float32[n, dim].
        texts: n sentences, or None where the run keeps no text.
    """
    flat = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
    columns = {
        "id": pa.array(ids, pa.uint64()),
        "input_ids": pa.ListArray.from_arrays(pa.array(tokens.offsets, pa.int32()), pa.array(tokens.ids)),
        "embedding": pa.FixedSizeListArray.from_arrays(flat, embeddings.shape[1]),
    }
    if texts is not None:
        columns["text"] = pa.array(texts, pa.string())
    return pa.table(columns).replace_schema_metadata({"sentence-distill.format": str(FORMAT_VERSION)})


def write_shard(path: Path, table: pa.Table, compression: str | None, sidecar: dict[str, Any]) -> dict[str, Any]:
    """Commit a shard: the Arrow file, then the sidecar that makes it exist; return the sidecar.

    Args:
        path: final name of the Arrow file.
        table: see `make_table`; written as one record batch, so that readers can map it without a copy.
        compression: None, "zstd" or "lz4", for the Arrow buffers.
        sidecar: what the run knows of the shard; rows, tokens, bytes and checksum are added.
    """
    # A sidecar left by a damaged shard must not vouch for the new file.
    sidecar_path(path).unlink(missing_ok=True)
    with replacing(path) as file:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(pa.PythonFile(file, "w"), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=max(1, table.num_rows))
        file.flush()
        size = file.tell()
        file.seek(0)
        checksum = stream_hash(file)
    full = {
        **sidecar,
        "format": FORMAT_VERSION,
        "shard": path.name,
        "rows": table.num_rows,
        "tokens": sum(len(chunk.flatten()) for chunk in table["input_ids"].chunks),
        "bytes": size,
        "xxh3_128": checksum,
    }
    write_atomically(sidecar_path(path), dump_json(full))
    return full


def read_sidecar(shard: Path) -> dict[str, Any] | None:
    """The sidecar of `shard`, or None where it is missing or damaged: then the shard does not exist."""
    try:
        return load_json(sidecar_path(shard))
    except (FileNotFoundError, ValueError):
        return None


def shard_problem(shard: Path, sidecar: dict[str, Any], *, whole: bool = True) -> str:
    """What is wrong with a shard's file, or "": it is there, has the sidecar's size and, if `whole`, its checksum."""
    if not shard.exists():
        return "is missing"
    size = shard.stat().st_size
    if size != sidecar["bytes"]:
        return f"has {size:,} bytes instead of {sidecar['bytes']:,}"
    return "" if not whole or file_hash(shard) == sidecar["xxh3_128"] else "does not match its checksum"


@dataclass(frozen=True)
class Shard:
    """A shard opened for reading: views of the mapped file, nothing is copied until rows are taken.

    Args:
        ids: uint64[n].
        tokens: of n sentences.
        embeddings: float16 or float32[n, dim].
    """

    ids: np.ndarray
    tokens: Tokens
    embeddings: np.ndarray

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """Map a shard whose checksum is known to be right; one in an object store is read whole."""
        table = _table(path)
        ids, input_ids, embedding = (_column(table, name) for name in ("id", "input_ids", "embedding"))
        flat, offsets = (part.to_numpy(zero_copy_only=False) for part in (input_ids.values, input_ids.offsets))
        return cls(
            ids=ids.to_numpy(zero_copy_only=False),
            tokens=Tokens(flat, offsets),
            embeddings=embedding.values.to_numpy(zero_copy_only=False).reshape(-1, embedding.type.list_size),
        )


def shard_texts(path: Path, rows: np.ndarray | None = None) -> list[str]:
    """The sentences of a shard that keeps its text; pairs as they stand there, see `join_sides`.

    Args:
        path: of the Arrow file.
        rows: int[n], which; None is all.
    """
    text = _table(path)["text"]
    return (text if rows is None else text.take(pa.array(rows))).to_pylist()  # type: ignore[no-any-return]


def _table(path: Path) -> pa.Table:
    source = pa.memory_map(str(path)) if is_local(path) else pa.BufferReader(path.read_bytes())
    return pa.ipc.open_file(source).read_all()


def _column(table: pa.Table, name: str) -> pa.Array:
    # A shard is one record batch, or none if it has no rows; combining would copy even a single one.
    column = table[name]
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
