"""Opening what is read: files by fsspec, standard input, and decompression that checks the end of every stream."""

import bz2
import gzip
import io
import lzma
import os
import select
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import IO, Any, BinaryIO

import pyarrow as pa
from fsspec.core import OpenFile

from sentence_distill.data.errors import UserError, first_line

READ_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)
"""What reading a source raises if its file is damaged or cut short."""
_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_LZMA = b"\x5d\x00\x00"
SUFFIXES = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".zstd", ".lz4")
_BUFFER = 1 << 20
_CHUNK = 1 << 16
_SIGNAL_S = 0.2


def compression_of(head: bytes) -> str | None:
    """Return what compressed a file that begins with at least 13 bytes `head`; None if nothing did."""
    if found := next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None):
        return found
    # zstd and lz4 may begin with frames that carry no content; pzstd writes one. Which of the two follows shows only
    # behind it, and lz4's tools write none.
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return "zstd"
    # .lzma of before xz has no magic, but its properties, a dictionary's size and a length that is unknown or sane.
    if head.startswith(_LZMA) and len(head) >= 13 and (head[5:13] == b"\xff" * 8 or head[10:13] == b"\0" * 3):
        return "xz"
    return None


@contextmanager
def opened(file: OpenFile, compression: str | None) -> Iterator[io.BufferedReader]:
    """Open a file, yield its decompressed content, and close it; see `decompressed`."""
    # Held open by it: of a file in an archive the archive too.
    with closing(file):
        with _named_errors():
            stream = file.open()
        yield decompressed(stream, compression)


def decompressed(file: Any, compression: str | None) -> io.BufferedReader:
    """Return the decompressed content of an open file as buffered bytes.

    Every stream, member or frame of a compressed file is read to its end, and so is padding between them; whatever is
    damaged, cut short or no such stream raises one of `READ_ERRORS`.
    """
    stream: Any = file
    if compression == "gzip":
        stream = gzip.GzipFile(fileobj=file, mode="rb")
    elif compression in ("bz2", "xz"):
        stream = _Streams(file, bz2.BZ2Decompressor if compression == "bz2" else lzma.LZMADecompressor)
    elif compression is not None:
        # Arrow's reader reports a file that was cut short, which zstandard's does not.
        stream = pa.CompressedInputStream(pa.PythonFile(file, "r"), compression)
    return io.BufferedReader(_Named(stream), _BUFFER)


class _Streams(io.RawIOBase):
    """Decompresses bz2 or xz streams that follow each other.

    Python's own readers take a stream that begins with damage, or behind padding, for garbage to be left out.
    """

    def __init__(self, file: Any, decompressor: Callable[[], Any]) -> None:
        self._file, self._new = file, decompressor
        self._decompressor = decompressor()
        # Not yet decompressed, in front of the file's next bytes.
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
                self._waiting = self._file.read(_CHUNK)
                if not self._waiting:
                    if self._begun:
                        raise EOFError("the compressed file ended before its last stream did")
                    return 0
            if not self._begun and not (waiting := self._waiting.lstrip(b"\0")):
                self._waiting = waiting
                continue
            if not self._begun:
                self._waiting, self._begun = waiting, True
            data = self._decompressor.decompress(self._waiting, len(buffer))
            self._waiting = b""
            if data:
                buffer[: len(data)] = data
                return len(data)


@contextmanager
def seekable(stream: BinaryIO, compression: str | None) -> Iterator[IO[bytes]]:
    """Yield an open stream for random access; what is compressed passes through a temporary file."""
    if compression is None:
        yield stream
        return
    with tempfile.TemporaryFile() as copy:
        while chunk := stream.read(1 << 22):
            copy.write(chunk)
        copy.seek(0)
        yield copy


@contextmanager
def cut_short(name: str) -> Iterator[None]:
    """Make a `UserError` that names the file of a `READ_ERRORS`."""
    try:
        yield
    except READ_ERRORS as error:
        raise UserError(f"{name} can't be read to its end: {first_line(error)}") from error


def all_said(error: Exception) -> str:
    """Return all that a store's error says: its first line alone often says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def _named_errors() -> Iterator[None]:
    """Make a `READ_ERRORS` of what a store or its network raises; each has errors of its own."""
    try:
        yield
    except READ_ERRORS:
        raise
    except Exception as error:
        raise OSError(all_said(error)) from error


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


def standard_input() -> io.BufferedReader:
    """Open standard input as buffered bytes; a signal ends a wait for them at once."""
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
