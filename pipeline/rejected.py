"""rejected.jsonl: what could not be used, with file, record and reason.

Each shard's list is written beside it; the lists become one file when the run is complete.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from sentence_distill.data.sources import Source
from sentence_distill.pipeline.files import TEMPORARY, commit, write_atomically
from sentence_distill.pipeline.slices import Rejection

REJECTED = "rejected.jsonl"


def rejected_part(folder: Path, shard: int) -> Path:
    """The list of one shard, which exists until `merge_rejected`."""
    return folder / f"shard-{shard:05d}.rejected.jsonl"


def write_part(folder: Path, shard: int, rejections: Iterable[Rejection], sources: Sequence[Source]) -> None:
    """Write a shard's list; records are counted from 1."""
    lines = [
        json.dumps(
            {
                "shard": shard,
                "file": sources[rejection.position.file].name,
                "record": rejection.position.record + 1,
                "reason": rejection.reason,
                "text": rejection.excerpt,
            },
            ensure_ascii=False,
        )
        for rejection in rejections
    ]
    write_atomically(rejected_part(folder, shard), "".join(f"{line}\n" for line in lines).encode())


def merge_rejected(folder: Path, shards: int) -> None:
    """Join the lists in the order of shards; a shard without its own keeps its lines of an earlier merge."""
    path = folder / REJECTED
    kept: dict[int, list[str]] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            kept.setdefault(json.loads(line)["shard"], []).append(line)
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("w", encoding="utf-8", newline="") as file:
        for shard in range(shards):
            part = rejected_part(folder, shard)
            file.writelines([part.read_text(encoding="utf-8")] if part.exists() else kept.get(shard, []))
    commit(temporary, path)


def remove_parts(folder: Path) -> None:
    """Remove the lists of single shards."""
    for part in folder.glob("shard-*.rejected.jsonl"):
        part.unlink()
