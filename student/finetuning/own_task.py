"""A user's own task: labelled tables, with what is held out of them, as fine-tuning takes them."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Examples
from sentence_distill.data.labelled import LabelledTable, examples_of, hold_out, make_task
from sentence_distill.student.finetuning.classifier import StudentClassifier
from sentence_distill.student.finetuning.finetune import Labelled
from sentence_distill.student.finetuning.scale import rescale
from sentence_distill.student.finetuning.task_data import TaskData


@dataclass(frozen=True)
class OwnTask:
    """A task with its examples.

    Args:
        data: the examples. Scores of a regression are brought to mean 0 and deviation 1, so that a learning rate serves
            ratings of 1 to 5 and prices alike; neither correlation sees it.
        mean: of the training scores; 0 for classes.
        deviation: of the training scores; 1 for classes.
    """

    data: TaskData
    mean: float
    deviation: float

    def restore_scale(self, model: StudentClassifier) -> None:
        """Let a model that was fine-tuned on `data` give scores as they stand in the user's files."""
        rescale(model, self.deviation, self.mean)

    def describe(self) -> str:
        """One line: how many examples of what."""
        data, train = self.data, self.data.train.targets
        sizes = f"{len(train):,} training and {len(data.dev['dev'].targets):,} dev examples"
        if data.task.regression:
            return f"regression, {sizes}, scores {self.mean:.4g} ± {self.deviation:.4g}"
        counts = Counter(train.astype(int).tolist())
        commonest = [f"{data.task.labels[number]} {count:,}" for number, count in counts.most_common(10)]
        others = ", …" if len(counts) > 10 else ""
        return f"{len(data.task.labels)} classes, {sizes} (training: {', '.join(commonest)}{others})"


def make_own_task(
    name: str,
    train: LabelledTable,
    dev: LabelledTable | None,
    *,
    columns: tuple[str, ...],
    label: str,
    regression: bool | None = None,
    seed: int,
) -> OwnTask:
    """Make a task of tables.

    Args:
        name: of it.
        train: training examples.
        dev: those that pick the best step; None holds out a tenth of the training examples.
        columns: the one or two columns of texts, see `read_labelled`.
        label: the column of labels.
        regression: whether labels are scores; None decides with `is_score`.
        seed: draws what is held out.

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
        mean, deviation = float(np.mean(parts[0].labels)), float(np.std(parts[0].labels))
        if not np.isfinite(deviation) or deviation == 0:
            raise UserError(
                f"{train.name}: its training scores do not differ, or are too large; nothing can be learned of them"
            )
    train_part, dev_part = (_standardised(part, mean, deviation) for part in parts)
    return OwnTask(TaskData(task, train_part, {"dev": dev_part}, ""), mean, deviation)


def _standardised(examples: Examples, mean: float, deviation: float) -> Labelled:
    return Labelled(examples.texts, ((np.array(examples.labels) - mean) / deviation).astype(np.float32))
