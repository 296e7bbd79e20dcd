"""The files of a corpus: finding, opening, and decompressing them to the end of the last stream."""

import bz2
import gzip
import io
import lzma
import os
import re
import select
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, NoReturn

import fsspec
import pyarrow as pa
from fsspec.core import OpenFile, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.hashing import stream_hash

HEAD_BYTES = 4096
STANDARD_INPUT = "-"
READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
"""Exceptions of reading a source whose file is damaged or cut short."""
_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_COMPRESSED = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".zstd", ".lz4")
_LOCAL = "file://"
_WILDCARD = re.compile(r"[*?\[]")
# If a folder contains files with these suffixes, its other files are taken for descriptions of them.
_TABLES = (".parquet", ".arrow", ".feather", ".ipc", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_TEXTS = (".txt", ".text")
# Files that `datasets` and the hub's tools write next to the data.
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|changelog|citation)(\.[a-z]+)?", re.IGNORECASE)
_BUFFER = 1 << 20
_SIGNAL_S = 0.2
_Log = Callable[[str], None]


@dataclass(frozen=True)
class Source:
    """A file of a corpus; for standard input, an open and decompressed `stream`."""

    url: str
    """URL for fsspec."""
    name: str
    """Name for messages and manifests, without the folder on this machine."""
    size: int
    compression: str | None
    stream: io.BufferedReader | None = field(default=None, compare=False)
    location: int = 0
    """Index of the location, among those given, where it was found."""

    def is_file(self, path: Path) -> bool:
        """Return True if it is the file at `path`, under any name or link."""
        local = self.url.removeprefix(_LOCAL)
        return local != self.url and path.exists() and path.samefile(local)

    def head(self) -> bytes:
        """Read the first `HEAD_BYTES` of the decompressed content."""
        with cut_short(self.name), self.open() as stream:
            return stream.read(HEAD_BYTES)

    @contextmanager
    def open(self) -> Iterator[io.BufferedReader]:
        """Open the decompressed content as buffered bytes; see `decompressed`."""
        if self.stream is not None:
            yield self.stream
        else:
            with self._opened(self.compression) as stream:
                yield stream

    @contextmanager
    def open_seekable(self) -> Iterator[IO[bytes]]:
        """Open the decompressed content for random access; a compressed file is copied to a temporary one."""
        with self.open() as stream:
            if self.compression is None:
                yield stream
                return
            with tempfile.TemporaryFile() as copy:
                while chunk := stream.read(1 << 22):
                    copy.write(chunk)
                copy.seek(0)
                yield copy

    def content_hash(self) -> str:
        """Return the xxh3-128 of the file's bytes, before decompression."""
        with cut_short(self.name), self._opened(None) as stream:
            return stream_hash(stream)

    @contextmanager
    def _opened(self, compression: str | None) -> Iterator[io.BufferedReader]:
        # A local name is taken literally: fsspec.open would read "::" in it as a chain of protocols.
        if self.url.startswith(_LOCAL):
            file = OpenFile(LocalFileSystem(), self.url.removeprefix(_LOCAL))
        else:
            file = fsspec.open(self.url, "rb")
        # Closing the OpenFile also closes the archive that a file is in.
        with closing(file):
            with _as_read_errors():
                stream = file.open()
            yield decompressed(stream, compression)


def find_sources(
    locations: Sequence[str], leave_out: Path | None = None, log: _Log = lambda line: None
) -> list[Source]:
    """List the files of paths, folders (to any depth), globs and fsspec URLs, in their order and then by name.

    Hidden files, READMEs and licenses in folders are skipped, and so is everything but data files in a folder with
    tables, such as a clone of a dataset; `log` gets a line about it. Files in the folder `leave_out`, the output of the
    run, are never sources.
    """
    sources = [
        replace(source, location=number)
        for number, location in enumerate(locations)
        for source in _expand(location, leave_out, log)
    ]
    if not sources:
        raise UserError("there are no files to read; name a file, a folder, a glob or a URL")
    return sources


def distinct_names(locations: Sequence[str]) -> list[str]:
    """Name each location by as many trailing parts of its path as make the names distinct: a/wiki.txt, b/wiki.txt.

    Locations that are given twice get a number.
    """
    paths = [os.path.abspath(each) if os.path.exists(each) else each.partition("::")[0] for each in locations]
    parts = [path.rstrip("/").split("/") for path in paths]
    most = max(map(len, parts), default=0)
    tails = (["/".join(part[-depth:]) for part in parts] for depth in range(1, most + 1))
    names = next((names for names in tails if len(set(names)) == len(names)), ["/".join(part[-1:]) for part in parts])
    seen: Counter[str] = Counter()
    numbered = []
    for name in names:
        seen[name] += 1
        numbered.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return numbered


