"""Where a corpus lies: paths, folders, globs and URLs become a list of files."""

import codecs
import io
import lzma
import os
import re
import select
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NoReturn

import fsspec
import pyarrow as pa
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hashing import stream_hash

_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_SUFFIXES = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
"""What reading a source raises where its file is damaged or cut short."""
# UTF-32's begins with UTF-16's, so it comes first.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_WILDCARD = re.compile(r"[*?\[]")
_HEAD = 4096
_BUFFER = 1 << 20
_SIGNAL_S = 0.2


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

    def content_hash(self) -> str:
        """xxh3-128 of the file as it lies there, compressed or not.

        Raises:
            UserError: it can't be read to its end.
        """
        with cut_short(self.name), _named_errors(), fsspec.open(self.url, "rb") as stream:
            return stream_hash(stream)


@contextmanager
def cut_short(name: str) -> Iterator[None]:
    """Make a `UserError` that names the file of a `READ_ERRORS`."""
    try:
        yield
    except READ_ERRORS as error:
        raise UserError(f"{name} can't be read to its end: {first_line(error)}") from error


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
        files = {file for match in matched for file in _files_at(fs, match)}
        own = _files_in(fs, files, leave_out) if leave_out is not None else set()
        found = [f for f in sorted(files - own) if not _hidden(f[len(root) :])]
        if not found:
            raise UserError(f"corpus {location!r} is not there, or holds no file; check the path")
        return [_source(fs, file, file[len(root) :].lstrip("/")) for file in found]
    except UserError:
        raise
    except Exception as error:  # wrong credentials, say: each store has errors of its own
        raise UserError(f"corpus {location!r} can't be opened: {_said(error)}") from error


def _files_at(fs: fsspec.AbstractFileSystem, place: str) -> set[str]:
    """The files of a folder to any depth, or the file that `place` is; pipes and devices are none."""
    if not isinstance(fs, LocalFileSystem):
        return set(fs.find(place)) if fs.isdir(place) else {place}
    found = _walk(place) if os.path.isdir(place) else [place]
    # To open a pipe may wait forever. A link to nothing stays, for an error when it is opened.
    return {file for file in found if os.path.isfile(file) or not os.path.exists(file)}


def _walk(folder: str) -> Iterator[str]:
    """All that is no folder below a local one; fsspec drops what it can't list, and follows no link to a folder.

    Raises:
        UserError: a folder can't be listed.
    """
    visited = set()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        # A link may lead back to a folder that it lies in.
        if (real := os.path.realpath(place)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield from (os.path.join(place, name) for name in names)


def _refuse(error: OSError) -> NoReturn:
    raise UserError(
        f"folder {error.filename} of the corpus can't be listed ({error.strerror}); make it readable, or name "
        "the files and folders to read instead"
    ) from error


def _files_in(fs: fsspec.AbstractFileSystem, files: set[str], folder: Path) -> set[str]:
    """Those of `files` that lie in `folder`, a local one by whatever links, or one of an object store."""
    if isinstance(fs, LocalFileSystem):
        if not isinstance(folder, Path):
            return set()
        real = {parent: os.path.realpath(parent) for parent in {os.path.dirname(file) for file in files}}
        own = os.path.realpath(folder)
        return {file for file in files if f"{real[os.path.dirname(file)]}/".startswith(f"{own}/")}
    # A URL's folder is a `UPath`. The class stands for its protocol, of which stores have several names.
    if isinstance(folder, Path) or not isinstance(fs, type(folder.fs)):
        return set()
    return {file for file in files if file.startswith(f"{folder.path.rstrip('/')}/")}


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_SUCCESS")) for part in relative.split("/"))


def _source(fs: fsspec.AbstractFileSystem, path: str, name: str) -> Source:
    with fs.open(path, "rb") as stream:
        magic = stream.read(6)
    compression = next((kind for prefix, kind in _MAGIC.items() if magic.startswith(prefix)), None)
    return Source(url=fs.unstrip_protocol(path), name=name, size=int(fs.size(path) or 0), compression=compression)


def check_encoding(source: Source, start: bytes) -> None:
    """Refuse text in another encoding of Unicode, most of whose lines are UTF-8 too, with a zero byte at each letter.

    Args:
        source: what is read.
        start: its first bytes, decompressed.

    Raises:
        UserError: they are the byte-order mark of UTF-16 or UTF-32.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            raise UserError(f"{source.name} is {encoding}, not UTF-8; convert it first: iconv -f {encoding} -t UTF-8")


@contextmanager
def open_source(source: Source) -> Iterator[BinaryIO]:
    """Open the decompressed content of `source` as buffered bytes.

    Arrow decompresses zstd, because its reader reports a file that was cut short, where `zstandard`'s (and so
    fsspec's) ends without a word; for gzip, bz2 and xz Python's own readers report it.
    """
    if source.url == STANDARD_INPUT:
        yield standard_input()
        return
    in_python = source.compression if source.compression != "zstd" else None
    with closing(fsspec.open(source.url, "rb", compression=in_python)) as file:
        with _named_errors():
            stream = file.open()
        if source.compression == "zstd":
            stream = pa.CompressedInputStream(pa.PythonFile(stream, "r"), "zstd")
        yield io.BufferedReader(_Named(stream), _BUFFER)


def standard_input() -> io.BufferedReader:
    """Standard input as buffered bytes; a signal ends a wait for them at once."""
    try:
        descriptor = sys.stdin.fileno()
    except io.UnsupportedOperation:  # a program put a stream of its own there
        return sys.stdin.buffer  # type: ignore[return-value]
    return io.BufferedReader(_StandardInput(descriptor), _BUFFER)


class _StandardInput(io.RawIOBase):
    """Reads a descriptor, and waits for it in short steps.

    Python hands a signal to its handler when a system call returns. One that comes just before a read begins would wait
    for the next bytes, for ever if none come.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not select.select([self._descriptor], [], [], _SIGNAL_S)[0]:
            pass
        return os.readv(self._descriptor, [buffer])


@contextmanager
def _named_errors() -> Iterator[None]:
    """Make a `READ_ERRORS` of what a store or its network raises; each has errors of its own."""
    try:
        yield
    except READ_ERRORS:
        raise
    except Exception as error:
        raise OSError(_said(error)) from error


def _said(error: Exception) -> str:
    """All that a store's error says: its first line alone often says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


class _Named(io.RawIOBase):
    """A stream all of whose errors are `READ_ERRORS`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:
        with _named_errors():
            return int(self._stream.readinto(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _named_errors():
            return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())


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
