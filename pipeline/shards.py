"""The shard format, version 2: a file of rows, its sidecar, and its list of rejections; see docs/shard-format.md."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc

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


def shard_name(index: int) -> str:
    """Return the file name of shard `index`."""
    return f"shard-{index:05d}.arrow"


def sidecar_path(shard: Path) -> Path:
    """Return the sidecar of a shard file."""
    return shard.with_suffix(".json")


def token_dtype(vocabulary: int) -> type[np.unsignedinteger[Any]]:
    """Return the dtype of token ids on disk: uint16 if the vocabulary allows it, otherwise uint32."""
    return np.uint16 if vocabulary <= 1 << 16 else np.uint32


def make_table(
    ids: np.ndarray,
    corpora: np.ndarray,
    tokens: Tokens,
    embeddings: np.ndarray,
    texts: Sequence[str] | None,
    logits: np.ndarray | None = None,
) -> pa.Table:
    """Make an Arrow table from the rows of a shard, which are in corpus order.

    Args:
        ids: uint64[n].
        corpora: uint16[n], the index of each row's corpus.
        tokens: tokens of n sentences in `token_dtype`, without special tokens.
        embeddings: float16 or float32[n, dim].
        texts: the n sentences; None leaves out the column.
        logits: float32[n, classes] in addition to the embeddings; None leaves out the column.
    """
    columns = {
        "id": pa.array(ids, pa.uint64()),
        "corpus": pa.array(corpora, pa.uint16()),
        "input_ids": pa.ListArray.from_arrays(pa.array(tokens.offsets, pa.int32()), pa.array(tokens.ids)),
        "embedding": _vectors(embeddings),
    }
    if logits is not None:
        columns["logits"] = _vectors(logits)
    if texts is not None:
        columns["text"] = pa.array(texts, pa.string())
    return pa.table(columns).replace_schema_metadata({"sentence-distill.format": str(FORMAT_VERSION)})


def _vectors(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).reshape(-1)), rows.shape[1])


def write_shard(
    path: Path, table: pa.Table, *, source: Start, counts: Counts, rejected_xxh3_128: str, fingerprint: Fingerprint
) -> Sidecar:
    """Commit a shard: write the table of `make_table`, then the sidecar that makes it exist; return the sidecar."""
    # The sidecar of a damaged shard must not stand for the new file.
    sidecar_path(path).unlink(missing_ok=True)
    compression = None if fingerprint.compression == "none" else fingerprint.compression
    with replacing(path) as file:
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_file(pa.PythonFile(file, "w"), table.schema, options=options) as writer:
            # A single record batch, which readers can map into memory without copying.
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
    """Read the sidecar of `shard`; None if it is missing or damaged, so that the shard does not exist."""
    return read_record(sidecar_path(shard), Sidecar)


def shard_problem(shard: Path, sidecar: Sidecar | None, known: Entry | None = None, *, whole: bool = True) -> str:
    """Describe what is wrong with the sidecar or file of a shard; "" if nothing is.

    The sidecar must match its entry in the manifest, if that is `known`. The checksum of the file is compared only if
    `whole`.
    """
    if sidecar is None or (known is not None and sidecar.entry != known):
        return "has no sidecar that matches the manifest"
    if not shard.exists():
        return "is missing"
    size = shard.stat().st_size
    if size != sidecar.bytes:
        return f"has {size:,} bytes instead of {sidecar.bytes:,}"
    return "" if not whole or file_hash(shard) == sidecar.xxh3_128 else "does not match its checksum"


@dataclass(frozen=True)
class Shard:
    """A shard opened for reading, as views of the memory-mapped file: nothing is copied until rows are taken.

    Args:
        ids: uint64[n].
        corpora: uint16[n], the index of each row's corpus; 0 in format 1, which lacks it.
        tokens: tokens of n sentences.
        embeddings: float16 or float32[n, dim].
        logits: float32[n, classes]; None if the shard has none besides its embeddings.
    """

    ids: np.ndarray
    corpora: np.ndarray
    tokens: Tokens
    embeddings: np.ndarray
    logits: np.ndarray | None = None

    @classmethod
    def open(cls, path: Path) -> "Shard":
        """Map a shard whose checksum has been compared; a shard in an object store is read into memory."""
        table = _table(path)
        # A shard is one record batch, or none if it has no rows; `combine_chunks` would copy even a single one.
        columns = {
            name: column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
            for name, column in zip(table.column_names, table.columns, strict=True)
            if name != "text"
        }
        ids = columns["id"].to_numpy(zero_copy_only=False)
        corpora = (
            columns["corpus"].to_numpy(zero_copy_only=False) if "corpus" in columns else np.zeros(len(ids), np.uint16)
        )
        input_ids = columns["input_ids"]
        flat, offsets = (part.to_numpy(zero_copy_only=False) for part in (input_ids.values, input_ids.offsets))
        embeddings, *logits = (
            columns[name].values.to_numpy(zero_copy_only=False).reshape(-1, columns[name].type.list_size)
            for name in ("embedding", "logits")
            if name in columns
        )
        return cls(
            ids=ids,
            corpora=corpora,
            tokens=Tokens(flat, offsets),
            embeddings=embeddings,
            logits=logits[0] if logits else None,
        )


def shard_texts(path: Path, rows: np.ndarray | None = None) -> list[str]:
    """Return the sentences of a shard with text; the sides of pairs are separated by a tab.

    Args:
        path: the Arrow file.
        rows: int[n], row numbers; None for all rows.
    """
    text = _table(path)["text"]
    return (text if rows is None else text.take(pa.array(rows))).to_pylist()  # type: ignore[no-any-return]


def _table(path: Path) -> pa.Table:
    source = pa.memory_map(str(path)) if is_local(path) else pa.BufferReader(path.read_bytes())
    return pa.ipc.open_file(source).read_all()


# Lists of rejections: next to each shard, until the run joins the lists of all shards in one file.

LISTS = "shard-*.rejected.jsonl"


@dataclass(frozen=True)
class Rejection:
    """A sentence or record that can't be used: the numbers of its file and record, and the reason."""

    file: int
    record: int
    reason: str
    excerpt: str