def _expand(location: str, leave_out: Path | None, log: _Log) -> list[Source]:
    try:
        if os.path.exists(location):
            # An existing local path is taken literally.
            fs, path, chain = LocalFileSystem(), os.path.abspath(location), ""
        else:
            (fs, path), chain = url_to_fs(location), location.partition("::")[2]

        def source(file: str, name: str) -> Source:
            with fs.open(file, "rb") as stream:
                compression = compression_of(stream.read(16))
            url = fs.unstrip_protocol(file) + (f"::{chain}" if chain else "")
            return Source(url, name, int(fs.size(file) or 0), compression)

        if fs.isfile(path):
            return [source(path, path.rsplit("/", 1)[-1])]
        # Names are relative to the folder, or to the last folder of a glob before its first wildcard.
        is_folder = fs.isdir(path)
        root = path if is_folder else _WILDCARD.split(path)[0].rsplit("/", 1)[0]
        matched = [path] if is_folder else fs.glob(path) if _WILDCARD.search(path) else []
        files = {file for match in matched for file in _files_at(fs, match, leave_out, log)}
        found = [file for file in sorted(files) if not _hidden(file[len(root) :])]
        if not found:
            raise UserError(f"{location} does not exist, or holds no file; check the path")
        return [source(file, file[len(root) :].lstrip("/")) for file in found]
    except UserError:
        raise
    except Exception as error:  # each store has its own errors, for wrong credentials for example
        raise UserError(f"{location} can't be opened: {_all_said(error)}") from error


def _files_at(fs: fsspec.AbstractFileSystem, place: str, leave_out: Path | None, log: _Log) -> set[str]:
    """Return the data files below a folder, or the single file at `place`; pipes and devices are skipped."""
    local = isinstance(fs, LocalFileSystem)
    is_folder = os.path.isdir(place) if local else fs.isdir(place)
    found = set(_walk(place) if local else fs.find(place)) if is_folder else {place}
    if leave_out is not None:
        # Before `_data_files`: shards in the output folder would make it skip text files.
        found -= _files_in(fs, found, leave_out)
    if is_folder:
        found = set(_data_files(place, found, log))
    # Opening a pipe may block forever. A dangling link is kept: opening it raises an error that names it.
    return {file for file in found if not local or os.path.isfile(file) or not os.path.exists(file)}


def _data_files(place: str, found: Iterable[str], log: _Log) -> list[str]:
    """Filter out files that only describe the data; refuse a dataset with several splits."""
    files = [file for file in found if not _hidden(file[len(place) :])]
    by_folder: dict[str, set[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        by_folder.setdefault(folder, set()).add(name)
    saved = {folder for folder, names in by_folder.items() if {"state.json", "dataset_info.json"} <= names}
    for folder, names in by_folder.items():
        if "dataset_dict.json" in names:
            splits = sorted(other.rpartition("/")[2] for other in saved if other.rpartition("/")[0] == folder)
            raise UserError(
                f"{folder} is a saved DatasetDict with the splits {', '.join(splits) or '?'}; name one of its folders: "
                f"{folder}/{splits[0] if splits else 'train'}"
            )
    kept = []
    for file in files:
        folder, _, name = file.rpartition("/")
        # The rows of a saved dataset are in data-*.arrow; other Arrow files are caches of operations on it.
        is_rows = name.endswith(".arrow") and not name.startswith(("cache-", "tmp"))
        if (is_rows or folder not in saved) and name not in _DESCRIPTIONS and not _ABOUT.fullmatch(name):
            kept.append(file)
    if any(plain_name(file).endswith(_TABLES) for file in kept):
        kept = [file for file in kept if plain_name(file).endswith((*_TABLES, *_TEXTS))]
    if left := sorted(set(files) - set(kept)):
        others = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
        log(f"skipped in {place}, not data: {left[0][len(place) :].lstrip('/')}{others}")
    return kept


def plain_name(file: str) -> str:
    """Return the name of a file in lower case, without the suffix of a compression."""
    path = PurePosixPath(file.lower())
    return path.stem if path.suffix in _COMPRESSED else path.name


def _walk(folder: str) -> Iterator[str]:
    """Yield all files below a local folder; fsspec would skip unreadable folders and links to folders."""
    visited = set()
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        # A link may point to a folder that contains it.
        if (real := os.path.realpath(place)) in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        yield from (os.path.join(place, name) for name in names)


def _refuse(error: OSError) -> NoReturn:
    raise UserError(
        f"folder {error.filename} can't be listed ({error.strerror}); make it readable, or name "
        "the files and folders to read instead"
    ) from error


def _files_in(fs: fsspec.AbstractFileSystem, files: set[str], folder: Path) -> set[str]:
    """Return the `files` inside `folder`, a local folder (links resolved) or one in an object store."""
    if isinstance(fs, LocalFileSystem):
        if not isinstance(folder, Path):
            return set()
        real = {parent: os.path.realpath(parent) for parent in {os.path.dirname(file) for file in files}}
        own = os.path.realpath(folder)
        return {file for file in files if f"{real[os.path.dirname(file)]}/".startswith(f"{own}/")}
    # The folder of a URL is a `UPath`. File systems are compared by class, since a store's protocol has several names.
    if isinstance(folder, Path) or not isinstance(fs, type(folder.fs)):
        return set()
    return {file for file in files if file.startswith(f"{folder.path.rstrip('/')}/")}


def _hidden(relative: str) -> bool:
    return any(part.startswith((".", "_SUCCESS")) for part in relative.split("/"))


# Decompression, with the same errors for every kind of storage.


def compression_of(head: bytes) -> str | None:
    """Detect the compression of a file from its beginning, at least 13 bytes; None if it is not compressed."""
    if found := next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None):
        return found
    # Both zstd and lz4 files may begin with a skippable frame, but only zstd tools write one (pzstd does).
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return "zstd"
    # The older .lzma format has no magic: check its properties, dictionary size, and a length that is unknown or sane.
    is_lzma = head.startswith(b"\x5d\x00\x00") and len(head) >= 13
    return "xz" if is_lzma and (head[5:13] == b"\xff" * 8 or head[10:13] == b"\0" * 3) else None


def decompressed(file: Any, compression: str | None) -> io.BufferedReader:
    """Return the decompressed content of an open file as buffered bytes.

    All concatenated streams, members or frames are read, and padding between them is skipped. Damage, truncation and
    trailing garbage raise one of `READ_ERRORS`.
    """
    stream: Any = file
    if compression == "gzip":
        stream = gzip.GzipFile(fileobj=file, mode="rb")
    elif compression in ("bz2", "xz"):
        stream = _Streams(file, bz2.BZ2Decompressor if compression == "bz2" else lzma.LZMADecompressor)
    elif compression is not None:
        # Unlike zstandard's reader, Arrow's reports a truncated file.
        stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)
    return io.BufferedReader(_Checked(stream), _BUFFER)


