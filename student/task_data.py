"""A task: its examples as models learn them. Nothing here imports PyTorch."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from sentence_distill.data import progress
from sentence_distill.data.corpus import text_columns
from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.glue import TASKS, Examples, GlueSource, GlueTask, Task, TaskMissing, open_glue
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.data.labelled import LabelledTable, examples_of, hold_out, make_task, read_labelled
from sentence_distill.pipeline.manifest import read_logits, require_manifest
from sentence_distill.student.config import FinetuneConfig
from sentence_distill.student.figures import is_unfinished, load_distillation
from sentence_distill.student.files import is_student


@dataclass(frozen=True)
class Labelled:
    """Examples with what a model should say of them."""

    texts: Sequence[Sequence[str]]
    """One or two columns of n texts."""
    targets: np.ndarray
    """float32[n], class numbers or scores; or float32[n, outputs], the logits of a teacher."""

    @classmethod
    def of(cls, examples: Examples, mean: float = 0.0, deviation: float = 1.0) -> "Labelled":
        """Take examples as they were read, and standardize their scores."""
        return cls(examples.texts, ((np.array(examples.labels) - mean) / deviation).astype(np.float32))


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
        """Read a task of GLUE; TaskMissing if it has no training examples here, or no dev set."""
        train = Labelled.of(source.load(task, "train"))
        dev: dict[str, Labelled] = {}
        missing = []
        for split in task.dev:
            try:
                dev[split] = Labelled.of(source.load(task, split))
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
        """
        task = make_task(name, train, columns, label, regression)
        examples = examples_of(task, train)
        parts = hold_out(task, examples, seed) if dev is None else (examples, examples_of(task, dev))
        mean, deviation = 0.0, 1.0
        if task.regression:
            mean, deviation = scale_of(np.array(parts[0].labels), f"{train.name}: its training scores")
        train_part, dev_part = (Labelled.of(part, mean, deviation) for part in parts)
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
        texts = [[column[row] for row in rows] for column in self.train.texts]
        return replace(self, train=Labelled(texts, self.train.targets[rows]))

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
    """Return mean and standard deviation of scores, which `name` stands for in the error if they do not differ."""
    mean, deviation = float(np.mean(scores)), float(np.std(scores))
    if not np.isfinite(deviation) or deviation == 0:
        raise UserError(f"{name} do not differ, or are too large; nothing can be learned from them")
    return mean, deviation


def read_task(config: FinetuneConfig) -> TaskData:
    """Read the examples of a task; what else costs little is checked before."""
    model = Path(config.model)
    if is_unfinished(model):
        load_distillation(model)
    if config.logits is not None:
        if model.is_dir() and not is_student(config.model):
            raise not_a_student(config.model)
        require_manifest(config.logits)
    if config.task is not None:
        try:
            return TaskData.load(open_glue(config.glue_dir), TASKS[config.task])
        except TaskMissing as error:
            raise UserError(f"--glue-dir {config.glue_dir}: {error}") from None
    columns = text_columns(config.text_column, "--text-column")
    train = read_labelled(str(config.train), columns, config.label_column)
    dev = read_labelled(config.dev, columns, config.label_column) if config.dev else None
    label, regression = config.label_column, config.regression
    data = TaskData.of_tables(
        config.name, train, dev, columns=columns, label=label, regression=regression, seed=config.seed
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
    """
    found, task = read_logits(shards), data.task
    columns, names = len(data.train.texts), [str(name) for name in found.fingerprint.labels or ()]
    other = f"embed {task.name}'s text with a teacher that was fine-tuned on it"
    if (found.logits.shape[1], len(found.texts)) != (task.outputs, columns):
        raise UserError(
            f"{shards} holds {found.logits.shape[1]} logits of {len(found.texts)} text(s) a row, and {task.name} "
            f"has {task.outputs} of {columns}; {other}"
        )
    if task.regression or names == [f"LABEL_{number}" for number in range(len(names))]:
        return Labelled(found.texts, found.logits)
    if set(names) != set(task.labels):
        raise UserError(
            f"{shards} holds logits of {', '.join(names)}, and {task.name} has {', '.join(task.labels)}; {other}"
        )
    return Labelled(found.texts, found.logits[:, [names.index(label) for label in task.labels]])
