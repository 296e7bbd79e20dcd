"""A corpus: its sources, their formats, and one stream of records over all of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.lines import read_jsonl, read_text, read_wikiextractor
from sentence_distill.data.records import Position, Record
from sentence_distill.data.sources import Source, cut_short, find_sources
from sentence_distill.data.tables import read_arrow, read_csv, read_parquet

FORMATS = ("text", "wikiextractor", "jsonl", "parquet", "arrow", "csv", "tsv")
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
}


@dataclass(frozen=True)
class Corpus:
    """Sources read one after the other.

    `format` is one of `FORMATS`, or None to find each file's from its name and content; `text_field` names
    the JSON field or the table column that holds the text, or, with a comma between, the two of a pair. With
    `keep_blank` blank lines of plain text are records too.
    """

    sources: Sequence[Source]
    format: str | None = None
    text_field: str = "text"
    keep_blank: bool = False

    @classmethod
    def open(
        cls,
        locations: Sequence[str],
        *,
        format: str | None = None,
        text_field: str = "text",
        leave_out: Path | None = None,
        keep_blank: bool = False,
    ) -> "Corpus":
        """Find the files of `locations` (see `find_sources`).

        Raises:
            UserError: there are none, or pairs are asked for and one has no fields.
        """
        corpus = cls(find_sources(locations, leave_out), format, text_field, keep_blank)
        for source in corpus.sources if corpus.pairs else ():
            if (kind := format or detect_format(source)) in ("text", "wikiextractor"):
                raise UserError(
                    f"{source.name} is read as {kind}, which has no fields; pairs, as --text-field {text_field}, "
                    "come from JSON lines, Parquet, Arrow, CSV or TSV (--format names it where that was not found)"
                )
        return corpus

    @property
    def pairs(self) -> bool:
        """Whether each record is a pair of sentences."""
        return len(text_fields(self.text_field)) == 2

    def records(self, start: Position = Position()) -> Iterator[Record]:  # noqa: B008 (frozen)
        """Yield the records from `start` on, in an order that never changes.

        Raises:
            UserError: a file that can't be read, is cut short, or lacks the text field; it names the file.
        """
        for index in range(start.file, len(self.sources)):
            yield from self.file_records(index, start if index == start.file else None)

    def file_records(self, index: int, start: Position | None = None) -> Iterator[Record]:
        """Yield the records of the file with number `index`, from `start` on; see `records`."""
        source = self.sources[index]
        with cut_short(f"corpus file {source.name}"):
            yield from self._reader(source)(source, start or Position(index))

    def _reader(self, source: Source) -> "partial[Iterator[Record]]":
        kind = self.format or detect_format(source)
        fields = text_fields(self.text_field)
        if kind == "jsonl":
            return partial(read_jsonl, fields=fields)
        if kind == "parquet":
            return partial(read_parquet, fields=fields)
        if kind == "arrow":
            return partial(read_arrow, fields=fields)
        if kind in ("csv", "tsv"):
            return partial(read_csv, fields=fields, delimiter="," if kind == "csv" else "\t")
        return partial(read_wikiextractor) if kind == "wikiextractor" else partial(read_text, blank=self.keep_blank)


def text_fields(text_field: str, option: str = "--text-field") -> tuple[str, ...]:
    """The one name of a text field, or the two of a pair, which a comma parts; `option` is who gave it.

    Raises:
        UserError: more than two, an empty one, or the same twice.
    """
    fields = tuple(field.strip() for field in text_field.split(","))
    if len(fields) > 2 or not all(fields) or len(set(fields)) < len(fields):
        raise UserError(f"{option} {text_field}: name one field, or two for pairs, as in sentence1,sentence2")
    return fields if len(fields) == 2 else (text_field,)


def detect_format(source: Source) -> str:
    """One of `FORMATS`, from the file's first bytes where they are distinctive, otherwise from its name.

    Raises:
        UserError: they can't be read.
    """
    with cut_short(source.name):
        head = source.head().removeprefix(b"\xef\xbb\xbf")
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith(b"ARROW1"):
        return "arrow"
    if head.lstrip().startswith(b"<doc "):
        return "wikiextractor"
    for suffix, kind in _SUFFIXES.items():
        if source.plain_name.lower().endswith(suffix):
            return kind
    return "jsonl" if head.lstrip().startswith(b'{"') else "text"
