"""A corpus: its sources, their formats, and one stream of records or rows over all of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.lines import article_record, read_text, read_wikiextractor
from sentence_distill.data.records import LINE_FORMATS, Position, Record, Row
from sentence_distill.data.sources import STANDARD_INPUT, Source, detect_format, find_sources, format_of_text
from sentence_distill.data.streams import compression_of, cut_short, decompressed, standard_input
from sentence_distill.data.tables import read_table

# WikiExtractor's JSON, and the dataset that is made of it: text of many lines with headings among them.
_ARTICLE = ("id", "url", "title", "text")
_CHECKED_FILES = 20
_STDIN = "standard input"
_FILES_ONLY = ("parquet", "arrow")


@dataclass(frozen=True)
class Corpus:
    """Sources read one after the other.

    `format` is one of `FORMATS`, or None to find each file's from its name and content; `text_column` names the
    column that holds the text, or, with a comma between, the two of a pair. With `keep_blank` blank lines of plain
    text are records too.
    """

    sources: Sequence[Source]
    format: str | None = None
    text_column: str = "text"
    keep_blank: bool = False

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
        """Find the files of `locations` (see `find_sources`).

        Raises:
            UserError: there are none, or pairs are asked for and one has no columns.
        """
        corpus = cls(find_sources(locations, leave_out, log), format, text_column, keep_blank)
        for source in corpus.sources if corpus.pairs else ():
            if (kind := format or detect_format(source)) in LINE_FORMATS:
                raise UserError(
                    f"{source.name} is read as {kind}, which has no columns; pairs, as --text-column {text_column}, "
                    "come from JSON, Parquet, Arrow, CSV or TSV (--input-format names it if that was not found)"
                )
        return corpus

    @classmethod
    def of_standard_input(cls, format: str | None, text_column: str, *, keep_blank: bool = False) -> "Corpus":
        """Take standard input, which can be read once, compressed or not; its first bytes say what it is.

        Raises:
            UserError: it is of a format that has to be read from a file.
        """
        if format in _FILES_ONLY:
            raise UserError(f"{_STDIN} can't be read as {format}, which begins at its end; name a file")
        stream = standard_input()
        if compression := compression_of(stream.peek(1)):
            stream = decompressed(stream, compression)
        head = stream.peek(1)
        if head.startswith((b"PAR1", b"ARROW1")):
            raise UserError(f"{_STDIN} is Parquet or Arrow, which begins at its end; name a file")
        source = Source(STANDARD_INPUT, _STDIN, 0, None, stream)
        return cls([source], format or format_of_text(_STDIN, head), text_column, keep_blank)

    @property
    def columns(self) -> tuple[str, ...]:
        """The one column of the text, or the two of a pair."""
        return text_columns(self.text_column)

    @property
    def pairs(self) -> bool:
        """Whether each record is a pair of sentences."""
        return len(self.columns) == 2

    def check(self) -> None:
        """Read the beginning of the first files, so that what can't be used shows before anything else is done.

        Raises:
            UserError: a file holds no text or lacks a column, or the whole corpus holds no record.
        """
        few = range(min(_CHECKED_FILES, len(self.sources)))
        records = sum(1 for index in few for _ in islice(self.file_records(index), 1))
        if not records and len(self.sources) == len(few):
            raise UserError(f"{self._named()}: there is no text in there; check the path")

    def _named(self) -> str:
        first = self.sources[0].name
        return first if len(self.sources) == 1 else f"{first} and {len(self.sources) - 1} more"

    def records(self, start: Position = Position()) -> Iterator[Record]:  # noqa: B008 (frozen)
        """Yield the records from `start` on, in an order that never changes.

        Raises:
            UserError: a file that can't be read, is cut short, or lacks the text column; it names the file.
        """
        for index in range(start.file, len(self.sources)):
            yield from self.file_records(index, start if index == start.file else None)

    def file_records(self, index: int, start: Position | None = None) -> Iterator[Record]:
        """Yield the records of the file with number `index`, from `start` on; see `records`."""
        source, start, columns = self.sources[index], start or Position(index), self.columns
        with cut_short(source.name):
            kind = self.format or detect_format(source)
            if kind in LINE_FORMATS:
                yield from self._paragraphs(source, kind, start)
            else:
                # An article is known by its columns.
                only = _ARTICLE if columns == ("text",) else columns
                article = set(_ARTICLE) if only == _ARTICLE else None
                for row in read_table(source, kind, start, columns, only):
                    if article and row.cells.keys() >= article and isinstance(row.cells["text"], str):
                        yield article_record(
                            row.position, row.cells["text"], row.cells["title"], escaped="revid" in row.cells
                        )
                    else:
                        yield row.record(columns)

    def _paragraphs(self, source: Source, kind: str, start: Position) -> Iterator[Record]:
        """Yield the records of a file without columns."""
        if kind == "wikiextractor":
            yield from read_wikiextractor(source, start)
        else:
            yield from read_text(source, start, blank=self.keep_blank)

    def rows(self, start: Position = Position()) -> Iterator[Row]:  # noqa: B008 (frozen)
        """Yield the rows from `start` on with all their columns; a line of text is a row of one column.

        Raises:
            UserError: see `records`; or a file that has columns has one of them twice.
        """
        for index in range(start.file, len(self.sources)):
            yield from self._file_rows(index, start if index == start.file else Position(index))

    def _file_rows(self, index: int, start: Position) -> Iterator[Row]:
        source = self.sources[index]
        with cut_short(source.name):
            kind = self.format or detect_format(source)
            if kind not in LINE_FORMATS:
                yield from read_table(source, kind, start, self.columns)
                return
            column = self.columns[0]
            for record in self._paragraphs(source, kind, start):
                where = f"{source.name}, line {record.position.record + 1}"
                cells = {} if record.text is None else {column: record.text.rstrip("\r\n")}
                yield Row(where, cells, None, record.position, record.reason, record.excerpt)


def text_columns(text_column: str, option: str = "--text-column") -> tuple[str, ...]:
    """Return the one name of a text column, or the two of a pair, which a comma parts; `option` is who gave it.

    Raises:
        UserError: more than two, an empty one, or the same twice.
    """
    columns = tuple(column.strip() for column in text_column.split(","))
    if len(columns) > 2 or not all(columns) or len(set(columns)) < len(columns):
        raise UserError(f"{option} {text_column}: name one column, or two for pairs, as in sentence1,sentence2")
    return columns if len(columns) == 2 else (text_column,)
