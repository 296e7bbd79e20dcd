"""Text without labels, single or in pairs: read from a user's files, written as the JSON lines that stage one reads."""

import json
from collections.abc import Sequence

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.formats import detect_format

FIELDS = {1: ("sentence",), 2: ("sentence1", "sentence2")}
"""Names of the JSON fields of a single text and of a pair."""


def read_unlabelled(locations: Sequence[str]) -> tuple[list[str], ...]:
    """Read one or two columns of texts: an example a line, the two texts of a pair parted by a tab.

    Blank lines are no examples. The first example says whether all are single texts or pairs.

    Args:
        locations: see `find_sources`; compressed files too.

    Raises:
        UserError: a file is not there or holds something else; it names file and line.
    """
    corpus = Corpus.open(locations, format="text")
    for source in corpus.sources:
        if (kind := detect_format(source)) != "text":
            raise UserError(
                f"{source.name} is {kind}, whose lines would be taken for examples as they stand; write its texts to a "
                ".txt file, an example a line, a pair with a tab between"
            )
    rows: list[tuple[str, ...]] = []
    for record in corpus.records():
        where = f"{corpus.sources[record.position.file].name}, line {record.position.record + 1}"
        if record.text is None:
            raise UserError(f"{where} can't be read: {record.reason}")
        row = tuple(text.strip() for text in record.text.rstrip("\r\n").split("\t"))
        if len(row) > 2 or not all(row):
            raise UserError(f"{where} is neither one text nor two with a tab between them")
        if rows and len(row) != len(rows[0]):
            kind = "a pair" if len(row) == 2 else "no pair"
            raise UserError(f"{where} is {kind}, unlike the lines before it; give single texts or pairs, not both")
        rows.append(row)
    if not rows:
        raise UserError(f"{', '.join(locations)}: no text in there; write one example a line")
    return tuple(list(column) for column in zip(*rows, strict=True))


def json_line(example: tuple[str, ...]) -> bytes:
    """One example as a line of JSON with the `FIELDS` of its number of texts."""
    return (json.dumps(dict(zip(FIELDS[len(example)], example, strict=True)), ensure_ascii=False) + "\n").encode()
