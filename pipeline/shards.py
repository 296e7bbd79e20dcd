"""The shard format, version 1: a file of rows, its sidecar, its list of rejections; see docs/shard-format.md."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash, file_hash, stream_hash
from sentence_distill.data.tokenization import Tokens
from sentence_distill.pipeline.files import is_local, replacing, write_atomically
from sentence_distill.pipeline.records import (
    FORMAT_VERSION,
    REJECTED,
    Counts,
    Entry,
    Fingerprint,
    Sidecar,
    Start,
    read_record,
    write_record,
)

DTYPES = {"float16": np.float16, "float32": np.float32}
_LISTS = "shard-*.rejected.jsonl"


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"shard-{index:05d}.arrow"


def sidecar_path(shard: Path) -> Path:
    """Return the sidecar of a shard file."""
    return shard.with_suffix(".json")


def token_dtype(vocabulary: int) -> type[np.unsignedinteger[Any]]:
    """Return the type of token ids on disk: 2 bytes if the vocabulary allows it."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def make_table(ids: np.ndarray, tokens: Tokens, embeddings: np.ndarray, texts: Sequence[str] | None) -> pa.Table:
    """Make the rows of one shard, in corpus order, an Arrow table.

    Args:
        ids: uint64[n], `sentence_id` of each sentence.
        tokens: of n sentences, of the teacher's tokenizer, without special tokens, in `token_dtype`.
        embeddings: float16 or float32[n, dim].
        texts: n sentences, or None if the run keeps no text.
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


def write_shard(
    path: Path, table: pa.Table, *, source: Start, counts: Counts, rejected_xxh3_128: str, fingerprint: Fingerprint
) -> Sidecar:
    """Commit a shard: the Arrow file, then the sidecar that makes it exist; return the sidecar.

    Args:
        path: final name of the Arrow file.
        table: see `make_table`; written as one record batch, so that readers can map it without a copy.
        source: of the sidecar, as the next ones.
        counts: of the slice.
        rejected_xxh3_128: of the list of rejected sentences.
        fingerprint: of the run; it names the compression of the Arrow buffers.
    """
    # A sidecar left by a damaged shard must not vouch for the new file.
    sidecar_path(path).unlink(missing_ok=True)
    compression = None if fingerprint.compression == "none" else fingerprint.compression
    with replacing(path) as file:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(pa.PythonFile(file, "w"), table.schema, options=options) as writer:
            writer.write_table(table, max_chunksize=max(1, table.num_rows))
        file.flush()
        size = file.tell()
        file.seek(0)
        checksum = stream_hash(file)
    sidecar = Sidecar(
        shard=path.name,
        rows=table.num_rows,
        tokens=sum(len(chunk.flatten()) for chunk in table["input_ids"].chunks),
        bytes=size,
        xxh3_128=checksum,
        source=source,
        counts=counts,
        rejected_xxh3_128=rejected_xxh3_128,
        fingerprint=fingerprint,
    )
    write_record(sidecar_path(path), sidecar)
    return sidecar


def read_sidecar(shard: Path) -> Sidecar | None:
    """Read the sidecar of `shard`; None if it is missing or damaged: then the shard does not exist."""
    return read_record(sidecar_path(shard), Sidecar)


def shard_problem(shard: Path, entry: Entry, *, whole: bool = True) -> str:
    """Say what is wrong with a shard's file, or "": it is there, has its size and, if `whole`, its checksum."""
    if not shard.exists():
        return "is missing"
    size = shard.stat().st_size
    if size != entry.bytes:
        return f"has {size:,} bytes instead of {entry.bytes:,}"
    return "" if not whole or file_hash(shard) == entry.xxh3_128 else "does not match its checksum"


