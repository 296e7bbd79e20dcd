"""Predictions for the rows of a file, chunk by chunk, so that memory does not grow with it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Advance
from sentence_distill.data.records import Row
from sentence_distill.data.row_writer import RowWriter
from sentence_distill.student.finetuning.predict import Classifier

PREDICTION, PROBABILITY = "prediction", "probability"
# Enough that batches of near lengths are full, and few enough to hold with all their columns.
CHUNK_ROWS = 8192


@dataclass
class Counts:
    """What was predicted.

    Args:
        rows: all.
        empty: those without text; they get the prediction of an empty one.
    """

    rows: int = 0
    empty: int = 0


def predict_rows(
    classifier: Classifier,
    rows: Iterable[Row],
    writer: RowWriter,
    *,
    columns: Sequence[str],
    every_class: bool = False,
    advance: Advance = lambda count, note="": None,
) -> Counts:
    """Write each row with its prediction, in order.

    A row gets the columns `prediction` and `probability`, with `every_class` also a `probability_CLASS` of each; in a
    regression `prediction` alone, a number.

    Args:
        classifier: what predicts.
        rows: of a file or a stream.
        writer: takes them.
        columns: the one or two columns of texts.
        every_class: write the probability of each class.
        advance: called with the number of rows done.

    Raises:
        UserError: a row lacks a column of texts, has one of the name of a prediction, or can't be written.
    """
    counts = Counts()
    for chunk in _chunks(rows, CHUNK_ROWS):
        texts = tuple([row.text(column) for row in chunk] for column in columns)
        predictions = _predictions(classifier, texts, every_class)
        for row in chunk:
            if taken := predictions[0].keys() & row.cells.keys():
                raise UserError(f"{row.where}: there is a column {min(taken)!r} already; rename it")
        writer.write(
            [replace(row, cells={**row.cells, **found}) for row, found in zip(chunk, predictions, strict=True)]
        )
        counts.rows += len(chunk)
        counts.empty += sum(not any(text.strip() for text in row) for row in zip(*texts, strict=True))
        advance(len(chunk))
    return counts


def _predictions(classifier: Classifier, texts: Sequence[Sequence[str]], every_class: bool) -> list[dict[str, Any]]:
    outputs = classifier.outputs(texts).astype(float)
    # A float32 has seven digits; those of its double would only fill the file.
    if classifier.task.regression:
        return [{PREDICTION: float(f"{value:.7g}")} for value in outputs[:, 0].tolist()]
    outputs = outputs.round(6)
    found = []
    for number, probabilities in zip(outputs.argmax(axis=1), outputs.tolist(), strict=True):
        row = {PREDICTION: classifier.classes[number], PROBABILITY: probabilities[number]}
        if every_class:
            row |= {f"{PROBABILITY}_{name}": p for name, p in zip(classifier.classes, probabilities, strict=True)}
        found.append(row)
    return found


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
