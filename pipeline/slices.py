"""One slice of the plan: from its records to the rows of its shard."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import sentence_id
from sentence_distill.data.records import EXCERPT_CHARACTERS, Position, Record
from sentence_distill.data.sentences import SentenceRules, split_sentences
from sentence_distill.pipeline.plan import Slice
from sentence_distill.pipeline.shards import DTYPES, Rows
from sentence_distill.pipeline.teacher import Teacher


@dataclass(frozen=True)
class Rejection:
    """A sentence or record that can't be used, where it stands and why."""

    position: Position
    reason: str
    excerpt: str


@dataclass
class SliceText:
    """The sentences of a slice, and what became of the others."""

    sentences: list[str] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    records: int = 0
    duplicates: int = 0

    def counts(self) -> dict[str, object]:
        """How the slice's records were used; rows + duplicates + all rejected = sentences."""
        reasons = Counter(rejection.reason for rejection in self.rejections)
        return {
            "records": self.records,
            "sentences": len(self.sentences) + self.duplicates + len(self.rejections),
            "duplicates": self.duplicates,
            "rejected": dict(sorted(reasons.items())),
        }

    def reject(self, index: int, reason: str) -> None:
        """List sentence `index` as rejected; `keep` takes it out."""
        text = self.sentences[index][:EXCERPT_CHARACTERS]
        self.rejections.append(Rejection(self.positions[index], reason, text))

    def keep(self, rows: np.ndarray) -> None:
        """Keep only the sentences of int[k] `rows`."""
        self.sentences = [self.sentences[row] for row in rows]
        self.positions = [self.positions[row] for row in rows]


def read_slice(records: Iterable[Record], part: Slice, rules: SentenceRules) -> SliceText:
    """Split a slice's records and drop its duplicates.

    Raises:
        UserError: the corpus no longer yields what the plan found in it.
    """
    text = SliceText()
    duplicates = frozenset(part.duplicates.tolist())
    usable = 0
    for record in records:
        text.records += 1
        if record.text is None:
            text.rejections.append(Rejection(record.position, record.reason, record.excerpt))
            continue
        for sentence in split_sentences(record.text, rules):
            if sentence.reason:
                excerpt = sentence.text[:EXCERPT_CHARACTERS]
                text.rejections.append(Rejection(record.position, sentence.reason, excerpt))
                continue
            if usable in duplicates:
                text.duplicates += 1
            else:
                text.sentences.append(sentence.text)
                text.positions.append(record.position)
            usable += 1
    if (text.records, usable) != (part.records, part.sentences):
        raise UserError(
            f"the corpus changed while it was read: slice {part.index} held {part.sentences} sentences "
            f"and now holds {usable}; run again once the files are at rest"
        )
    return text


def embed_slice(
    text: SliceText,
    teacher: Teacher,
    *,
    max_tokens: int,
    token_budget: int,
    dtype: str,
    keep_text: bool,
    advance: Callable[[int], None],
) -> Rows:
    """Tokenise and embed a slice's sentences; what the teacher can't take is rejected into `text`.

    Args:
        text: the slice; on return it holds the sentences of the rows, and all rejections.
        teacher: the loaded teacher.
        max_tokens: longest sentence in tokens, special tokens not counted.
        token_budget: tokens of a batch.
        dtype: "float16" or "float32", of the vectors that are kept.
        keep_text: whether the rows carry their sentences.
        advance: called with the number of sentences done.
    """
    input_ids = teacher.tokenize(text.sentences)
    lengths = np.array([len(ids) for ids in input_ids], dtype=np.int64)
    for index in np.flatnonzero(lengths > max_tokens):
        text.reject(int(index), "too many tokens")
    # A sentence whose every character the tokenizer drops has no tokens to pool.
    for index in np.flatnonzero(lengths == 0):
        text.reject(int(index), "no tokens")
    fits = np.flatnonzero((lengths > 0) & (lengths <= max_tokens))
    advance(len(lengths) - len(fits))
    text.keep(fits)
    input_ids = [input_ids[row] for row in fits]

    with np.errstate(over="ignore"):  # what float16 can't hold becomes infinite, and is rejected below
        vectors = teacher.embed(input_ids, token_budget, advance).astype(DTYPES[dtype])
    finite = np.isfinite(vectors).all(axis=1)
    for index in np.flatnonzero(~finite):
        text.reject(int(index), "non-finite embedding")
    rows = np.flatnonzero(finite)
    text.keep(rows)
    text.rejections.sort(key=lambda rejection: (rejection.position.file, rejection.position.record))
    return Rows(
        ids=np.array([sentence_id(sentence) for sentence in text.sentences], dtype=np.uint64),
        texts=text.sentences if keep_text else None,
        input_ids=[input_ids[row] for row in rows],
        embeddings=vectors[rows],
    )
