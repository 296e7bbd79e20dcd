"""Tables of texts with labels, and augmented copies of their texts."""

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
from sentence_distill.data.progress import counted
from sentence_distill.data.records import Row
from sentence_distill.data.sentences import normalise

_HELD_OUT = 0.1
FIELDS = {1: ("sentence",), 2: ("sentence1", "sentence2")}
"""Names of the JSON fields of a single text and of a pair."""
# Successive copies of a pair augment its first sentence, its second, and both.
_PAIR_CYCLE = ((0,), (1,), (0, 1))
_LONGEST_NGRAM = 5


@dataclass(frozen=True)
class LabelledTable:
    """n labelled texts, with the labels as they are written in the file."""

    name: str
    """Name of the file, for messages."""
    texts: tuple[list[str], ...]
    """One or two columns of n non-empty texts."""
    labels: list[str]
    places: list[str]
    """File and line of each text, for messages."""


def read_labelled(location: str, columns: Sequence[str], label: str) -> LabelledTable:
    """Read the texts in one or two columns and the labels in another, from any format with columns."""
    table = LabelledTable(location, tuple([] for _ in columns), [], [])
    for row in Corpus.open([location], text_column=",".join(columns)).rows():
        for column, texts in zip(columns, table.texts, strict=True):
            texts.append(row.text(column))
            if not texts[-1].strip():
                raise UserError(f"{row.where}: column {column!r} is empty; remove that row")
        table.labels.append(_label(row, label))
        table.places.append(row.where)
    if not table.labels:
        raise UserError(f"{location} holds no examples")
    return table


def _label(row: Row, column: str) -> str:
    """Return a label as CSV has it: "1" for the integer, and for the 1.0 it becomes in a column with missing values."""
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
        several = " (multi-label classification is not supported)" if isinstance(value, list | tuple) else ""
        raise UserError(
            f"{row.where}: column {column!r} holds a {type(value).__name__}{several}; write one label per row, a text "
            "or a number"
        )
    if not label:
        raise UserError(f"{row.where}: column {column!r} is empty; remove that row, or label it")
    return label


def is_score(labels: Sequence[str]) -> bool:
    """Return True if labels are scores and not classes: all are numbers, and some finite one is not whole."""
    try:
        numbers = [float(label) for label in labels]
    except ValueError:
        return False
    return any(math.isfinite(number) and not number.is_integer() for number in numbers)


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Return the distinct labels: in numeric order if all are whole numbers, otherwise in alphabetical order."""
    names = set(labels)
    try:
        whole = all(float(name).is_integer() for name in names)
    except ValueError:
        whole = False
    return tuple(sorted(names, key=lambda name: (float(name), name) if whole else (0, name)))


def make_task(
    name: str, table: LabelledTable, columns: tuple[str, ...], label: str, regression: bool | None = None
) -> Task:
    """Return the task that a table of training examples defines; if `regression` is None, `is_score` decides."""
    if len(set(table.labels)) == 1:
        raise UserError(
            f"{table.name} has {counted(len(table.labels), 'row')} but only one label, {table.labels[0]!r}; training "
            "needs at least two"
        )
    if is_score(table.labels) if regression is None else regression:
        return Task(name=name, columns=columns, label=label, labels=(), metrics=("pearson", "spearman"))
    names = class_names(table.labels)
    return Task(name=name, columns=columns, label=label, labels=names, metrics=("accuracy", "macro_f1"))


def examples_of(task: Task, table: LabelledTable) -> Examples:
    """Return the rows of a table with their class numbers, or with their scores."""
    numbers = {name: float(number) for number, name in enumerate(task.labels)}
    labels = []
    for text, place in zip(table.labels, table.places, strict=True):
        try:
            label = float(text) if task.regression else numbers[text]
        except (ValueError, KeyError):
            label = math.nan
        if not math.isfinite(label):
            if task.regression:
                raise UserError(f"{place}: label {text!r} is not a finite number, which a regression needs")
            known = ", ".join(task.labels[:10]) + (" and others" if len(task.labels) > 10 else "")
            raise UserError(f"{place}: label {text!r} does not occur in the training data: {known}")
        labels.append(label)
    return Examples(table.texts, labels)


def hold_out(task: Task, examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Split off 10% of the examples, stratified by class; return the rest and the held-out ones in their order.

    Examples whose texts differ only in case and white space stay together and count as one, of their rarest class. A
    class with a single example stays in training. At least one example per remaining class is held out.
    """
    from sklearn.model_selection import train_test_split

    by_text: dict[tuple[str, ...], list[int]] = {}
    for row, texts in enumerate(zip(*examples.texts, strict=True)):
        by_text.setdefault(tuple(normalise(text).casefold() for text in texts), []).append(row)
    groups = list(by_text.values())
    frequency = Counter(examples.labels)
    labels = np.array([min((examples.labels[row] for row in rows), key=frequency.__getitem__) for rows in groups])
    counts = {label: int((labels == label).sum()) for label in np.unique(labels)} if task.labels else {}
    apart = np.array([group for group, label in enumerate(labels) if not counts or counts[label] > 1], dtype=np.int64)
    fewest = sum(count > 1 for count in counts.values()) if counts else 2
    if not fewest or len(apart) < 2 * fewest:
        examples_there = counted(len(groups), "different example")
        raise UserError(f"{examples_there}, too few to hold some out; give a file with --dev")
    held_out = train_test_split(
        apart,
        test_size=max(fewest, math.ceil(_HELD_OUT * len(apart))),
        random_state=seed,
        stratify=labels[apart] if counts else None,
    )[1]
    rows = np.sort(np.concatenate([groups[group] for group in held_out]))
    return _take(examples, np.setdiff1d(np.arange(len(examples.labels)), rows)), _take(examples, rows)


