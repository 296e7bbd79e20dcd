"""Readers of line formats: plain text, WikiExtractor output and JSON lines."""

import html
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from sentence_distill.data.errors import UserError
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record, join_sides
from sentence_distill.data.sources import Source, check_encoding, open_source

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
    # Whoever begins further on has a plan, for which the file was read from its beginning.
    is_first = start.record == 0
    for record in _lines(source, start):
        if record.text is None:
            yield record
        elif record.text.strip():
            value = _json_object(record)
            if isinstance(value, dict):
                if is_first:
                    _check_fields(value, fields, f"{source.name}, line {record.position.record + 1}")
                    is_first = False
                value = _json_record(record, value, fields)
            yield value


def _json_object(record: Record) -> dict[str, Any] | Record:
    """The object on a line, or the record that says why there is none."""
    assert record.text is not None
    try:
        value = json.loads(record.text)
    except (ValueError, RecursionError):  # not JSON, or a number with thousands of digits
        return _rejected(record, "not JSON")
    return value if isinstance(value, dict) else _rejected(record, "not a JSON object")


def _check_fields(value: dict[str, Any], fields: Sequence[str], where: str) -> None:
    if missing := [field for field in fields if field not in value]:
        raise UserError(
            f"{where}: no field {missing[0]!r} in its first object, which has {', '.join(sorted(value)) or 'none'}; "
            "name one with --text-field"
        )


def _json_record(record: Record, value: dict[str, Any], fields: Sequence[str]) -> Record:
    for field in fields:
        if field not in value:
            return _rejected(record, f"no field {field}")
        if not isinstance(value[field], str):
            return _rejected(record, f"field {field} is not a string")
    text = join_sides([value[field] for field in fields])
    # A lone surrogate is legal in JSON's escapes, and in no encoding of text.
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        return _rejected(record, "not UTF-8")
    return Record(record.position, text)


def _rejected(record: Record, reason: str) -> Record:
    assert record.text is not None
    return Record(record.position, None, reason, record.text[:EXCERPT_CHARACTERS])


def _lines(source: Source, start: Position) -> Iterator[Record]:
    """Yield every line as a record, from `start` on.

    Raises:
        UserError: the file begins with the byte-order mark of UTF-16 or UTF-32.
    """
    number, offset = start.record, start.offset
    with open_source(source) as stream:
        if source.compression is None and offset:
            stream.seek(offset)
        else:
            _skip(stream, offset)
        while line := stream.readline(MAX_LINE_BYTES + 1):
            if number == 0:
                check_encoding(source, line)
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
