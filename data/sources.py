"""Find the files of a corpus and the format of each."""

import codecs
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO, NoReturn

import fsspec
from fsspec.core import OpenFile, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import stream_hash
from sentence_distill.data.streams import (
    SUFFIXES,
    all_said,
    compression_of,
    cut_short,
    opened,
    seekable,
)

_WILDCARD = re.compile(r"[*?\[]")
HEAD_BYTES = 4096
"""What `Source.head` reads."""
_LOCAL = "file://"
STANDARD_INPUT = "-"
# A folder that holds a file of these is one of tables: what else lies in it describes them.
_TABLES = (".parquet", ".arrow", ".feather", ".ipc", ".jsonl", ".ndjson", ".json", ".csv", ".tsv")
_TEXTS = (".txt", ".text")
# Written by `datasets` and the hub's tools beside the data.
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
_ABOUT = re.compile(r"(readme|licen[cs]e|notice|changelog|citation)(\.[a-z]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Source:
    """One file of a corpus.

    `url` is what fsspec opens, `name` what messages and manifests show (never a folder of this machine). Standard input
    is a `stream` that is open already, and decompressed.
    """

    url: str
    name: str
    size: int
    compression: str | None
    stream: BinaryIO | None = field(default=None, compare=False)

    @property
    def plain_name(self) -> str:
        """The name without the suffix of its compression."""
        for suffix in SUFFIXES:
            if self.name.lower().endswith(suffix):
                return self.name[: -len(suffix)]
        return self.name

    def is_file(self, path: Path) -> bool:
        """Return whether it is the file at `path`, by whatever name or link."""
        local = self.url.removeprefix(_LOCAL)
        return local != self.url and path.exists() and path.samefile(local)

    def head(self) -> bytes:
        """Read the first bytes of the decompressed content."""
        with self.open() as stream:
            return stream.read(HEAD_BYTES)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the decompressed content as buffered bytes; see `streams.decompressed`."""
        if self.stream is not None:
            yield self.stream
            return
        with opened(self._file(), self.compression) as stream:
            yield stream

    @contextmanager
    def open_seekable(self) -> Iterator[IO[bytes]]:
        """Open the decompressed content for random access."""
        with self.open() as stream, seekable(stream, self.compression) as content:
            yield content

    def content_hash(self) -> str:
        """Return the xxh3-128 of the file as it lies there, compressed or not.

        Raises:
            UserError: it can't be read to its end.
        """
        with cut_short(self.name), opened(self._file(), None) as stream:
            return stream_hash(stream)

    def _file(self) -> OpenFile:
        # Of a local file's name nothing is syntax: "::" would make a chain of it.
        if self.url.startswith(_LOCAL):
            return OpenFile(LocalFileSystem(), self.url.removeprefix(_LOCAL))
        return fsspec.open(self.url, "rb")


def find_sources(
    locations: Sequence[str], leave_out: Path | None = None, log: Callable[[str], None] = lambda line: None
) -> list[Source]:
    """List the files of `locations`, in the order given and by name inside a folder or glob.

    Of a folder, hidden files, READMEs and licenses are left out; so is all that is no data file where it holds tables
    (Parquet, Arrow, JSON, CSV or TSV), as a clone of a dataset does.

    Args:
        locations: files, folders (searched to any depth), globs, and fsspec URLs.
        leave_out: a folder whose files are no corpus when a folder or glob is searched: the run's own output.
        log: called with a line that names what else was left out of a folder.

    Raises:
        UserError: a location that is not there, can't be read, or holds no file.
    """
    sources = [source for location in locations for source in _expand(location, leave_out, log)]
    if not sources:
        raise UserError("there is nothing to read; name a file, a folder, a glob or a URL")
    return sources


def _expand(location: str, leave_out: Path | None, log: Callable[[str], None]) -> list[Source]:
    try:
        if os.path.isfile(location):
            local = os.path.abspath(location)
            return [_source(LocalFileSystem(), local, os.path.basename(local), f"{_LOCAL}{local}")]
        chain = "" if os.path.exists(location) else location.partition("::")[2]
        # Of a local path nothing is syntax.
        exists = os.path.exists(location)
        fs, path = (LocalFileSystem(), os.path.abspath(location)) if exists else url_to_fs(location)

        def source(file: str, name: str) -> Source:
            url = fs.unstrip_protocol(file) + (f"::{chain}" if chain else "")
            return _source(fs, file, name, url)

        if fs.isfile(path):
            return [source(path, path.rsplit("/", 1)[-1])]
        # Names begin behind the folder, or behind the part of a glob that has no wildcard.
        root = path if fs.isdir(path) else _WILDCARD.split(path)[0].rsplit("/", 1)[0]
        matched = [path] if fs.isdir(path) else fs.glob(path) if _WILDCARD.search(path) else []
        files = {file for match in matched for file in _files_at(fs, match, leave_out, log)}
        found = [f for f in sorted(files) if not _hidden(f[len(root) :])]
        if not found:
            raise UserError(f"{location} is not there, or holds no file; check the path")
        return [source(file, file[len(root) :].lstrip("/")) for file in found]
    except UserError:
        raise
    except Exception as error:  # wrong credentials, say: each store has errors of its own
        raise UserError(f"{location} can't be opened: {all_said(error)}") from error


def _files_at(
    fs: fsspec.AbstractFileSystem, place: str, leave_out: Path | None, log: Callable[[str], None]
) -> set[str]:
    """Return the data files of a folder to any depth, or the file that `place` is; pipes and devices are none."""
    local = isinstance(fs, LocalFileSystem)
    is_folder = os.path.isdir(place) if local else fs.isdir(place)
    found = set(_walk(place) if local else fs.find(place)) if is_folder else {place}
    if leave_out is not None:
        # First of all: shards would make a folder of text one of tables.
        found -= _files_in(fs, found, leave_out)
    if is_folder:
        found = set(_data_files(place, found, log))
    # To open a pipe may wait forever. A link to nothing stays, for an error when it is opened.
    return {file for file in found if not local or os.path.isfile(file) or not os.path.exists(file)}


def _data_files(place: str, found: Iterable[str], log: Callable[[str], None]) -> list[str]:
    """Leave out of a folder's files what describes the others.

    Raises:
        UserError: it is a dataset of several splits, or one in it is.
    """
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
        # A saved dataset's rows lie in data-*.arrow; the others are caches of operations on it.
        if folder in saved and not (name.endswith(".arrow") and not name.startswith(("cache-", "tmp"))):
            continue
        if name not in _DESCRIPTIONS and not _ABOUT.fullmatch(name):
            kept.append(file)
    if any(_is_named(file, _TABLES) for file in kept):
        kept = [file for file in kept if _is_named(file, (*_TABLES, *_TEXTS))]
    if left := sorted(set(files) - set(kept)):
        others = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
        log(f"left out of {place}, since it is no data: {left[0][len(place) :].lstrip('/')}{others}")
    return kept


def _is_named(file: str, suffixes: tuple[str, ...]) -> bool:
    name = PurePosixPath(file).name.lower()
    return name.removesuffix(next((end for end in SUFFIXES if name.endswith(end)), "")).endswith(suffixes)


def _walk(folder: str) -> Iterator[str]:
    """Yield all that is no folder below a local one; fsspec drops what it can't list, and follows no link to a folder.

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
        f"folder {error.filename} can't be listed ({error.strerror}); make it readable, or name "
        "the files and folders to read instead"
    ) from error


