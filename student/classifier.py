"""Classifiers: a student with a head, and its folder."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import GlueTask, Task
from sentence_distill.pipeline.files import write_atomically, write_json
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.files import HEAD, TASK
from sentence_distill.student.fit import ExampleTokens, Fitter, Padded
from sentence_distill.student.model import Student, encode_tokens, load_student, save_student
from sentence_distill.student.start import SCALE
from sentence_distill.student.task_data import Labelled, Outcome, TaskData, TaskRecord

HEAD_UNITS = 512
HEAD_DROPOUT = 0.2


class StudentClassifier(nn.Module):
    """A student's encoder under a head with one hidden layer.

    The head reads the pooled LSTM states, u of a single sentence and [u, v, |u - v|, u * v] of a pair, whose sentences
    are encoded each alone.
    """

    def __init__(self, student: Student, columns: int, outputs: int) -> None:
        """Put a new head on a student, whose encoder is shared and not copied, for 1 column of texts or for pairs."""
        super().__init__()
        self.encoder = student.encoder
        self.tokenizer = student.tokenizer
        # A batch holds few of the words, and a dense pass over all of them takes as long as the LSTM.
        self.encoder.embedding.sparse = True
        self.columns = columns
        width = self.encoder.config.pooled_dim * (1 if columns == 1 else 4)
        self.head = nn.Sequential(
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(width, HEAD_UNITS),
            nn.ReLU(),
            nn.Dropout(HEAD_DROPOUT),
            nn.Linear(HEAD_UNITS, outputs),
        )

    @property
    def student(self) -> Student:
        """The student, without the head."""
        return Student(self.encoder, self.tokenizer)

    def tokenize(self, texts: Sequence[Sequence[str]]) -> ExampleTokens:
        """Tokenize one or two columns of texts."""
        return ExampleTokens(tuple(self.student.tokenize(column) for column in texts))

    def forward(self, batch: Padded) -> torch.Tensor:
        """Return logits, float[b, outputs]."""
        return self.logits(self.encoder.pool_padded(batch.input_ids, batch.lengths).chunk(self.columns))

    def logits(self, pooled: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits, float[b, outputs], from pooled states, float[b, pooled_dim] of each column."""
        if self.columns == 1:
            return self.head(pooled[0])  # type: ignore[no-any-return]
        u, v = pooled
        return self.head(torch.cat([u, v, (u - v).abs(), u * v], dim=1))  # type: ignore[no-any-return]

    def head_arrays(self) -> dict[str, np.ndarray]:
        """Return the head's weights as float32 arrays, by their names in `head.state_dict`."""
        return {name: weight.float().cpu().numpy() for name, weight in self.head.state_dict().items()}

    def pretrained(self) -> list[nn.Parameter]:
        """Return the weights that came with the student, and not with the task."""
        return list(self.encoder.parameters())


def new_classifier(student: Student, task: Task, seed: int) -> StudentClassifier:
    """Return a copy of a student with a new head for a task."""
    copy = Student(deepcopy(student.encoder), student.tokenizer)
    torch.manual_seed(seed)
    return StudentClassifier(copy, len(task.columns), task.outputs)


def initial_student(student: Student, seed: int, *, words: torch.Tensor | None = None) -> Student:
    """Return a student of the same shape that learned nothing yet: the baseline from scratch.

    Args:
        student: gives shape and tokenizer.
        seed: seed of the weights.
        words: float32[vocabulary, embedding_dim] to take as word embeddings; None draws them at random.
    """
    torch.manual_seed(seed)
    scratch = StudentEncoder(student.encoder.config)
    with torch.no_grad():
        if words is None:
            nn.init.normal_(scratch.embedding.weight, std=SCALE)
        else:
            scratch.embedding.weight.copy_(words)
    return Student(scratch, student.tokenizer)


# The scale of a regression: learned at mean 0 and deviation 1, in whatever unit labels or a teacher's scores are.


