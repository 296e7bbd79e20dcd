"""rejected.jsonl: what could not be used, with file, record and reason.

Each shard's list is first written beside it; the lists become one file, in the order of the shards, when the
run is complete. The sidecar of a shard holds the checksum of its list, wherever it stands.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.pipeline.files import replacing, write_atomically

REJECTED = "rejected.jsonl"
_LISTS = "shard-*.rejected.jsonl"


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
    """For each of `shards` the checksums of its lists that are there: beside it, in the joined file, or both."""
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
    """Join the lists of all shards, each from beside its shard or from the joined file that is there.

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
    """The lines of the joined file, by shard; a damaged line belongs to shard -1."""
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
