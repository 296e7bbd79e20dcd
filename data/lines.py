"""Readers of line formats: plain text, WikiExtractor output and JSON lines."""

import html
import json
import re
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from sentence_distill.data.errors import UserError
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record, join_sides
from sentence_distill.data.sources import Source, open_source

# No paragraph of prose is longer; the bound keeps memory flat on a file that has no line ends.
MAX_LINE_BYTES = 1 << 20
# WikiExtractor leaves section headings as short paragraphs. Of its paragraphs with up to six words nearly all
# are headings, cells and list items; from seven words on most are sentences.
HEADING_WORDS = 6
_TITLE = re.compile(r'title="(.*)">\s*$')


def read_text(source: Source, start: Position, *, blank: bool = False) -> Iterator[Record]:
    """Yield each line that is not blank, and with `blank` those as well."""
    for record in _lines(source, start):
        if blank or record.text is None or record.text.strip():
            yield record


def read_wikiextractor(source: Source, start: Position) -> Iterator[Record]:
    """Yield the paragraphs inside `<doc …>` blocks; tags and titles are no records, headings are rejected.

    `start` must be where a record began, so that no title is ahead of it in its block.
    """
    title: str | None = None
    for record in _lines(source, start):
        line = record.text.strip() if record.text is not None else None
        if line is None:
            title = None
            yield record
        elif line.startswith("<doc "):
            match = _TITLE.search(line)
            title = html.unescape(match[1]) if match else None
        elif line and not line.startswith("</doc"):
            # Only the first line of a block is its title: a slice may begin at any later one.
            expected, title = title, None
            if expected is not None and line in (expected, f"{expected}."):
                continue
            if len(line.split()) <= HEADING_WORDS:
                yield Record(record.position, None, "heading", line[:EXCERPT_CHARACTERS])
            else:
                yield record


def read_jsonl(source: Source, start: Position, fields: Sequence[str]) -> Iterator[Record]:
    """Yield the string at the one of `fields`, or the pair at the two, of the JSON object on each line.

    Raises:
        UserError: the file's first object lacks a field (in later ones it is a rejected record).
    """
    for record in _lines(source, start):
        if record.text is None:
            yield record
        elif record.text.strip():
            yield _json_record(record, fields, source)


def _json_record(record: Record, fields: Sequence[str], source: Source) -> Record:
    assert record.text is not None
    excerpt = record.text[:EXCERPT_CHARACTERS]
    try:
        value = json.loads(record.text)
    except (ValueError, RecursionError):  # not JSON, or a number with thousands of digits
        return Record(record.position, None, "not JSON", excerpt)
    if not isinstance(value, dict):
        return Record(record.position, None, "not a JSON object", excerpt)
    for field in fields:
        if field not in value:
            if record.position.record == 0:
                raise UserError(
                    f"{source.name}: no field {field!r} in its first line, which has "
                    f"{', '.join(sorted(value)) or 'none'}; name one with --text-field"
                )
            return Record(record.position, None, f"no field {field}", excerpt)
        if not isinstance(value[field], str):
            return Record(record.position, None, f"field {field} is not a string", excerpt)
    text = join_sides([value[field] for field in fields])
    # A lone surrogate is legal in JSON's escapes, and in no encoding of text.
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        return Record(record.position, None, "not UTF-8", excerpt)
    return Record(record.position, text)


def _lines(source: Source, start: Position) -> Iterator[Record]:
    """Yield every line as a record, from `start` on."""
    number, offset = start.record, start.offset
    with open_source(source) as stream:
        if source.compression is None and offset:
            stream.seek(offset)
        else:
            _skip(stream, offset)
        while line := stream.readline(MAX_LINE_BYTES + 1):
            position = Position(start.file, number, offset)
            offset += len(line)
            number += 1
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                offset += _skip_line(stream)
                yield Record(position, None, f"line over {MAX_LINE_BYTES:,} bytes")
                continue
            if position.record == 0:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield Record(position, line.decode())
            except UnicodeDecodeError:
                yield Record(position, None, "not UTF-8", repr(line[:EXCERPT_CHARACTERS])[2:-1])


def _skip(stream: BinaryIO, size: int) -> None:
    while size > 0 and (chunk := stream.read(min(size, MAX_LINE_BYTES))):
        size -= len(chunk)


def _skip_line(stream: BinaryIO) -> int:
    skipped = 0
    while rest := stream.readline(MAX_LINE_BYTES):
        skipped += len(rest)
        if rest.endswith(b"\n"):
            break
    return skipped
