"""Content hashes: xxh3-64 for sentences, xxh3-128 for files."""

from pathlib import Path
from typing import Any, BinaryIO

import xxhash

_CHUNK = 1 << 22


def sentence_id(sentence: str) -> int:
    """Id of a normalised sentence: xxh3-64 of its UTF-8 bytes, as an unsigned 64-bit integer."""
    return int(xxhash.xxh3_64_intdigest(sentence.encode()))


def bytes_hash(content: bytes | memoryview) -> str:
    """xxh3-128 of `content`, as 32 hexadecimal digits."""
    return str(xxhash.xxh3_128_hexdigest(content))


def stream_hash(stream: BinaryIO | Any) -> str:
    """xxh3-128 of all that is left in `stream`, read in pieces."""
    digest = xxhash.xxh3_128()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return str(digest.hexdigest())


def file_hash(path: Path) -> str:
    """xxh3-128 of a file."""
    with path.open("rb") as stream:
        return stream_hash(stream)
