"""The unit that every reader yields: one paragraph or sentence of a corpus, or the reason why it is none."""

from dataclasses import dataclass


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
    """One record: its text, or, where it can't be used, `text` None and the `reason`.

    `excerpt` shows a record that can't be used in rejected.jsonl.
    """

    position: Position
    text: str | None
    reason: str = ""
    excerpt: str = ""


EXCERPT_CHARACTERS = 120
