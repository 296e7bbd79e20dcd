"""The shard format, version 1: one Arrow IPC file of rows, and its sidecar. See docs/shard-format.md."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from sentence_distill.data.hashing import file_hash
from sentence_distill.pipeline.files import TEMPORARY, commit, dump_json, load_json, write_atomically

FORMAT_VERSION = 1
DTYPES = {"float16": np.float16, "float32": np.float32}


def shard_name(index: int) -> str:
    """File name of shard `index`."""
    return f"shard-{index:05d}.arrow"


def sidecar_path(shard: Path) -> Path:
    """The sidecar of a shard file."""
    return shard.with_suffix(".json")


@dataclass(frozen=True)
class Rows:
    """The rows of one shard, in corpus order.

    Args:
        ids: uint64[n], `sentence_id` of each sentence.
        texts: n sentences, or None where the run keeps no text.
        input_ids: n lists of token ids of the teacher's tokenizer, without special tokens.
        embeddings: float16 or float32[n, dim].
    """

    ids: np.ndarray
    texts: Sequence[str] | None
    input_ids: Sequence[Sequence[int]]
    embeddings: np.ndarray

    def table(self, vocabulary_size: int) -> pa.Table:
        """The rows as an Arrow table; token ids take 2 bytes where the vocabulary allows it."""
        token = pa.uint16() if vocabulary_size <= 1 << 16 else pa.uint32()
        flat = pa.array(np.ascontiguousarray(self.embeddings).reshape(-1))
        columns = {
            "id": pa.array(self.ids, pa.uint64()),
            "input_ids": pa.array(self.input_ids, pa.list_(token)),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, self.embeddings.shape[1]),
        }
        if self.texts is not None:
            columns["text"] = pa.array(self.texts, pa.string())
        return pa.table(columns).replace_schema_metadata({"sentence-distill.format": str(FORMAT_VERSION)})


def write_shard(path: Path, table: pa.Table, compression: str | None, sidecar: dict[str, Any]) -> dict[str, Any]:
    """Commit a shard: the Arrow file, then the sidecar that makes it exist; return the sidecar.

    Args:
        path: final name of the Arrow file.
        table: see `Rows.table`; written as one record batch, so that readers can map it without a copy.
        compression: None, "zstd" or "lz4", for the Arrow buffers.
        sidecar: what the run knows of the shard; rows, tokens, bytes and checksum are added.
    """
    # A sidecar left by a damaged shard must not vouch for the new file.
    sidecar_path(path).unlink(missing_ok=True)
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(file, table.schema, options=options) as writer:
            writer.write_table(table.combine_chunks(), max_chunksize=max(1, table.num_rows))
        file.flush()
        os.fsync(file.fileno())
    tokens = sum(len(chunk.values) for chunk in table["input_ids"].chunks)
    full = {
        **sidecar,
        "format": FORMAT_VERSION,
        "shard": path.name,
        "rows": table.num_rows,
        "tokens": tokens,
        "bytes": temporary.stat().st_size,
        "xxh3_128": file_hash(temporary),
    }
    commit(temporary, path)
    write_atomically(sidecar_path(path), dump_json(full))
    return full


def read_sidecar(shard: Path) -> dict[str, Any] | None:
    """The sidecar of `shard`, or None where it is missing or damaged: then the shard does not exist."""
    try:
        return load_json(sidecar_path(shard))
    except (FileNotFoundError, ValueError):
        return None


def shard_problem(shard: Path, sidecar: dict[str, Any]) -> str:
    """What is wrong with a shard's file, or "": it is there, has the sidecar's size, and its checksum."""
    if not shard.exists():
        return "is missing"
    size = shard.stat().st_size
    if size != sidecar["bytes"]:
        return f"has {size:,} bytes instead of {sidecar['bytes']:,}"
    return "" if file_hash(shard) == sidecar["xxh3_128"] else "does not match its checksum"


@dataclass(frozen=True)
class Shard:
    """A shard opened for reading: views of the mapped file, nothing is copied until rows are taken.

    Args:
        ids: uint64[n].
        tokens: uint16 or uint32[t], the token ids of all rows, one after the other.
        offsets: int32[n + 1], where each row's tokens begin in `tokens`.
        embeddings: float16 or float32[n, dim].
    """

    ids: np.ndarray
    tokens: np.ndarray
    offsets: np.ndarray
    embeddings: np.ndarray

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """Map a shard whose checksum is known to be right."""
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        ids, input_ids, embedding = (table[name].combine_chunks() for name in ("id", "input_ids", "embedding"))
        dim = embedding.type.list_size
        return cls(
            ids=ids.to_numpy(zero_copy_only=False),
            tokens=input_ids.values.to_numpy(zero_copy_only=False),
            offsets=input_ids.offsets.to_numpy(zero_copy_only=False),
            embeddings=embedding.values.to_numpy(zero_copy_only=False).reshape(-1, dim),
        )

    @property
    def lengths(self) -> np.ndarray:
        """int32[n]: the tokens of each row."""
        return np.diff(self.offsets)

    def input_ids(self, rows: np.ndarray, length: int) -> np.ndarray:
        """int64[len(rows), length]: the tokens of rows that all have `length` of them."""
        places = self.offsets[rows].astype(np.int64)[:, None] + np.arange(length)
        return self.tokens[places].astype(np.int64)