class _Streams(io.RawIOBase):
    """Reader of concatenated bz2 or xz streams.

    Python's own readers ignore a stream after padding, or one whose beginning is damaged, as trailing garbage.
    """

    def __init__(self, file: Any, decompressor: Callable[[], Any]) -> None:
        self._file, self._new = file, decompressor
        self._decompressor = decompressor()
        # Bytes read from the file but not yet decompressed.
        self._waiting = b""
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._decompressor.eof:
                self._waiting = self._decompressor.unused_data
                self._decompressor, self._begun = self._new(), False
            if self._decompressor.needs_input and not self._waiting:
                self._waiting = self._file.read(1 << 16)
                if not self._waiting:
                    if self._begun:
                        raise EOFError("the compressed file ended before its last stream did")
                    return 0
            if not self._begun:
                self._waiting = self._waiting.lstrip(b"\0")
                self._begun = bool(self._waiting)
                if not self._begun:
                    continue
            data = self._decompressor.decompress(self._waiting, len(buffer))
            self._waiting = b""
            if data:
                buffer[: len(data)] = data
                return len(data)


@contextmanager
def cut_short(name: str) -> Iterator[None]:
    """Turn `READ_ERRORS` into a `UserError` that names the file."""
    try:
        yield
    except READ_ERRORS as error:
        raise UserError(f"{name} can't be read to its end: {first_line(error)}") from error


def _all_said(error: Exception) -> str:
    """Return the whole message of a store's error on one line: its first line alone is often useless."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _as_read_errors() -> Iterator[None]:
    """Turn whatever a store or its network raises into one of `READ_ERRORS`."""
    try:
        yield
    except READ_ERRORS:
        raise
    except Exception as error:
        raise OSError(_all_said(error)) from error


class _Checked(io.RawIOBase):
    """Stream that raises only `READ_ERRORS`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def readinto(self, buffer: Any) -> int:
        with _as_read_errors():
            return int(self._stream.readinto(buffer))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _as_read_errors():
            return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())


def standard_input() -> io.BufferedReader:
    """Open standard input as buffered bytes; a signal interrupts a blocked read immediately."""
    try:
        descriptor = sys.stdin.fileno()
    except io.UnsupportedOperation:  # the calling program replaced sys.stdin
        return sys.stdin.buffer  # type: ignore[return-value]
    return io.BufferedReader(_StandardInput(descriptor), _BUFFER)


class _StandardInput(io.RawIOBase):
    """Reader of a descriptor that waits for data in short steps.

    Python runs a signal handler only after a system call returns. A signal that arrives just before a blocking read
    would wait for the next bytes, possibly forever.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not select.select([self._descriptor], [], [], _SIGNAL_S)[0]:
            pass
        return os.readv(self._descriptor, [buffer])
