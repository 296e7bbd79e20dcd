"""GLUE: fills in the table of rows and tasks, one model after the other, and predicts the test sets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, GlueFolder, GlueHub, TaskMissing
from sentence_distill.data.submission import PARTS
from sentence_distill.student.finetune import main_score
from sentence_distill.student.glue_rows import ROWS, WITHOUT_SEED, Made, RowMaker
from sentence_distill.student.results import Result, Results
from sentence_distill.student.task_data import TaskData

# The tasks whose models predict the test splits of a part of the submission; AX has none of its own.
_MODEL_OF = {"AX": "MNLI"}
Predictions = dict[str, tuple[list[int], np.ndarray]]


@dataclass(frozen=True, kw_only=True)
class GlueRun:
    """A run over rows, tasks, shares of the training examples, and seeds.

    Args:
        source: where the tasks come from.
        maker: makes the models.
        results: where figures go; those that are there are not made again.
        seeds: of fine-tuning. The first tries all learning rates, and the best serves the others.
        fractions: shares of the training examples.
    """

    source: GlueFolder | GlueHub
    maker: RowMaker
    results: Results
    seeds: Sequence[int]
    fractions: Sequence[float] = (1.0,)

    def run(self, rows: Sequence[str], tasks: Sequence[str]) -> Iterator[tuple[str, str, Result]]:
        """Fill in the table, task by task; yield row, task and result as each is there.

        A task whose data is missing, or a row whose teacher is, goes to `results.skipped` and the others go on.
        """
        for task in tasks:
            try:
                data = self._load(task)
            except (TaskMissing, UserError) as error:
                self.results.skip(task, str(error))
                continue
            for row in rows:
                try:
                    for fraction in self.fractions:
                        for result, _ in self._cells(row, data, fraction):
                            yield row, task, result
                except UserError as error:
                    self.results.skip(f"{ROWS[row]}: {task}", str(error))

    def predict_tests(self, row: str, tasks: Sequence[str]) -> Predictions:
        """Predict the test splits by each task's best model of a row, over all seeds and examples.

        Returns:
            For each part of a submission (see `PARTS`) the rows' numbers and their classes or scores. What can't be
            had goes to `results.skipped`.
        """
        predictions: Predictions = {}
        for task in tasks:
            try:
                made = [made for _, made in self._cells(row, self._load(task), 1.0, anew=True)]
                best = max((one for one in made if one is not None), key=lambda one: main_score(one.outcome.scores))
            except (TaskMissing, UserError) as error:
                self.results.skip(task, str(error))
                continue
            for name, (part, split) in PARTS.items():
                if _MODEL_OF.get(part.name, part.name) != task:
                    continue
                try:
                    examples = self.source.load_test(part, split)
                    predictions[name] = examples.ids, best.predict(examples.texts)
                except (TaskMissing, UserError) as error:
                    self.results.skip(name, str(error))
        return predictions

    def _load(self, task: str) -> TaskData:
        data = TaskData.load(self.source, TASKS[task])
        if data.missing:
            self.results.skip(task, data.missing)
        return data

    def _cells(
        self, row: str, data: TaskData, fraction: float, *, anew: bool = False
    ) -> Iterator[tuple[Result, Made | None]]:
        """One result a seed, with its model where it was made now.

        Args:
            row: which.
            data: the task, with all its examples.
            fraction: of them that are used.
            anew: make models even where their results are there.
        """
        task, rates = data.task.name, None
        for seed in self.seeds[:1] if row in WITHOUT_SEED else self.seeds:
            result, made = self.results.find(row, task, seed, fraction), None
            if result is None or anew:
                made = self.maker.make(row, data.share(fraction, seed), rates=rates, seed=seed)
                result = Result(
                    seed=seed,
                    fraction=fraction,
                    scores=made.outcome.scores,
                    learning_rate=made.learning_rate,
                    step=made.outcome.step,
                    examples=made.examples,
                    seconds=round(made.outcome.seconds, 1),
                )
                self.results.add(row, task, result)
            rates = rates or (result.learning_rate,)
            yield result, made


def describe(result: Result) -> str:
    """One line for a result."""
    detail = f" (step {result.step:,}, learning rate {result.learning_rate:g})" if result.step else ""
    return describe_scores(result.scores) + detail


def describe_scores(scores: dict[str, dict[str, float]]) -> str:
    """The metrics of each dev set, in per cent."""
    return "; ".join(
        f"{dev} " + ", ".join(f"{metric} {100 * value:.1f}" for metric, value in metrics.items())
        for dev, metrics in scores.items()
    )
