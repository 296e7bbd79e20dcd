"""Predict classes and scores for files of texts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Task
from sentence_distill.data.progress import Advance
from sentence_distill.data.records import Row
from sentence_distill.data.row_writer import RowWriter
from sentence_distill.student.onnx_student import is_export

if TYPE_CHECKING:
    import torch


class Predictor(Protocol):
    """Computes the outputs of a classifier: in PyTorch, or in ONNX Runtime."""

    @property
    def task(self) -> Task:
        """Its columns and classes."""

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities, float32[n, classes], or scores of a regression, float32[n, 1], of columns of n texts."""


class Classifier:
    """Predicts what a student was fine-tuned for.

    Attributes:
        task: its columns and classes.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.task = predictor.task

    @classmethod
    def load(cls, name: str | Path, device: "str | torch.device" = "cpu") -> "Classifier":
        """Read the folder that `sd finetune STUDENT` made, or an export of it, which runs in ONNX Runtime.

        Args:
            name: of the folder; or, as a string, `owner/name` on the hub, see `Student.load`.
            device: where to compute; an export runs on the CPU.

        Raises:
            UserError: there is none, or it is damaged.
        """
        from sentence_distill.student.hub import locate_student

        folder = locate_student(name)
        if is_export(folder):
            from sentence_distill.student.onnx_student import OnnxClassifier

            if str(device) != "cpu":
                raise UserError(
                    f"{folder} is an export, which runs on the CPU and not on {device}; leave the device out"
                )
            return cls(OnnxClassifier.of_export(folder))
        from sentence_distill.student.classifier import TorchClassifier, load_classifier

        model, task = load_classifier(folder)
        return cls(TorchClassifier(model.to(device), task))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the columns of `predict_proba`; none in a regression."""
        return self.task.labels

    def predict(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[str] | np.ndarray:
        """Return n names of classes, in a regression float32[n] scores, for n texts or pairs of texts."""
        outputs = self.outputs(self._columns(texts))
        if self.task.regression:
            return outputs[:, 0]
        return [self.classes[number] for number in outputs.argmax(axis=1)]

    def predict_proba(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> np.ndarray:
        """Return probabilities of the classes for n texts or pairs, float32[n, classes]: the softmax, not calibrated.

        Raises:
            ValueError: the task is a regression.
        """
        if self.task.regression:
            raise ValueError(f"{self.task.name} is a regression; predict gives its scores")
        return self.outputs(self._columns(texts))

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities, float32[n, classes], or scores of a regression, float32[n, 1], of columns of n texts."""
        return self._predictor.outputs(columns)

    def _columns(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the texts of each column.

        Raises:
            ValueError: they are no texts, or no pairs.
        """
        single = len(self.task.columns) == 1
        kind = str if single else (tuple, list)
        # A column of a table need not have places that count from 0.
        given = [] if isinstance(texts, str) else list(texts)
        if isinstance(texts, str) or not all(isinstance(each, kind) and (single or len(each) == 2) for each in given):
            raise ValueError(f"{self.task.name} takes a list of {'texts' if single else 'pairs of texts'}")
        return [[str(text) for text in given]] if single else [[pair[side] for pair in given] for side in range(2)]


# Predictions for the rows of a file, chunk by chunk, so that memory does not grow with it.

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
