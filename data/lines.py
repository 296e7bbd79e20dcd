"""Text without columns: checks for binary files, lines, and WikiExtractor's articles."""

import codecs
import html
import io
import re
import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record
from sentence_distill.data.sentences import THAI, UNSPACED
from sentence_distill.data.sources import HEAD_BYTES, Source, compression_of, cut_short

# Longer than a whole book on one line; it bounds memory on files without line ends.
MAX_LINE_CHARACTERS = 1 << 25

# UTF-32 comes first, because its mark begins with that of UTF-16.
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_UNPACK = "unpack it first, or name a file in it as fsspec does: "
_EXTRACT = "extract its text first, into a .txt file or JSON lines"
_EXPORT = "write its text as CSV, JSON lines or Parquet"
_NO_TEXT = (
    (
        (b"PK\x03\x04", b"PK\x05\x06"),
        "a zip archive, or an Office file, which is one",
        f"{_UNPACK}zip://NAME::FILE.zip",
    ),
    ((b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07"), "an archive", "unpack it first"),
    (b"%PDF-", "a PDF", _EXTRACT),
    (b"%!PS", "PostScript", _EXTRACT),
    (b"{\\rtf", "RTF", _EXTRACT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file", _EXTRACT),
    ((b"\x89PNG\r\n", b"\xff\xd8\xff"), "an image", "name a file that holds text"),
    (b"SQLite format 3\x00", "an SQLite database", _EXPORT),
    (b"\x93NUMPY", "a NumPy array", _EXPORT),
    (b"Obj\x01", "an Avro file", _EXPORT),
)
# Markup that is text, but not plain text.
_MARKUP = (
    (re.compile(rb"<!doctype\s+html|<html[\s>]", re.IGNORECASE), "an HTML page", _EXTRACT),
    (re.compile(rb"<mediawiki[\s>]"), "a dump of a wiki", "extract its articles with WikiExtractor first"),
    (re.compile(rb"<\?xml[\s?]"), "XML", _EXTRACT),
)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_FEWEST_CONTROLS, _CONTROL_SHARE = 8, 0.05

# WikiExtractor turns section headings into short paragraphs, many with a period added. Nearly all of its paragraphs of
# up to six words are headings, table cells and list items; most with seven or more are sentences.
_HEADING_WORDS = 6
# For scripts without blanks between words.
_HEADING_CHARACTERS = 20
_THAI_HEADING_CHARACTERS = 40
_TITLE = re.compile(r'title="(.*)">\s*$')
# Entities that WikiExtractor escapes, each once: "&amp;lt;" stands for "&lt;".
_ENTITY = re.compile("&(?:amp|lt|gt|quot|#39|#x27);")
# Ends of sentences in alphabetic, Armenian, Arabic, Indic, Ethiopic, Burmese, Khmer and Tibetan script.
_SENTENCE_END = re.compile("[.!?…‼⁇⁈⁉։؟۔।॥།፧፨၊။៕།]")
_WIDE_SENTENCE_END = re.compile("[。．！？｡…‼⁇⁈⁉၊။។៕།]")


def refuse_no_text(name: str, head: bytes, *, markup: bool = True) -> None:
    """Refuse a file that is not UTF-8 text, judging by its first decompressed bytes; `markup` also refuses HTML."""
    head = head[:HEAD_BYTES]
    # UTF-16 and UTF-32 would mostly decode as UTF-8, with zero bytes next to the letters.
    if encoding := next((encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if head.startswith(mark)), ""):
        raise _other_encoding(name, encoding)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    for magic, what, advice in _NO_TEXT:
        if head.startswith(magic):
            raise UserError(f"{name} is {what}, not text; {advice}")
    for pattern, what, advice in _MARKUP if markup else ():
        # An XML declaration, a comment or a processing instruction may come before the first tag.
        if pattern.match(start) or (start.startswith((b"<?xml", b"<!--")) and pattern.search(start)):
            raise UserError(f"{name} is {what}, not text; {advice}")
    if _is_tar(head):
        raise UserError(f"{name} is a tar archive, not text; {_UNPACK}tar://NAME::FILE.tar")
    if compression_of(head) is not None:
        raise UserError(f"{name} is compressed twice, or is a compressed file inside an archive; decompress it once")
    # A stray control character does not make a file binary.
    if (controls := len(_CONTROL.findall(head))) >= _FEWEST_CONTROLS and controls > _CONTROL_SHARE * len(head):
        if encoding := _unmarked_encoding(head):
            raise _other_encoding(name, encoding)
        raise UserError(f"{name} is a binary file, not text; name a file that holds text, or {_EXPORT}")


def _other_encoding(name: str, encoding: str) -> UserError:
    return UserError(f"{name} is {encoding}, not UTF-8; convert it first: iconv -f {encoding} -t UTF-8")


def _is_tar(head: bytes) -> bool:
    """Return True if `head` begins a tar archive: old ones have no magic, but each header has a checksum."""
    if len(head) < 512 or not head[:512].strip(b"\0"):
        return False
    try:
        tarfile.TarInfo.frombuf(head[:512], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _unmarked_encoding(head: bytes) -> str:
    """Return the encoding of UTF-16 text without a byte-order mark that is mostly ASCII; otherwise ""."""
    even, odd = head[0 : len(head) // 2 * 2 : 2], head[1::2]
    for zeros, others, encoding in ((odd, even, "UTF-16LE"), (even, odd, "UTF-16BE")):
        if len(zeros) > 1 and zeros.count(0) > 0.7 * len(zeros) and others.count(0) < 0.1 * len(others):
            return encoding
    return ""


def read_text(source: Source, start: Position, *, blank: bool = False) -> Iterator[Record]:
    """Yield each line; blank ones only with `blank`."""
    for record in read_lines(source, start):
        if blank or record.text is None or record.text.strip():
            yield record


def read_wikiextractor(source: Source, start: Position) -> Iterator[Record]:
    """Yield the paragraphs inside `<doc …>` blocks; tags and titles are skipped, headings are rejected.

    `start` must be the start of a record: then no title of its block comes after it.
    """
    title: str | None = None
    for record in read_lines(source, start):
        line = record.text.strip() if record.text is not None else None
        if line is None:
            title = None
            yield record
        elif line.startswith("<doc "):
            match = _TITLE.search(line)
            title = html.unescape(match[1]) if match else None
        elif line and not line.startswith("</doc"):
            line = _unescape(line)
            # Only the first line of a block can be its title.
            expected, title = title, None
            if expected is not None and line in (expected, f"{expected}."):
                continue
            if is_heading(line):
                yield Record(record.position, None, "heading", line[:EXCERPT_CHARACTERS])
            else:
                yield Record(record.position, line)


def article_record(position: Position, text: str, title: object, *, escaped: bool) -> Record:
    """Make a record of a multi-line article, as in WikiExtractor's JSON, without its title and headings."""
    lines = [line for part in text.splitlines() if (line := (_unescape(part) if escaped else part).strip())]
    if lines and lines[0] in (title, f"{title}."):
        del lines[0]
    headings = tuple(line[:EXCERPT_CHARACTERS] for line in lines if is_heading(line))
    return Record(position, "\n".join(line for line in lines if not is_heading(line)), headings=headings)


def _unescape(line: str) -> str:
    return _ENTITY.sub(lambda match: html.unescape(match[0]), line)


def is_heading(line: str) -> bool:
    """Return True if a line of an article is a heading or list item: it is short, or has no sentence end."""
    if not line.isascii() and len(UNSPACED.findall(line)) > len(line) / 2:
        if THAI.search(line):
            return len(line) < _THAI_HEADING_CHARACTERS
        if _WIDE_SENTENCE_END.search(line):
            return False
        # WikiExtractor adds an ASCII period to headings, so at the end of a short line it proves nothing.
        return len(line) < _HEADING_CHARACTERS or not _SENTENCE_END.search(line)
    return len(line.split(maxsplit=_HEADING_WORDS)) <= _HEADING_WORDS or not _SENTENCE_END.search(line)


def read_lines(source: Source, start: Position) -> Iterator[Record]:
    r"""Yield every line from `start` on as a record; as in all formats, `\n`, `\r\n` and a lone `\r` end a line."""
    number, offset = start.record, start.offset
    for line, size, complete in lines_of(source, offset):
        position = Position(start.file, number, offset)
        offset += size
        number += 1
        if not complete:
            yield Record(position, None, f"line over {MAX_LINE_CHARACTERS:,} characters", line[:EXCERPT_CHARACTERS])
        elif is_utf8(line):
            yield Record(position, line)
        else:
            yield Record(position, None, "not UTF-8", shown_bytes(line))


def lines_of(source: Source, offset: int) -> Generator[tuple[str, int, bool], None, None]:
    """Yield each line from a byte offset on, with its line end, its size in bytes, and True unless it was cut.

    Lines over `MAX_LINE_CHARACTERS` are cut. A byte-order mark is removed, but counts toward the first line's size.
    """
    with open_text(source, offset) as text:
        while line := text.readline(MAX_LINE_CHARACTERS + 1):
            size = byte_size(line)
            complete = len(line) <= MAX_LINE_CHARACTERS or line.endswith(("\n", "\r"))
            if not complete:
                while (rest := text.readline(MAX_LINE_CHARACTERS)) and not rest.endswith(("\n", "\r")):
                    size += byte_size(rest)
                size += byte_size(rest)
            yield line if offset else line.removeprefix("\ufeff"), size, complete
            offset += size


@contextmanager
def open_text(source: Source, offset: int) -> Iterator[io.TextIOWrapper]:
    """Open a file at a byte offset as text with its line ends; bytes that are not UTF-8 become lone surrogates."""
    with cut_short(source.name), source.open() as stream:
        if not offset:
            refuse_no_text(source.name, stream.peek(1), markup=False)
        elif source.compression is None:
            stream.seek(offset)
        else:
            while offset > 0 and (chunk := stream.read(min(offset, 1 << 20))):
                offset -= len(chunk)
        text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
        try:
            yield text
        finally:
            # The stream's owner closes it, and already has if the caller stopped reading early.
            if not stream.closed:
                text.detach()


def byte_size(text: str) -> int:
    """Return the size of text in its file, including bytes that are not UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def is_utf8(text: str) -> bool:
    """Return True if text that was decoded with surrogateescape was valid UTF-8."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def shown_bytes(text: str) -> str:
    """Return the beginning of text that was not UTF-8, with escapes."""
    return repr(text[:EXCERPT_CHARACTERS].encode("utf-8", "surrogateescape"))[2:-1]


def sentences_of_file(file: Path, count: int) -> list[str]:
    """Return the first `count` non-empty lines of the text file given as --sentences."""
    sentences: list[str] = []
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if len(sentences) < count and line.strip():
                    sentences.append(line.strip())
    except FileNotFoundError:
        raise UserError(f"--sentences {file} does not exist; it should be a text file, one sentence per line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--sentences {file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not sentences:
        raise UserError(f"--sentences {file} holds no sentences")
    return sentences