def rescale(model: StudentClassifier, factor: float, shift: float) -> None:
    """Let a model give `factor` times its scores, plus `shift`."""
    last = model.head[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(factor)
        last.bias.mul_(factor).add_(shift)


def match_labels(model: StudentClassifier, labelled: Labelled, fitter: Fitter) -> None:
    """Bring the scores of a model that learned a teacher's to the labels' unit: least squares over labelled examples.

    This needs neither the teacher's unit nor the text that it scored: one was fine-tuned here on standardized labels,
    another comes from the hub.

    Raises:
        UserError: the model's scores do not rise with the labels.
    """
    found = fitter.predict(model, model.tokenize(labelled.texts), regression=True)
    centred = found - found.mean()
    spread = float(centred @ centred)
    slope = float(centred @ labelled.targets) / spread if spread else 0.0
    if not slope > 0:
        raise UserError(
            "--logits: the scores that the student learned from do not rise with the labels of the training examples; "
            "embed the task's text with a teacher that was fine-tuned on it"
        )
    rescale(model, slope, float(labelled.targets.mean() - slope * found.mean()))


# The folder of a fine-tuned student: a student's, with the head next to it.


def save_classifier(
    folder: Path, model: StudentClassifier, outcome: Outcome, data: TaskData, distillation: dict[str, Any]
) -> None:
    """Write a fine-tuned student; the folder is made if it is missing.

    Args:
        folder: where to write.
        model: the student with its head.
        outcome: its scores.
        data: what it was fine-tuned on.
        distillation: record of the student that it was made of.
    """
    task = data.task
    record = TaskRecord(
        task=task.name,
        text_columns=task.plain_columns,
        label_column=task.label,
        labels=task.labels,
        metrics=task.metrics,
        dev_examples=data.dev_counts,
        **msgspec.structs.asdict(outcome),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(
        folder / HEAD, save({name: value.cpu().contiguous() for name, value in model.head.state_dict().items()})
    )
    write_json(folder / TASK, msgspec.to_builtins(record))
    changed = {
        # Fidelity was measured before the encoder moved.
        "metrics": {task.name: outcome.scores},
        "dev_examples": record.dev_examples,
        "glue_task": task.hub if isinstance(task, GlueTask) else None,
        # The license of the student that it was made of does not cover a user's examples.
        "licence": None,
    }
    # Last, so that no student without its head passes for a finished one.
    save_student(folder, model.student, {**distillation, **changed})


def load_classifier(folder: Path) -> tuple[StudentClassifier, Task]:
    """Read a fine-tuned student, and the task that it knows.

    Raises:
        UserError: the folder holds none.
    """
    try:
        record = msgspec.json.decode((folder / TASK).read_bytes(), type=TaskRecord)
        task = Task(
            name=record.task,
            columns=record.text_columns,
            label=record.label_column,
            labels=record.labels,
            metrics=record.metrics,
        )
        classifier = StudentClassifier(load_student(folder), len(task.columns), task.outputs)
        classifier.head.load_state_dict(load_file(folder / HEAD))
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no fine-tuned student ({error}); make one: sd finetune STUDENT") from error
    return classifier.eval(), task


@dataclass(frozen=True)
class TorchClassifier:
    """A `Predictor` in PyTorch."""

    model: StudentClassifier
    """The model in evaluation mode, on the device that computes."""
    task: Task

    def outputs(self, columns: Sequence[Sequence[str]]) -> np.ndarray:
        """Return probabilities, float32[n, classes], or scores of a regression, float32[n, 1], of n texts a column."""
        device = next(self.model.parameters()).device
        pooled = [
            encode_tokens(self.model.encoder, tokens, pooled=True) for tokens in self.model.tokenize(columns).columns
        ]
        with torch.inference_mode():
            logits = self.model.logits([part.to(device) for part in pooled])
            return (logits if self.task.regression else logits.softmax(dim=1)).cpu().numpy()