def _take(examples: Examples, rows: np.ndarray) -> Examples:
    texts = tuple([column[row] for row in rows] for column in examples.texts)
    return Examples(texts, [examples.labels[row] for row in rows])


# Synthetic examples from a task's unlabelled text, for task-specific distillation.


def json_line(example: tuple[str, ...]) -> bytes:
    """Return a text or pair as a line of JSON, for `sd embed`."""
    return (json.dumps(dict(zip(FIELDS[len(example)], example, strict=True)), ensure_ascii=False) + "\n").encode()


def synthetic_examples(
    texts: tuple[list[str], ...], *, copies: int, mask: str, seed: int, p_mask: float = 0.1, p_ngram: float = 0.25
) -> Iterator[tuple[str, ...]]:
    """Augment each example `copies` times; yield the results that are neither examples nor yielded before.

    Each word is replaced by `mask` with probability `p_mask`; then, with probability `p_ngram`, the text is cut to a
    random n-gram of up to five words. The defaults are those of the paper (Tang et al. 2019). Successive copies of a
    pair augment its first sentence, its second, and both. The same arguments always give the same examples.
    """
    if not (0 <= p_mask <= 1 and 0 <= p_ngram <= 1):
        raise ValueError(f"p_mask and p_ngram must be between 0 and 1, not {p_mask} and {p_ngram}")
    rng = np.random.default_rng(seed)

    def augment(words: list[str]) -> str:
        draws = rng.random(len(words)).tolist()
        masked = [mask if draw < p_mask else word for word, draw in zip(words, draws, strict=True)]
        if rng.random() < p_ngram and words:
            length = min(int(rng.integers(1, _LONGEST_NGRAM + 1)), len(words))
            first = int(rng.integers(len(words) - length + 1))
            masked = masked[first : first + length]
        return " ".join(masked)

    seen = {_identity(example) for example in zip(*texts, strict=True)}
    for example in zip(*texts, strict=True):
        words = [text.split() for text in example]
        for copy in range(copies):
            chosen = _PAIR_CYCLE[copy % len(_PAIR_CYCLE)] if len(example) == 2 else (0,)
            synthetic = tuple(
                augment(words[column]) if column in chosen else text for column, text in enumerate(example)
            )
            identity = _identity(synthetic)
            if identity not in seen:
                seen.add(identity)
                yield synthetic


def _identity(example: tuple[str, ...]) -> int:
    # Hashes of millions of examples take a fraction of the memory of the examples.
    return sentence_id("\t".join(" ".join(text.split()) for text in example))
