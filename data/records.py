"""The unit that every reader yields: one paragraph, sentence or pair of a corpus, or the reason why it is none."""

from collections.abc import Sequence
from dataclasses import dataclass

# Between the two sides of a pair: a sentence can't hold one, because normalisation makes it a blank.
PAIR_SEPARATOR = "\t"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a corpus from which reading can begin.

    `file` counts the sources, `record` the lines or rows before this one in that file, `offset` the bytes
    before it in the decompressed file (0 in formats that are not read line by line).
    """

    file: int = 0
    record: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record: its text, that of a pair joined by `join_sides`, or, where it can't be used, None and the `reason`.

    `excerpt` shows a record that can't be used in rejected.jsonl.
    """

    position: Position
    text: str | None
    reason: str = ""
    excerpt: str = ""


EXCERPT_CHARACTERS = 120


def join_sides(sides: Sequence[str]) -> str:
    """The text of a record from one field, or from the two of a pair as one string."""
    if len(sides) == 1:
        return sides[0]
    return PAIR_SEPARATOR.join(side.replace(PAIR_SEPARATOR, " ") for side in sides)
