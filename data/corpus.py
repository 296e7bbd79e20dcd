"""A corpus: its sources, their formats, and one stream of records or rows over all of them."""

import codecs
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.lines import article_record, read_text, read_wikiextractor, refuse_no_text
from sentence_distill.data.records import LINE_FORMATS, Position, Record, Row
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.data.sources import (
    STANDARD_INPUT,
    Source,
    compression_of,
    cut_short,
    decompressed,
    distinct_names,
    find_sources,
    plain_name,
    standard_input,
)
from sentence_distill.data.tables import read_table

# Columns of WikiExtractor's JSON, and of the dataset built from it, whose text has many lines, headings among them.
_ARTICLE = ("id", "url", "title", "text")
_CHECKED_FILES = 20
_STDIN = "standard input"
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


@dataclass(frozen=True)
class Corpus:
    """Sources that are read one after the other."""

    sources: Sequence[Source]
    format: str | None = None
    """An `InputFormat`; None detects the format of each file from its name and content."""
    text_column: str = "text"
    """Column of the text, or the two columns of a pair, separated by a comma."""
    keep_blank: bool = False
    """True if blank lines of plain text are records, too."""
    names: Sequence[str] = ()
    """Names of the locations where the sources were found; see `Source.location`."""

    @classmethod
    def open(
        cls,
        locations: Sequence[str],
        *,
        format: str | None = None,
        text_column: str = "text",
        leave_out: Path | None = None,
        keep_blank: bool = False,
        log: Callable[[str], None] = lambda line: None,
    ) -> "Corpus":
        """Find the files of `locations` (see `find_sources`); pairs need formats with columns."""
        sources = find_sources(locations, leave_out, log)
        corpus = cls(sources, format, text_column, keep_blank, distinct_names(locations))
        for source in corpus.sources if corpus.pairs else ():
            if (kind := format or detect_format(source)) in LINE_FORMATS:
                raise UserError(
                    f"{source.name} is read as {kind}, which has no columns; pairs, as --text-column {text_column}, "
                    "come from JSON, Parquet, Arrow, CSV or TSV (set --input-format if it was detected wrongly)"
                )
        return corpus

    @classmethod
    def of_standard_input(cls, format: str | None, text_column: str, *, keep_blank: bool = False) -> "Corpus":
        """Read standard input, compressed or not, once; the format is detected from its first bytes."""
        refusal = UserError(f"{_STDIN} can't be read as Parquet or Arrow, whose index is at the end; name a file")
        if format in ("parquet", "arrow"):
            raise refusal
        stream = standard_input()
        if compression := compression_of(stream.peek(1)):
            stream = decompressed(stream, compression)
        head = stream.peek(1)
        if head.startswith((b"PAR1", b"ARROW1")):
            raise refusal
        source = Source(STANDARD_INPUT, _STDIN, 0, None, stream)
        return cls([source], format or _format_of_text(_STDIN, head, None), text_column, keep_blank)

    @property
    def columns(self) -> tuple[str, ...]:
        """Column of the text, or the two columns of a pair."""
        return text_columns(self.text_column)

    @property
    def pairs(self) -> bool:
        """True if each record is a pair of sentences."""
        return len(self.columns) == 2

    def check(self) -> None:
        """Read the beginning of the first files, so that unusable input is reported before any work."""
        few = range(min(_CHECKED_FILES, len(self.sources)))
        records = sum(1 for index in few for _ in islice(self.file_records(index), 1))
        if not records and len(self.sources) == len(few):
            more = f" and {len(few) - 1} more" if len(few) > 1 else ""
            raise UserError(f"{self.sources[0].name}{more}: no text found; check the path")

    def records(self, start: Position = Position()) -> Iterator[Record]:  # noqa: B008 (frozen)
        """Yield the records from `start` on, always in the same order."""
        for index in range(start.file, len(self.sources)):
            yield from self.file_records(index, start if index == start.file else None)

    def file_records(self, index: int, start: Position | None = None) -> Iterator[Record]:
        """Yield the records of file `index`, from `start` on."""
        source, start, columns = self.sources[index], start or Position(index), self.columns
        with cut_short(source.name):
            kind = self.format or detect_format(source)
            if kind in LINE_FORMATS:
                yield from self._paragraphs(source, kind, start)
                return
            # Articles are recognized by their columns.
            may_be_article = columns == ("text",)
            for row in read_table(source, kind, start, columns, _ARTICLE if may_be_article else columns):
                cells = row.cells
                if may_be_article and cells.keys() >= set(_ARTICLE) and isinstance(cells["text"], str):
                    yield article_record(row.position, cells["text"], cells["title"], escaped="revid" in cells)
                else:
                    yield row.record(columns)

    def _paragraphs(self, source: Source, kind: str, start: Position) -> Iterator[Record]:
        """Yield the records of a file without columns."""
        if kind == "wikiextractor":
            return read_wikiextractor(source, start)
        return read_text(source, start, blank=self.keep_blank)

    def rows(self, start: Position = Position()) -> Iterator[Row]:  # noqa: B008 (frozen)
        """Yield the rows from `start` on with all their columns; a line of text is a row with one column."""
        for index in range(start.file, len(self.sources)):
            source, begin = self.sources[index], start if index == start.file else Position(index)
            with cut_short(source.name):
                kind = self.format or detect_format(source)
                if kind not in LINE_FORMATS:
                    yield from read_table(source, kind, begin, self.columns)
                    continue
                for record in self._paragraphs(source, kind, begin):
                    where = f"{source.name}, line {record.position.record + 1}"
                    cells = {} if record.text is None else {self.columns[0]: record.text.rstrip("\r\n")}
                    yield Row(where, cells, None, record.position, record.reason, record.excerpt)