def list_path(folder: Path, shard: int) -> Path:
    """Return the path of the list of a single shard."""
    return folder / f"shard-{shard:05d}.rejected.jsonl"


def write_list(folder: Path, shard: int, rejections: Iterable[Rejection], names: Sequence[str]) -> str:
    """Write the list of a shard and return its checksum; records are counted from 1."""
    lines = []
    for each in rejections:
        place = {"shard": shard, "file": names[each.file], "record": each.record + 1}
        lines.append(json.dumps({**place, "reason": each.reason, "text": each.excerpt}, ensure_ascii=False))
    content = "".join(f"{line}\n" for line in lines).encode()
    write_atomically(list_path(folder, shard), content)
    return bytes_hash(content)


def read_lists(folder: Path, checksums: Iterable[tuple[int, str]]) -> Iterator[bytes | None]:
    """Yield the list of each shard, in ascending order, that matches its checksum; None if it is lost or damaged.

    A list may be next to its shard, in the joined file, or in both, if one of them is left from an earlier run.
    """
    # The folder is listed once, because a request for each of many thousand shards is slow on a remote file system.
    single = {path.name for path in folder.glob(LISTS)}
    joined = _joined(folder / REJECTED)
    current = next(joined, None)
    for shard, checksum in checksums:
        while current is not None and current[0] < shard:
            current = next(joined, None)
        path = list_path(folder, shard)
        # A shard with nothing rejected has no line in the joined file.
        found = [b"".join(current[1]) if current is not None and current[0] == shard else b""]
        if path.name in single:
            found.append(path.read_bytes())
        yield next((content for content in found if bytes_hash(content) == checksum), None)


def _joined(path: Path) -> Iterator[tuple[int, Iterator[bytes]]]:
    """Yield the lines of the joined file by shard; a damaged line belongs to shard -1."""

    def shard_of(line: bytes) -> int:
        try:
            return int(json.loads(line)["shard"])
        except (ValueError, KeyError, TypeError):
            return -1

    if path.exists():
        # Read as bytes, because as text it would also be split at Unicode's other line separators.
        with path.open("rb") as file:
            yield from groupby(file, key=shard_of)
