"""A task: its examples as models learn them, and the records of what was learned."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np

from sentence_distill.data import progress
from sentence_distill.data.corpus import text_columns
from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.glue import TASKS, Examples, GlueSource, GlueTask, Task, TaskMissing, open_glue
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.labelled import LabelledTable, examples_of, hold_out, make_task, read_labelled
from sentence_distill.pipeline.manifest import read_logits, require_manifest
from sentence_distill.student.config import FinetuneConfig
from sentence_distill.student.files import is_student, is_unfinished, load_distillation

Scores = dict[str, dict[str, float]]
"""The metrics of each dev set, by their names."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """Result of fitting a model to a task, at the best step on dev."""

    scores: Scores
    learning_rate: float = 0.0
    """The best one; 0 if nothing was fine-tuned."""
    step: int = 0
    """The best step. 0 with no scores: fine-tuning diverged before it was scored once."""
    seconds: float = 0.0
    ended: str = ""
    """When fine-tuning ended, and why."""


class TaskRecord(Outcome, frozen=True, kw_only=True):
    """Content of task.json, next to a fine-tuned student."""

    task: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    dev_examples: dict[str, int]


class TeacherRecord(Outcome, frozen=True, kw_only=True):
    """Content of finetuning.json, next to a fine-tuned teacher; written last, so that a folder with it is whole."""

    task: str
    files: tuple[str, ...] = ()
    """Names of the files that were written."""


def main_score(scores: Scores) -> float:
    """Return one number for a task: the mean of its metrics on the first dev set, as GLUE averages them."""
    return float(np.mean(list(next(iter(scores.values())).values())))


@dataclass(frozen=True)
class Labelled:
    """Examples with what a model should say of them."""

    texts: Sequence[Sequence[str]]
    """One or two columns of n texts."""
    targets: np.ndarray
    """float32[n], class numbers or scores; or float32[n, outputs], the logits of a teacher."""

    def take(self, rows: np.ndarray) -> "Labelled":
        """Return the examples int[k] `rows`."""
        return Labelled([[column[row] for row in rows] for column in self.texts], self.targets[rows])


@dataclass(frozen=True)
class TaskData:
    """A task with its examples."""

    task: Task
    train: Labelled
    dev: dict[str, Labelled]
    """The dev sets that are there, by name; the first one decides."""
    missing: str = ""
    """The dev sets that are not there."""
    mean: float = 0.0
    """Mean of the training scores as they stand in a user's files; 0 for classes and GLUE."""
    deviation: float = 1.0
    """Standard deviation of those; 1 for classes and GLUE."""

    @classmethod
    def load(cls, source: GlueSource, task: GlueTask) -> "TaskData":
        """Read a task of GLUE.

        Raises:
            TaskMissing: it has no training examples here, or no dev set.
            UserError: a file is damaged, or the hub does not answer.
        """
        train = _labelled(source.load(task, "train"))
        dev: dict[str, Labelled] = {}
        missing = []
        for split in task.dev:
            try:
                dev[split] = _labelled(source.load(task, split))
            except TaskMissing as error:
                missing.append(str(error))
        if not dev:
            raise TaskMissing(missing[0])
        return cls(task, train, dev, "; ".join(missing))

    @classmethod
    def of_tables(
        cls,
        name: str,
        train: LabelledTable,
        dev: LabelledTable | None,
        *,
        columns: tuple[str, ...],
        label: str,
        regression: bool | None = None,
        seed: int,
    ) -> "TaskData":
        """Make a task of a user's own tables; without `dev`, `seed` draws a tenth of the training examples.

        Scores of a regression are brought to mean 0 and deviation 1, so that a learning rate serves ratings of 1 to 5
        and prices alike; neither correlation sees it. If `regression` is None, `is_score` decides.

        Raises:
            UserError: a row can't be used; it says which.
        """
        task = make_task(name, train, columns, label, regression)
        if dev is None:
            parts = hold_out(task, examples_of(task, train), seed)
        else:
            parts = examples_of(task, train), examples_of(task, dev)
        mean, deviation = 0.0, 1.0
        if task.regression:
            mean, deviation = scale_of(np.array(parts[0].labels), f"{train.name}: its training scores")
        train_part, dev_part = (_labelled(part, mean, deviation) for part in parts)
        return cls(task, train_part, {"dev": dev_part}, "", mean, deviation)

    @cached_property
    def hash(self) -> str:
        """xxh3-128 of all examples."""
        parts = {"train": self.train, **self.dev}
        content = {name: [list(map(list, part.texts)), part.targets.tolist()] for name, part in parts.items()}
        return bytes_hash(json.dumps(content).encode())

    @property
    def dev_counts(self) -> dict[str, int]:
        """Number of examples of each dev set."""
        return {name: len(part.targets) for name, part in self.dev.items()}

    def share(self, fraction: float, seed: int) -> "TaskData":
        """Return the task with a share of its training examples, drawn by `seed`."""
        if fraction == 1.0:
            return self
        count = len(self.train.targets)
        rows = np.random.default_rng(seed).permutation(count)[: max(1, round(fraction * count))]
        return replace(self, train=self.train.take(rows))

    def describe(self) -> str:
        """Describe a user's own task in one line: how many examples of what."""
        labels, train = self.task.labels, self.train.targets
        sizes = f"{len(train):,} training and {len(self.dev['dev'].targets):,} dev examples"
        if self.task.regression:
            return f"regression, {sizes}, scores {self.mean:.4g} ± {self.deviation:.4g}"
        counts = Counter(train.astype(int).tolist())
        commonest = [f"{labels[number]} {count:,}" for number, count in counts.most_common(10)]
        others = ", …" if len(counts) > 10 else ""
        return f"{len(labels)} classes, {sizes} (training: {', '.join(commonest)}{others})"


