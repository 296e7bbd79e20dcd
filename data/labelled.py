"""Tables of texts with labels, texts without, and augmented copies."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from sentence_distill.data.corpus import Corpus
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Examples, Task
from sentence_distill.data.hashing import sentence_id
from sentence_distill.data.records import Row
from sentence_distill.data.sentences import normalise

_HELD_OUT = 0.1


@dataclass(frozen=True)
class LabelledTable:
    """Texts with labels as they stand in a file.

    Args:
        name: of the file, for messages.
        texts: one or two columns of n texts, none empty.
        labels: n labels; numbers stay as they are written.
        places: n places of the rows, for messages.
    """

    name: str
    texts: tuple[list[str], ...]
    labels: list[str]
    places: list[str]


def read_labelled(location: str, columns: Sequence[str], label: str) -> LabelledTable:
    """Read CSV, TSV, JSON lines, Parquet or Arrow, compressed or not.

    Args:
        location: see `find_sources`.
        columns: the one or two columns of texts.
        label: the column of labels.

    Raises:
        UserError: a column is missing, a text or a label is empty, or a file can't be read; it names file and line.
    """
    texts: tuple[list[str], ...] = tuple([] for _ in columns)
    labels: list[str] = []
    places: list[str] = []
    for row in Corpus.open([location], text_column=",".join(columns)).rows():
        for column, into in zip(columns, texts, strict=True):
            into.append(row.text(column))
            if not into[-1].strip():
                raise UserError(f"{row.where}: column {column!r} is empty; remove that row")
        labels.append(_label(row, label))
        places.append(row.where)
    if not labels:
        raise UserError(f"{location} holds no example")
    return LabelledTable(location, texts, labels, places)


def _label(row: Row, column: str) -> str:
    """Return a label as it is written in CSV: 1 of the integer and of the 1.0 that a column with gaps makes of it."""
    value = row.value(column)
    if isinstance(value, str | bytes):
        label = row.text(column).strip()
    elif isinstance(value, bool):
        label = str(value).lower()
    elif value is None or value != value:
        label = ""
    elif isinstance(value, int | float | Decimal):
        label = str(int(value)) if math.isfinite(value) and value == int(value) else str(value)
    else:
        kind = "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
        several = " (several labels a text are not supported)" if isinstance(value, list | tuple) else ""
        raise UserError(
            f"{row.where}: column {column!r} holds {kind}{several}; write one label a row, a text or a number"
        )
    if not label:
        raise UserError(f"{row.where}: column {column!r} is empty; remove that row, or label it")
    return label


def is_score(labels: Sequence[str]) -> bool:
    """Whether labels are scores and not classes: all are numbers, and at least one is finite and not whole."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return False
    return any(math.isfinite(number) and not number.is_integer() for number in numbers)


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes of labels: in the order of their numbers where all are whole numbers, otherwise by name."""
    names = set(labels)
    try:
        whole = all(float(name).is_integer() for name in names)
    except ValueError:
        whole = False
    return tuple(sorted(names, key=lambda name: (float(name), name) if whole else (0, name)))


def make_task(
    name: str, table: LabelledTable, columns: tuple[str, ...], label: str, regression: bool | None = None
) -> Task:
    """The task that a table of training examples poses.

    Args:
        name: of the task.
        table: its training examples.
        columns: see `read_labelled`.
        label: see `read_labelled`.
        regression: whether labels are scores; None decides with `is_score`.

    Raises:
        UserError: all labels are the same.
    """
    if len(set(table.labels)) == 1:
        raise UserError(
            f"{table.name}: the label of all {len(table.labels):,} rows is {table.labels[0]!r}; from one label nothing "
            "can be learned"
        )
    if is_score(table.labels) if regression is None else regression:
        return Task(name=name, columns=columns, label=label, labels=(), metrics=("pearson", "spearman"))
    names = class_names(table.labels)
    return Task(name=name, columns=columns, label=label, labels=names, metrics=("accuracy", "macro_f1"))


def examples_of(task: Task, table: LabelledTable) -> Examples:
    """A table's rows with the numbers of their classes, or with their scores.

    Raises:
        UserError: a label that the task does not know; it names the row.
    """
    numbers = {name: float(number) for number, name in enumerate(task.labels)}
    labels = []
    for text, place in zip(table.labels, table.places, strict=True):
        try:
            labels.append(_score(text) if task.regression else numbers[text])
        except ValueError:
            raise UserError(f"{place}: label {text!r} is no finite number, and this is a regression") from None
        except KeyError:
            known = ", ".join(task.labels[:10]) + (" and others" if len(task.labels) > 10 else "")
            raise UserError(f"{place}: label {text!r} is not among those of training: {known}") from None
    return Examples(table.texts, labels)


def _score(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


def hold_out(task: Task, examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Part a tenth of the examples from the others, of each class about its share; both keep their order.

    Examples of the same text, but for letter case and white space, stay together and count as one, of the rarest of
    their classes. A class with a single example stays in training. At least as many are held out as there are other
    classes.

    Raises:
        UserError: there are too few examples.
    """
    from sklearn.model_selection import train_test_split

    groups = _same_texts(examples)
    frequency = Counter(examples.labels)
    labels = np.array([min((examples.labels[row] for row in rows), key=frequency.__getitem__) for rows in groups])
    counts = {label: int((labels == label).sum()) for label in np.unique(labels)} if task.labels else {}
    apart = np.array([group for group, label in enumerate(labels) if not counts or counts[label] > 1], dtype=np.int64)
    fewest = sum(count > 1 for count in counts.values()) if counts else 2
    if not fewest or len(apart) < 2 * fewest:
        raise UserError(f"{len(groups)} different examples are too few to hold some out; name others with --dev")
    held_out = train_test_split(
        apart,
        test_size=max(fewest, math.ceil(_HELD_OUT * len(apart))),
        random_state=seed,
        stratify=labels[apart] if counts else None,
    )[1]
    rows = np.sort(np.concatenate([groups[group] for group in held_out]))
    return _take(examples, np.setdiff1d(np.arange(len(examples.labels)), rows)), _take(examples, rows)


