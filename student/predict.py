"""Predict classes and scores for files of texts."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sentence_distill.data import progress
from sentence_distill.data.corpus import text_columns
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Task
from sentence_distill.data.row_writer import ROW_FORMATS, open_writer
from sentence_distill.student.config import PredictConfig
from sentence_distill.student.file_job import STREAM, Counts, check_output, open_input, open_output, output_format
from sentence_distill.student.hub import locate_student
from sentence_distill.student.onnx_student import OnnxClassifier, is_export

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
        folder = locate_student(name)
        if is_export(folder):
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
        """Predict.

        Args:
            texts: n texts; of a task of pairs n pairs.

        Returns:
            n names of classes; in a regression float32[n] scores.
        """
        outputs = self.outputs(self._columns(texts))
        if self.task.regression:
            return outputs[:, 0]
        return [self.classes[number] for number in outputs.argmax(axis=1)]

    def predict_proba(self, texts: Sequence[str] | Sequence[Sequence[str]]) -> np.ndarray:
        """Probabilities of the classes, float32[n, classes]: softmax of the logits, which nothing has calibrated.

        Args:
            texts: n texts; of a task of pairs n pairs.

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
        """The texts of each column.

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


def predict_files(config: PredictConfig) -> Counts:
    """Write each row of the input with its prediction, in order.

    A row gets the columns `prediction` and `probability`, with `every_class` also a `probability_CLASS` of each; in a
    regression `prediction` alone, a number. A row without text gets the prediction of an empty one.

    Raises:
        UserError: the input can't be read to its end or has no row, a row lacks a column of texts, has one of the name
            of a prediction, or can't be written; or the output can't be.
    """
    format = output_format(config.out, config.format, ROW_FORMATS)
    given = text_columns(config.text_column) if config.text_column is not None else ()
    if config.out != STREAM and not Path(config.out).resolve().parent.is_dir():
        raise UserError(f"--out {config.out}: there is no folder {Path(config.out).parent}")
    corpus = None
    if STREAM not in config.inputs:
        # Before the student: a wrong path shows at once.
        corpus = open_input(config.inputs, config.input_format, "text")
    check_output(config.out, config.overwrite, corpus.sources if corpus else ())
    classifier = _load(config)
    trained = classifier.task.columns
    if given and len(given) != len(trained):
        raise UserError(f"--text-column {config.text_column}: {config.folder} reads {len(trained)} column(s) of texts")
    if config.every_class and classifier.task.regression:
        raise UserError(f"--all: {config.folder} gives scores, not classes")
    columns = given or trained
    chosen = ",".join(columns)
    corpus = replace(corpus, text_column=chosen) if corpus else open_input([STREAM], config.input_format, chosen)
    counts, rows = Counts(), corpus.rows()
    with (
        open_output(config.out) as file,
        open_writer(file, format) as writer,
        progress.task("predict", None, "rows") as advance,
    ):
        while chunk := list(islice(rows, CHUNK_ROWS)):
            texts = [[row.text(column) for row in chunk] for column in columns]
            predictions = _predictions(classifier, texts, config.every_class)
            for row in chunk:
                if taken := predictions[0].keys() & row.cells.keys():
                    raise UserError(f"{row.where}: there is a column {min(taken)!r} already; rename it")
            writer.write(
                [replace(row, cells={**row.cells, **found}) for row, found in zip(chunk, predictions, strict=True)]
            )
            empty = [not any(text.strip() for text in sides) for sides in zip(*texts, strict=True)]
            counts.add_rows(chunk, ["empty" if each else "" for each in empty])
            advance(len(chunk))
        if not counts.rows:
            raise UserError(f"{'standard input' if STREAM in config.inputs else ', '.join(config.inputs)} holds no row")
    return counts


def _load(config: PredictConfig) -> Classifier:
    if is_export(Path(config.folder)):
        return Classifier.load(config.folder, "cpu" if config.device == "auto" else config.device)
    # PyTorch takes most of a second to import, and an export does without.
    from sentence_distill.pipeline.hardware import pick_device

    return Classifier.load(config.folder, pick_device(config.device))


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