def scale_of(scores: np.ndarray, name: str) -> tuple[float, float]:
    """Return mean and standard deviation of scores, which `name` stands for in messages.

    Raises:
        UserError: they do not differ.
    """
    mean, deviation = float(np.mean(scores)), float(np.std(scores))
    if not np.isfinite(deviation) or deviation == 0:
        raise UserError(f"{name} do not differ, or are too large; nothing can be learned from them")
    return mean, deviation


def _labelled(examples: Examples, mean: float = 0.0, deviation: float = 1.0) -> Labelled:
    return Labelled(examples.texts, ((np.array(examples.labels) - mean) / deviation).astype(np.float32))


def read_task(config: FinetuneConfig) -> TaskData:
    """Read the examples of a task; what else costs little is checked before.

    Raises:
        UserError: a file is not there or can't be used, or the model is no student that could learn.
    """
    model = Path(config.model)
    if config.logits is not None and model.is_dir() and not is_student(config.model) and not is_unfinished(model):
        raise not_a_student(config.model)
    if is_unfinished(model):
        load_distillation(model)
    if config.logits is not None:
        require_manifest(config.logits)
    if config.task is not None:
        try:
            return TaskData.load(open_glue(config.glue_dir), TASKS[config.task])
        except TaskMissing as error:
            raise UserError(f"--glue-dir {config.glue_dir}: {error}") from None
    columns = text_columns(config.text_column, "--text-column")
    train = read_labelled(str(config.train), columns, config.label_column)
    dev = read_labelled(config.dev, columns, config.label_column) if config.dev else None
    data = TaskData.of_tables(
        config.name,
        train,
        dev,
        columns=columns,
        label=config.label_column,
        regression=config.regression,
        seed=config.seed,
    )
    progress.log(f"{config.name}: {data.describe()}")
    if dev is None:
        held_out = data.dev_counts["dev"]
        progress.log(f"held out of {train.name}: {held_out:,} examples, which pick the best step; --dev names others")
    return data


def not_a_student(model: str) -> UserError:
    """Return the error of a model that can't learn from logits."""
    return UsageError(f"--logits is what a student learns from, and {model} is none")


def from_logits(shards: Path, data: TaskData) -> Labelled:
    """Read the logits that `sd embed` wrote with a fine-tuned teacher over a task's text, as targets.

    They come in the order of the task's classes; a teacher that only numbers its classes is taken for ordered.

    Raises:
        UserError: the shards hold no logits, or those of another task.
    """
    found, task = read_logits(shards), data.task
    columns = len(data.train.texts)
    if (found.logits.shape[1], len(found.texts)) != (task.outputs, columns):
        raise UserError(
            f"{shards} holds {found.logits.shape[1]} logits of {len(found.texts)} text(s) a row, and {task.name} "
            f"has {task.outputs} of {columns}; embed that task's text with a teacher that was fine-tuned on it"
        )
    names = [str(name) for name in found.fingerprint["labels"]]
    if task.regression or names == [f"LABEL_{number}" for number in range(len(names))]:
        return Labelled(found.texts, found.logits)
    if set(names) != set(task.labels):
        raise UserError(
            f"{shards} holds logits of {', '.join(names)}, and {task.name} has {', '.join(task.labels)}; embed its "
            "text with a teacher that was fine-tuned on it"
        )
    return Labelled(found.texts, found.logits[:, [names.index(label) for label in task.labels]])
