"""Examples of a task, tokenized."""

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Examples, GlueFolder, GlueHub, GlueTask, Task, TaskMissing
from sentence_distill.data.hashing import bytes_hash
from sentence_distill.pipeline.manifest import Logits, read_logits
from sentence_distill.student.finetune import Labelled


@dataclass(frozen=True)
class TaskData:
    """A task with its examples.

    Args:
        task: which.
        train: labelled examples.
        dev: the dev sets that are there, by name; the first one decides.
        missing: which dev set is not there, or "".
    """

    task: Task
    train: Labelled
    dev: dict[str, Labelled]
    missing: str

    @classmethod
    def load(cls, source: GlueFolder | GlueHub, task: GlueTask) -> "TaskData":
        """Read a task.

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

    @cached_property
    def hash(self) -> str:
        """xxh3-128 of all that is read of it."""
        parts = {"train": self.train, **self.dev}
        content = {name: [list(map(list, part.texts)), part.targets.tolist()] for name, part in parts.items()}
        return bytes_hash(json.dumps(content).encode())

    def share(self, fraction: float, seed: int) -> "TaskData":
        """The same with so large a part of the training examples, drawn by `seed`."""
        if fraction == 1.0:
            return self
        count = len(self.train.targets)
        rows = np.random.default_rng(seed).permutation(count)[: max(1, round(fraction * count))]
        return replace(self, train=self.train.take(rows))


def from_logits(shards: Path, data: TaskData) -> Labelled:
    """A fine-tuned teacher's logits over a task's text, as targets.

    Args:
        shards: that `sd embed` wrote with that teacher.
        data: the task.

    Raises:
        UserError: they hold no logits, or those of another task.
    """
    found = read_logits(shards)
    outputs, columns = max(1, len(data.task.labels)), len(data.train.texts)
    if (found.logits.shape[1], len(found.texts)) != (outputs, columns):
        raise UserError(
            f"{shards} holds {found.logits.shape[1]} logits of {len(found.texts)} text(s) a row, and {data.task.name} "
            f"has {outputs} of {columns}; embed that task's text with a teacher that was fine-tuned on it"
        )
    return Labelled(found.texts, _in_order(found, data.task, shards))


def _in_order(found: Logits, task: Task, shards: Path) -> np.ndarray:
    """The logits in the order of the task's classes; a teacher that only numbers its classes is taken for ordered."""
    names = found.fingerprint.labels or []
    if task.regression or names == [f"LABEL_{number}" for number in range(len(names))]:
        return found.logits
    if set(names) != set(task.labels):
        raise UserError(
            f"{shards} holds logits of {', '.join(names)}, and {task.name} has {', '.join(task.labels)}; embed its "
            "text with a teacher that was fine-tuned on it"
        )
    return found.logits[:, [names.index(label) for label in task.labels]]


def _labelled(examples: Examples) -> Labelled:
    return Labelled(examples.texts, np.array(examples.labels, dtype=np.float32))
