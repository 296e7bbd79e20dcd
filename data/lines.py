"""Readers of what has no columns: lines of plain text, and WikiExtractor's articles."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sentence_distill.data.errors import UserError
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record
from sentence_distill.data.sentences import THAI, UNSPACED
from sentence_distill.data.sources import Source, refuse_no_text
from sentence_distill.data.streams import cut_short

# A book a line is shorter; the bound keeps memory flat on a file that has no line ends.
MAX_LINE_CHARACTERS = 1 << 25
# WikiExtractor leaves section headings as short paragraphs, many with a period that it adds. Of its paragraphs with up
# to six words nearly all are headings, cells and list items; from seven words on most are sentences.
_HEADING_WORDS = 6
# In scripts that put no blanks between words.
_HEADING_CHARACTERS = 20
_THAI_HEADING_CHARACTERS = 40
_TITLE = re.compile(r'title="(.*)">\s*$')
# What WikiExtractor escapes, each once: "&amp;lt;" stands for "&lt;".
_ENTITY = re.compile("&(?:amp|lt|gt|quot|#39|#x27);")
# What ends a sentence: in alphabets, in Armenian, Arabic, Indic, Ethiopic, Burmese, Khmer and Tibetan script.
_SENTENCE_END = re.compile("[.!?…‼⁇⁈⁉։؟۔।॥።፧፨၊။។៕།]")
_WIDE_SENTENCE_END = re.compile("[。．！？｡…‼⁇⁈⁉၊။។៕།]")


def read_text(source: Source, start: Position, *, blank: bool = False) -> Iterator[Record]:
    """Yield each line that is not blank, and with `blank` those as well."""
    for record in read_lines(source, start):
        if blank or record.text is None or record.text.strip():
            yield record


def read_wikiextractor(source: Source, start: Position) -> Iterator[Record]:
    """Yield the paragraphs inside `<doc …>` blocks; tags and titles are no records, headings are rejected.

    `start` must be where a record began, so that no title is ahead of it in its block.
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
            line = unescape(line)
            # Only the first line of a block is its title: a slice may begin at any later one.
            expected, title = title, None
            if expected is not None and line in (expected, f"{expected}."):
                continue
            if is_heading(line):
                yield Record(record.position, None, "heading", line[:EXCERPT_CHARACTERS])
            else:
                yield Record(record.position, line)


def article_record(position: Position, text: str, title: object, *, escaped: bool) -> Record:
    """Make a record of an article of several lines, as WikiExtractor writes it into JSON: headings are taken out."""
    lines = [line for part in text.splitlines() if (line := (unescape(part) if escaped else part).strip())]
    if lines and lines[0] in (title, f"{title}."):
        del lines[0]
    headings = tuple(line[:EXCERPT_CHARACTERS] for line in lines if is_heading(line))
    return Record(position, "\n".join(line for line in lines if not is_heading(line)), headings=headings)


def unescape(line: str) -> str:
    """Undo what WikiExtractor escapes."""
    return _ENTITY.sub(lambda match: html.unescape(match[0]), line) if "&" in line else line


def is_heading(line: str) -> bool:
    """Return whether a line of an article is a heading, or an item of a list: a short one, or one without an end."""
    if not line.isascii() and len(UNSPACED.findall(line)) > len(line) / 2:
        if THAI.search(line):
            return len(line) < _THAI_HEADING_CHARACTERS
        if _WIDE_SENTENCE_END.search(line):
            return False
        # The period of a heading is WikiExtractor's own.
        return len(line) < _HEADING_CHARACTERS or not _SENTENCE_END.search(line)
    return len(line.split(maxsplit=_HEADING_WORDS)) <= _HEADING_WORDS or not _SENTENCE_END.search(line)


def read_lines(source: Source, start: Position) -> Iterator[Record]:
    r"""Yield every line as a record, from `start` on; `\n`, `\r\n` and `\r` alone end one, here and in all formats.

    Raises:
        UserError: the file holds no text in UTF-8.
    """
    number, offset = start.record, start.offset
    with cut_short(source.name), source.open() as stream:
        for line, size, complete in lines_of(source.name, stream, offset, seekable=source.compression is None):
            position = Position(start.file, number, offset)
            offset += size
            number += 1
            if not complete:
                yield Record(position, None, f"line over {MAX_LINE_CHARACTERS:,} characters", line[:EXCERPT_CHARACTERS])
            elif is_utf8(line):
                yield Record(position, line)
            else:
                yield Record(position, None, "not UTF-8", shown_bytes(line))


def lines_of(name: str, stream: BinaryIO, offset: int, *, seekable: bool) -> Iterator[tuple[str, int, bool]]:
    """Yield each line with its end, its size in bytes, and whether it is whole, and not cut for its length.

    For the arguments and errors see `text_from`. A byte-order mark counts to the first line's size alone.
    """
    with text_from(name, stream, offset, seekable=seekable) as text:
        is_first = not offset
        while line := text.readline(MAX_LINE_CHARACTERS + 1):
            size = byte_size(line)
            complete = len(line) <= MAX_LINE_CHARACTERS or line.endswith(("\n", "\r"))
            if not complete:
                while (rest := text.readline(MAX_LINE_CHARACTERS)) and not rest.endswith(("\n", "\r")):
                    size += byte_size(rest)
                size += byte_size(rest)
            yield line.removeprefix("\ufeff") if is_first else line, size, complete
            is_first = False


@contextmanager
def text_from(name: str, stream: BinaryIO, offset: int, *, seekable: bool) -> Iterator[io.TextIOWrapper]:
    """Open a stream of bytes as text whose lines keep the ends they have.

    Bytes that are not UTF-8 become lone surrogates; see `is_utf8`.

    Args:
        name: of the file, for messages.
        stream: its decompressed content.
        offset: where to begin; the bytes before are skipped.
        seekable: whether that is done in one step.

    Raises:
        UserError: it begins at 0, and the file holds no text in UTF-8.
    """
    if not offset:
        refuse_no_text(name, stream.peek(1), markup=False)  # type: ignore[attr-defined]
    elif seekable:
        stream.seek(offset)
    else:
        _skip(stream, offset)
    text = io.TextIOWrapper(stream, "utf-8", errors="surrogateescape", newline="")
    try:
        yield text
    finally:
        # The stream is closed by who opened it.
        text.detach()


def byte_size(text: str) -> int:
    """Return how many bytes text took in its file, those that are not UTF-8 included."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogateescape"))


def is_utf8(text: str) -> bool:
    """Return whether text that was decoded with surrogateescape was UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown_bytes(text: str) -> str:
    """Show the beginning of text that was not UTF-8."""
    return repr(text[:EXCERPT_CHARACTERS].encode("utf-8", "surrogateescape"))[2:-1]


def _skip(stream: BinaryIO, size: int) -> None:
    while size > 0 and (chunk := stream.read(min(size, 1 << 20))):
        size -= len(chunk)


def sentences_of_file(file: Path, count: int) -> list[str]:
    """Return the first `count` lines of a text file that are not empty.

    Raises:
        UserError: it is not there, holds none, or is not UTF-8.
    """
    sentences: list[str] = []
    try:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                if len(sentences) < count and line.strip():
                    sentences.append(line.strip())
    except FileNotFoundError:
        raise UserError(f"--sentences {file} is not there; it should be a text file with one sentence a line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"--sentences {file} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not sentences:
        raise UserError(f"--sentences {file} holds no sentence")
    return sentences
