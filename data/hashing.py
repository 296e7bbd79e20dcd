"""Content hashes: xxh3-64 for sentences, xxh3-128 for files."""

from pathlib import Path
from typing import BinaryIO

import xxhash


def sentence_id(sentence: str) -> int:
    """Return the id of a normalized sentence: xxh3-64 of its UTF-8 bytes, as an unsigned 64-bit integer."""
    return int(xxhash.xxh3_64_intdigest(sentence.encode()))


def bytes_hash(content: bytes | memoryview) -> str:
    """Return the xxh3-128 of `content`, as 32 hexadecimal digits."""
    return str(xxhash.xxh3_128_hexdigest(content))


def stream_hash(stream: BinaryIO) -> str:
    """Return the xxh3-128 of the rest of `stream`."""
    digest = xxhash.xxh3_128()
    while chunk := stream.read(1 << 22):
        digest.update(chunk)
    return str(digest.hexdigest())


def file_hash(path: Path) -> str:
    """Return the xxh3-128 of a file."""
    with path.open("rb") as stream:
        return stream_hash(stream)