def _same_texts(examples: Examples) -> list[list[int]]:
    """The rows of each different text, or pair of texts, in the order in which they come first."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for row, texts in enumerate(zip(*examples.texts, strict=True)):
        groups.setdefault(tuple(normalise(text).casefold() for text in texts), []).append(row)
    return list(groups.values())


def _take(examples: Examples, rows: np.ndarray) -> Examples:
    texts = tuple([column[row] for row in rows] for column in examples.texts)
    return Examples(texts, [examples.labels[row] for row in rows])


# Text without labels, single or in pairs, as the JSON lines that stage one reads.

FIELDS = {1: ("sentence",), 2: ("sentence1", "sentence2")}
"""Names of the JSON fields of a single text and of a pair."""


def json_line(example: tuple[str, ...]) -> bytes:
    """One example as a line of JSON with the `FIELDS` of its number of texts."""
    return (json.dumps(dict(zip(FIELDS[len(example)], example, strict=True)), ensure_ascii=False) + "\n").encode()


# Synthetic examples from a task's unlabelled text, for distillation on that task.

# Which sentences of a pair its copies augment, in turn.
_PAIR_CYCLE = ((0,), (1,), (0, 1))


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Probabilities of the rules, by default the paper's."""

    p_mask: float = 0.1
    """That a word becomes the mask token."""
    p_ngram: float = 0.25
    """That of a text only one n-gram stays, once its words have been through masking."""
    longest_ngram: int = 5
    """n is drawn from 1 to this, each as likely; a shorter text stays whole where n is beyond its length."""

    def __post_init__(self) -> None:
        if not (0 <= self.p_mask <= 1 and 0 <= self.p_ngram <= 1 and self.longest_ngram >= 1):
            raise ValueError(f"probabilities lie between 0 and 1, an n-gram has at least a word: {self}")


def synthetic_examples(
    texts: tuple[list[str], ...], *, copies: int, mask: str, seed: int, config: AugmentConfig | None = None
) -> Iterator[tuple[str, ...]]:
    """Augment each example `copies` times and yield what is new: neither an example nor yielded before.

    The copies of a pair go round: only its first sentence is augmented, only its second, both.

    Args:
        texts: one or two columns of n sentences.
        copies: of each example; what they have in common is dropped, so that fewer may come.
        mask: the teacher's mask token.
        seed: of the drawing; the same arguments always give the same examples.
        config: probabilities.
    """
    config = config or AugmentConfig()
    rng = np.random.default_rng(seed)
    seen = {_identity(example) for example in zip(*texts, strict=True)}
    for example in zip(*texts, strict=True):
        words = [text.split() for text in example]
        for copy in range(copies):
            chosen = _PAIR_CYCLE[copy % len(_PAIR_CYCLE)] if len(example) == 2 else (0,)
            synthetic = tuple(
                " ".join(_augment_words(words[column], mask, config, rng)) if column in chosen else text
                for column, text in enumerate(example)
            )
            identity = _identity(synthetic)
            if identity not in seen:
                seen.add(identity)
                yield synthetic


def _augment_words(words: list[str], mask: str, config: AugmentConfig, rng: np.random.Generator) -> list[str]:
    """Masking, one number a word, then with its own probability n-gram sampling of the whole text."""
    draws = rng.random(len(words))
    masked = [mask if draw < config.p_mask else word for word, draw in zip(words, draws.tolist(), strict=True)]
    if rng.random() >= config.p_ngram or not words:
        return masked
    length = min(int(rng.integers(1, config.longest_ngram + 1)), len(words))
    first = int(rng.integers(len(words) - length + 1))
    return masked[first : first + length]


def _identity(example: tuple[str, ...]) -> int:
    # Hashes take a fraction of the memory that millions of examples would.
    return sentence_id("\t".join(" ".join(text.split()) for text in example))