def require_shard(shard: Path, entry: Entry, *, whole: bool = True) -> None:
    """Check a shard against its entry in the manifest, to the checksum if `whole`.

    Raises:
        UserError: it is missing, damaged, or not the one that the manifest names.
    """
    sidecar = read_sidecar(shard)
    if sidecar is None or sidecar.xxh3_128 != entry.xxh3_128:
        problem = "has no sidecar that matches the manifest"
    else:
        problem = shard_problem(shard, sidecar, whole=whole)
    if problem:
        raise UserError(f"shard {shard} {problem}; run sd embed again, it rebuilds damaged shards")


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
    """Return the sentences of a shard that keeps its text; pairs as they stand there, see `join_sides`.

    Args:
        path: of the Arrow file.
        rows: int[n], row numbers; None is all.
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


# The list of what a shard's slice could not use, and the joined list of all shards.


@dataclass(frozen=True)
class Rejection:
    """A sentence or record that can't be used: number of its file, of its record there, and why."""

    file: int
    record: int
    reason: str
    excerpt: str


def write_list(folder: Path, shard: int, rejections: Iterable[Rejection], names: Sequence[str]) -> str:
    """Write a shard's list and return its checksum; records are counted from 1."""
    lines = [
        json.dumps(
            {
                "shard": shard,
                "file": names[rejection.file],
                "record": rejection.record + 1,
                "reason": rejection.reason,
                "text": rejection.excerpt,
            },
            ensure_ascii=False,
        )
        for rejection in rejections
    ]
    content = "".join(f"{line}\n" for line in lines).encode()
    write_atomically(_list(folder, shard), content)
    return bytes_hash(content)


def listed(folder: Path, shards: Iterable[int]) -> dict[int, set[str]]:
    """Return the checksums of the lists of each of `shards`: next to it, in the joined file, or both."""
    found: dict[int, set[str]] = {shard: set() for shard in shards}
    if (folder / REJECTED).exists():
        joined = {shard: bytes_hash(b"".join(lines)) for shard, lines in _joined(folder) if shard in found}
        for shard, checksums in found.items():
            # A shard with nothing rejected has no line in the joined file.
            checksums.add(joined.get(shard, bytes_hash(b"")))
    # One listing: a question for each of many thousand shards takes long where the folder is far away.
    beside = {path.name for path in folder.glob(_LISTS)}
    for shard, checksums in found.items():
        if _list(folder, shard).name in beside:
            checksums.add(bytes_hash(_list(folder, shard).read_bytes()))
    return found


def join_lists(folder: Path, checksums: Sequence[str]) -> None:
    """Join the lists of all shards, each from next to its shard or from the joined file that is there.

    Args:
        folder: of the shards.
        checksums: of the list of each shard, as its sidecar has it.

    Raises:
        UserError: a list is lost or damaged; the joined file that is there stays.
    """
    groups = _joined(folder)
    current = next(groups, None)
    beside = {path.name for path in folder.glob(_LISTS)}
    with replacing(folder / REJECTED) as file:
        for shard, checksum in enumerate(checksums):
            while current is not None and current[0] < shard:
                current = next(groups, None)
            path = _list(folder, shard)
            found = [path.read_bytes()] if path.name in beside else []
            found.append(b"".join(current[1]) if current is not None and current[0] == shard else b"")
            content = next((lines for lines in found if bytes_hash(lines) == checksum), None)
            if content is None:
                raise UserError(
                    f"{folder} has lost {path.name}, or it is damaged; run sd embed again, or the job of that shard"
                )
            file.write(content)


def remove_lists(folder: Path) -> None:
    """Remove the lists of single shards."""
    for path in folder.glob(_LISTS):
        path.unlink()


def _list(folder: Path, shard: int) -> Path:
    return folder / f"shard-{shard:05d}.rejected.jsonl"


def _joined(folder: Path) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield the lines of the joined file, by shard; a damaged line belongs to shard -1."""
    path = folder / REJECTED
    if path.exists():
        # As bytes: text would also be cut at the line separators that Unicode has besides the line feed.
        with path.open("rb") as file:
            yield from groupby(file, key=_shard_of)


def _shard_of(line: bytes) -> int:
    try:
        return int(json.loads(line)["shard"])
    except (ValueError, KeyError, TypeError):
        return -1
