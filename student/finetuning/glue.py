"""GLUE: fills in the table of rows and tasks, one model after the other, and predicts the test sets."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS, GlueFolder, GlueHub, TaskMissing
from sentence_distill.student.finetuning.finetune import main_score
from sentence_distill.student.finetuning.glue_rows import ROWS, WITHOUT_SEED, Made, RowMaker
from sentence_distill.student.finetuning.results import Result, Results
from sentence_distill.student.finetuning.submission import PARTS
from sentence_distill.student.finetuning.task_data import TaskData
from sentence_distill.student.metrics import shown_score

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

    def run(
        self, rows: Sequence[str], tasks: Sequence[str], predictions: Predictions | None = None
    ) -> Iterator[tuple[str, str, Result]]:
        """Fill in the table, task by task; yield row, task and result as each is there.

        A task whose data is missing, or a row whose teacher is, goes to `results.skipped` and the others go on.

        Args:
            rows: names in `ROWS`.
            tasks: names in `TASKS`.
            predictions: gathers, for each part of a submission, the rows' numbers and the classes or scores that the
                best model over the seeds of a row gives them; all models are made anew for it.
        """
        for task in tasks:
            try:
                data = self._load(task)
            except (TaskMissing, UserError) as error:
                self.results.skip(task, str(error))
                continue
            for row, fraction in product(rows, self.fractions):
                best: Made | None = None
                try:
                    for result, made in self._cells(row, data, fraction, anew=predictions is not None):
                        if made and (not best or main_score(made.outcome.scores) > main_score(best.outcome.scores)):
                            best = made
                        yield row, task, result
                except UserError as error:
                    self.results.skip(f"{ROWS[row]}: {task}", str(error))
                if predictions is not None and best is not None:
                    predictions |= self._predictions(task, best)

    def _predictions(self, task: str, made: Made) -> Predictions:
        """Those of the test splits that a task's model predicts."""
        predictions: Predictions = {}
        for name, (part, split) in PARTS.items():
            if _MODEL_OF.get(part.name, part.name) != task:
                continue
            try:
                examples = self.source.load_test(part, split)
                predictions[name] = examples.ids, made.predict(examples.texts)
            except (TaskMissing, UserError) as error:
                self.results.skip(name, str(error))
        return predictions

    def _load(self, task: str) -> TaskData:
        data = TaskData.load(self.source, TASKS[task])
        if data.missing:
            self.results.skip(task, data.missing)
        return data

    def _cells(self, row: str, data: TaskData, fraction: float, *, anew: bool) -> Iterator[tuple[Result, Made | None]]:
        """One result a seed, with its model where it was made now.

        Args:
            row: which.
            data: the task, with all its examples.
            fraction: of them that are used.
            anew: make models even where their results are there.
        """
        task, rates = data.task.name, None
        # Where only a share of the examples is used, the seed draws it.
        for seed in self.seeds[:1] if row in WITHOUT_SEED and fraction == 1.0 else self.seeds:
            result, made = self.results.find(row, task, seed, fraction, data.hash), None
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
                    data=data.hash,
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


def describe_dev(scores: dict[str, dict[str, float]], counts: dict[str, int]) -> str:
    """The metrics of each dev set, of so many examples."""
    parts = []
    for dev, metrics in scores.items():
        shown = (f"{metric} {shown_score(metric, value, counts[dev])}" for metric, value in metrics.items())
        parts.append(f"{dev} {', '.join(shown)}")
    return "; ".join(parts)