def _files_in(fs: fsspec.AbstractFileSystem, files: set[str], folder: Path) -> set[str]:
    """Return those of `files` that lie in `folder`, a local one by whatever links, or one of an object store."""
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


def _source(fs: fsspec.AbstractFileSystem, path: str, name: str, url: str) -> Source:
    with fs.open(path, "rb") as stream:
        head = stream.read(16)
    return Source(url=url, name=name, size=int(fs.size(path) or 0), compression=compression_of(head))


# What a file is: found from its first bytes, then from its name, and refused by what it is if it holds no text.

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
}
# UTF-32's begins with UTF-16's, so it comes first.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_UNPACK = "unpack it first, or name a file in it as fsspec does: "
_EXTRACT = "extract its text first, into a .txt file or JSON lines"
_NO_TEXT = (
    (b"PK\x03\x04", "a zip archive, or an Office file, which is one", f"{_UNPACK}zip://NAME::FILE.zip"),
    (b"PK\x05\x06", "an empty zip archive", "name a file that holds text"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!\x1a\x07", "a RAR archive", "unpack it first"),
    (b"!<arch>\n", "an ar archive", "unpack it first"),
    (b"%PDF-", "a PDF", _EXTRACT),
    (b"%!PS", "PostScript", _EXTRACT),
    (b"{\\rtf", "RTF", _EXTRACT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", _EXTRACT),
    (b"\x89PNG\r\n", "a PNG image", "name a file that holds text"),
    (b"\xff\xd8\xff", "a JPEG image", "name a file that holds text"),
    (b"\x7fELF", "a program", "name a file that holds text"),
    (b"SQLite format 3\x00", "an SQLite database", "export its table as CSV or JSON lines"),
    (b"\x89HDF\r\n", "an HDF5 file", "write its text as Parquet or JSON lines"),
    (b"\x93NUMPY", "a NumPy array", "write its text as Parquet or JSON lines"),
    (b"Obj\x01", "an Avro file", "convert it to Parquet or JSON lines"),
)
# Letters that could begin a text as well: these files hold zero bytes too.
_NO_TEXT_WITH_ZEROS = (
    (b"GIF8", "a GIF image", "name a file that holds text"),
    (b"RIFF", "a RIFF file (sound, film or WebP)", "name a file that holds text"),
    (b"OggS", "an Ogg file", "name a file that holds text"),
    (b"ORC", "an ORC file", "convert it to Parquet"),
    (b"FEA1", "a Feather file of version 1", "write it as version 2, which is Arrow, or as Parquet"),
)
# A page, or a dump of a wiki.
_MARKUP = (
    (re.compile(rb"<!doctype\s+html|<html[\s>]", re.IGNORECASE), "an HTML page", _EXTRACT),
    (re.compile(rb"<mediawiki[\s>]"), "a dump of a wiki", "extract its articles with WikiExtractor first"),
    (re.compile(rb"<\?xml[\s?]"), "XML", _EXTRACT),
)

_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_FEWEST_CONTROLS, _CONTROL_SHARE = 8, 0.05


def detect_format(source: Source) -> str:
    """Return the one of `FORMATS` that a file has, from its first bytes if they are distinctive, else from its name.

    Raises:
        UserError: it can't be read, or holds no text: an archive, a page, an image.
    """
    with cut_short(source.name):
        head = source.head()
    name = source.plain_name.lower()
    named = next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    if named == "arrow" and head[:4] == b"\xff\xff\xff\xff":  # a stream, as `datasets` saves
        return "arrow"
    if head and named in ("parquet", "arrow"):
        raise UserError(f"{source.name} is named as {named}, and is none; check where it is from")
    return format_of_text(source.name, head, named)


def format_of_text(name: str, head: bytes, named: str | None = None) -> str:
    """Return the format of a file or stream that is neither Parquet nor Arrow.

    Args:
        name: of it, for messages.
        head: its first bytes, decompressed.
        named: the format that its name stands for.

    Raises:
        UserError: it holds no text.
    """
    refuse_no_text(name, head)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"<doc "):
        return "wikiextractor"
    if named in (None, "jsonl") and re.match(rb"\[\s*(\{\s*[\"}]|\])", start):
        return "json"
    if named is not None:
        return "json" if named == "jsonl" and start.startswith(b"[") and name.lower().endswith(".json") else named
    return "jsonl" if re.match(rb"\{\s*\"", start) else "text"


def refuse_no_text(name: str, head: bytes, *, markup: bool = True) -> None:
    """Refuse what is no text in UTF-8, by what it is.

    Args:
        name: of the file or stream, for messages.
        head: its first bytes, decompressed.
        markup: refuse pages and XML too; False if the user says what the file is.

    Raises:
        UserError: it says what, and what to do.
    """
    head = head[:HEAD_BYTES]
    # Most lines of the other encodings are UTF-8 too, with a zero byte at each letter.
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            raise UserError(f"{name} is {encoding}, not UTF-8; convert it first: iconv -f {encoding} -t UTF-8")
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    for magic, what, advice in (*_NO_TEXT, *(_NO_TEXT_WITH_ZEROS if b"\0" in head else ())):
        if head.startswith(magic):
            raise UserError(f"{name} is {what}, not text; {advice}")
    for pattern, what, advice in _MARKUP if markup else ():
        # An XML declaration, a comment or a processing instruction may stand before the first tag.
        if pattern.match(start) or (start.startswith((b"<?xml", b"<!--")) and pattern.search(start)):
            raise UserError(f"{name} is {what}, not text; {advice}")
    if _is_tar(head):
        raise UserError(f"{name} is a tar archive, not text; {_UNPACK}tar://NAME::FILE.tar")
    if compression_of(head) is not None:
        raise UserError(f"{name} is compressed twice, or is a compressed file inside an archive; decompress it once")
    # A stray control character makes no binary file of a text.
    if (controls := len(_CONTROL.findall(head))) >= _FEWEST_CONTROLS and controls > _CONTROL_SHARE * len(head):
        if encoding := _unmarked_encoding(head):
            raise UserError(f"{name} is {encoding}, not UTF-8; convert it first: iconv -f {encoding} -t UTF-8")
        raise UserError(f"{name} is a binary file, not text; name a file that holds text")


def _is_tar(head: bytes) -> bool:
    """Return whether a tar archive begins with `head`; its header has a checksum, and no magic in old ones."""
    if len(head) < 512 or not head[:512].strip(b"\0"):
        return False
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _unmarked_encoding(head: bytes) -> str:
    """Return the encoding of text of mostly ASCII letters without a byte-order mark, or ""."""
    even, odd = head[0 : len(head) // 2 * 2 : 2], head[1::2]
    for zeros, encoding in ((odd, "UTF-16LE"), (even, "UTF-16BE")):
        others = even if zeros is odd else odd
        if len(zeros) > 1 and zeros.count(0) > 0.7 * len(zeros) and others.count(0) < 0.1 * len(others):
            return encoding
    return ""
