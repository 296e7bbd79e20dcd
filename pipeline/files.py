"""Writing files so that a crash leaves the old one or the new one, never a part of either."""

import json
import os
from pathlib import Path
from typing import Any

from sentence_distill.data.hashing import bytes_hash

TEMPORARY = ".incomplete"


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to a temporary name, fsync, rename to `path`, fsync the folder."""
    temporary = path.with_name(path.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    commit(temporary, path)


def remove_temporaries(folder: Path) -> None:
    """Remove what writers that died left in a folder of shards; files of others are not touched."""
    for pattern in ("shard-*", "plan.*", "manifest.json", "rejected.jsonl", "teacher/*"):
        for path in folder.glob(pattern + TEMPORARY):
            path.unlink()


def commit(temporary: Path, path: Path) -> None:
    """Rename a file that was fsynced to its final name, and make the rename itself last."""
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def dump_json(value: dict[str, Any]) -> bytes:
    """`value` as JSON with sorted keys, ending in a field `checksum` over all the others.

    The same value always gives the same bytes.
    """
    return (_canonical({**value, "checksum": _checksum(value)}) + "\n").encode()


def load_json(path: Path) -> dict[str, Any]:
    """Read what `dump_json` wrote, without its checksum.

    Raises:
        ValueError: not JSON, or the checksum does not match: the file was changed or damaged.
    """
    content = path.read_bytes()
    value = json.loads(content)
    if not isinstance(value, dict) or "checksum" not in value:
        raise ValueError("has no checksum")
    checksum = value.pop("checksum")
    # The bytes are compared as well: a changed blank would not show in the parsed value.
    if checksum != _checksum(value) or content != dump_json(value):
        raise ValueError("does not match its checksum")
    return value


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)


def _checksum(value: dict[str, Any]) -> str:
    return bytes_hash(_canonical(value).encode())