def sentences_of(locations: Sequence[str], count: int, rules: SentenceRules) -> list[str]:
    """Return the first `count` distinct sentences of a corpus that pass the rules."""
    texts = (record.text for record in Corpus.open(locations).records() if record.text is not None)
    found = (sentence.text for text in texts for sentence in split_sentences(text, rules) if not sentence.reason)
    unique: dict[str, None] = {}
    for sentence in found:
        unique[sentence] = None
        if len(unique) == count:
            break
    return list(unique)


def text_columns(text_column: str, option: str = "--text-column") -> tuple[str, ...]:
    """Split a text column, or the two of a pair, as the user wrote them; `option` is named in the error."""
    columns = tuple(column.strip() for column in text_column.split(","))
    if len(columns) > 2 or not all(columns) or len(set(columns)) < len(columns):
        raise UserError(f"{option} {text_column}: name one column, or two for pairs, as in sentence1,sentence2")
    return columns if len(columns) == 2 else (text_column,)


def detect_format(source: Source) -> str:
    """Return the `InputFormat` of a file, from its first bytes if they are distinctive, otherwise from its name."""
    head, name = source.head(), plain_name(source.name)
    named = next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None)
    if head.startswith(b"PAR1"):
        return "parquet"
    # 0xFFFFFFFF begins an Arrow stream, the format that `datasets` saves.
    if head.startswith(b"ARROW1") or (named == "arrow" and head.startswith(b"\xff\xff\xff\xff")):
        return "arrow"
    if head and named in ("parquet", "arrow"):
        raise UserError(f"{source.name} has the suffix of {named} but another content; check where it is from")
    return _format_of_text(source.name, head, named)


def _format_of_text(name: str, head: bytes, named: str | None) -> str:
    """Return the format of a text file; `named` is the format that its suffix stands for."""
    refuse_no_text(name, head)
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"<doc "):
        return "wikiextractor"
    if named in (None, "jsonl") and re.match(rb"\[\s*(\{\s*[\"}]|\])", start):
        return "json"
    if named is not None:
        return "json" if named == "jsonl" and start.startswith(b"[") and name.lower().endswith(".json") else named
    return "jsonl" if re.match(rb"\{\s*\"", start) else "text"
