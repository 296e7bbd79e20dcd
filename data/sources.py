"""Where a corpus lies: paths, folders, globs and URLs become a list of files."""

import io
import lzma
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs

from sentence_distill.data.errors import UserError

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
"""What reading a source raises where its file is damaged or cut short."""
_WILDCARD = re.compile(r"[*?\[]")
_HEAD = 4096
_BUFFER = 1 << 20


# What `open_source` gives only once; as `Source.url`.
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    `url` is what fsspec opens, `name` what messages and manifests show (never a folder of this machine).
    """

    url: str
    name: str
    size: int
    compression: str | None

    @property
    def plain_name(self) -> str:
        """The name without the suffix of its compression."""
        for suffix in _SUFFIXES:
            if self.name.lower().endswith(suffix):
                return self.name[: -len(suffix)]
        return self.name

    def is_file(self, path: Path) -> bool:
        """Whether it is the file at `path`, by whatever name or link."""
        local = self.url.removeprefix("file://")
        return local != self.url and path.exists() and path.samefile(local)

    def head(self) -> bytes:
        """The first bytes of the decompressed content."""
        with open_source(self) as stream:
            return stream.read(_HEAD)


def find_sources(locations: Sequence[str], leave_out: Path | None = None) -> list[Source]:
    """List the files of `locations`, in the order given and by name inside a folder or glob.

    Args:
        locations: files, folders (searched to any depth, hidden files left out), globs, and fsspec URLs.
        leave_out: a folder whose files are no corpus when a folder or glob is searched: the run's own output.

    Raises:
        UserError: a location that is not there, can't be read, or holds no file.
    """
    sources = [source for location in locations for source in _expand(location, leave_out)]
    if not sources:
        raise UserError("no corpus was given; name a file, a folder, a glob or a URL")
    return sources


def _expand(location: str, leave_out: Path | None) -> list[Source]:
    try:
        fs, path = url_to_fs(location)
        if fs.isfile(path):
            return [_source(fs, path, path.rsplit("/", 1)[-1])]
        # Names begin behind the folder, or behind the part of a glob that has no wildcard.
        root = path if fs.isdir(path) else _WILDCARD.split(path)[0].rsplit("/", 1)[0]
        matched = [path] if fs.isdir(path) else fs.glob(path) if _WILDCARD.search(path) else []
        files = {file for match in matched for file in (fs.find(match) if fs.isdir(match) else [match])}
        own = f"{leave_out.resolve()}/" if isinstance(leave_out, Path) else "\0"
        found = [f for f in sorted(files) if not _hidden(f[len(root) :]) and not f.startswith(own)]
        if not found:
            raise UserError(f"corpus {location!r} is not there, or holds no file; check the path")
        return [_source(fs, file, file[len(root) :].lstrip("/")) for file in found]
    except (OSError, ValueError, ImportError, TypeError) as error:
        raise UserError(f"corpus {location!r} can't be opened: {error}") from error


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_SUCCESS")) for part in relative.split("/"))


def _source(fs: fsspec.AbstractFileSystem, path: str, name: str) -> Source:
    with fs.open(path, "rb") as stream:
        magic = stream.read(6)
    compression = next((kind for prefix, kind in _MAGIC.items() if magic.startswith(prefix)), None)
    return Source(url=fs.unstrip_protocol(path), name=name, size=int(fs.size(path) or 0), compression=compression)


@contextmanager
def open_source(source: Source) -> Iterator[BinaryIO]:
    """Open the decompressed content of `source` as buffered bytes.

    Arrow decompresses zstd, because its reader reports a file that was cut short, where `zstandard`'s (and so
    fsspec's) ends without a word; for gzip, bz2 and xz Python's own readers report it.
    """
    if source.url == STANDARD_INPUT:
        yield sys.stdin.buffer  # type: ignore[misc]
        return
    in_python = source.compression if source.compression != "zstd" else None
    with fsspec.open(source.url, "rb", compression=in_python) as stream:
        if source.compression == "zstd":
            stream = pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
        yield io.BufferedReader(stream, _BUFFER)


@contextmanager
def open_seekable(source: Source) -> Iterator[IO[bytes]]:
    """Open the content of `source` for random access; compressed files pass through a temporary file."""
    with open_source(source) as stream:
        if source.compression is None:
            yield stream
            return
        with tempfile.TemporaryFile() as copy:
            while chunk := stream.read(1 << 22):
                copy.write(chunk)
            copy.seek(0)
            yield copy
