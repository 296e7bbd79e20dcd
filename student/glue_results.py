"""Results on GLUE, and the submission."""

import io
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import DIAGNOSTIC, TASKS, GlueTask, set_name
from sentence_distill.pipeline.files import write_atomically, write_json
from sentence_distill.pipeline.fingerprint import differing_fields
from sentence_distill.student.config import LOOP, TEACHER, Hyperparameters
from sentence_distill.student.environment import environment
from sentence_distill.student.task_data import Outcome


class Result(Outcome, frozen=True, kw_only=True):
    """Figures of one model on one task."""

    seed: int = 0
    fraction: float = 1.0
    """Share of the training examples."""
    examples: int
    """Number of training examples, with a teacher's logits those too."""
    data: str = ""
    """Hash of the task's training and dev examples."""


@dataclass(frozen=True, kw_only=True)
class StudentFinetuning(Hyperparameters):
    """Record of the students' fine-tuning."""

    loop: int = LOOP
    synthetic: int = 0
    """Approximate number of augmented examples in task-specific distillation."""


class Results(msgspec.Struct, kw_only=True):
    """Content of glue.json: the figures so far, and what they depend on."""

    source: str = ""
    student: list[str] = []
    """Hashes of the student's weights."""
    computed: str = ""
    """Compute dtype and kind of device."""
    finetuning: StudentFinetuning = StudentFinetuning()
    teacher_finetuning: Hyperparameters = TEACHER
    environments: list[dict[str, Any]] = []
    """Every day and machine that added a figure."""
    rows: dict[str, dict[str, list[Result]]] = {}
    """Results by row and task."""
    skipped: dict[str, str] = {}
    """Tasks, rows and test sets that could not be done, with the reason."""

    def find(self, row: str, task: str, seed: int, fraction: float, data: str) -> Result | None:
        """Return a result that is there already, over the same examples."""
        wanted = (seed, fraction, data)
        results = self.rows.get(row, {}).get(task, [])
        return next((result for result in results if (result.seed, result.fraction, result.data) == wanted), None)

    def add(self, row: str, task: str, result: Result) -> None:
        """Add a result, in place of one of the same seed and fraction, and of all that are over other examples.

        The results of a row and task are averaged, and a mean over two dev sets would be of none.
        """
        results = self.rows.setdefault(row, {}).setdefault(task, [])
        others = [
            known
            for known in results
            if known.data == result.data and (known.seed, known.fraction) != (result.seed, result.fraction)
        ]
        self.rows[row][task] = sorted([*others, result], key=lambda known: (-known.fraction, known.seed))


def read_results(path: Path) -> Results:
    """Read glue.json.

    Raises:
        UserError: it is damaged.
        FileNotFoundError: it is not there.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.MsgspecError as error:
        raise UserError(
            f"{path} is damaged ({error}); write elsewhere with --json, or --overwrite replaces it"
        ) from error


def resume_results(path: Path, new: Results) -> Results:
    """Return the figures in a file, or `new` if there is no file.

    Raises:
        UserError: the file is damaged, or its figures depend on something else than those of `new`.
    """
    try:
        old = read_results(path)
    except FileNotFoundError:
        return new
    if differing := differing_fields(_dependencies(old), _dependencies(new)):
        raise UserError(
            f"{path} holds figures of another run, which differs in {'; '.join(differing)}; write these elsewhere with "
            "--json, or --overwrite replaces it"
        )
    old.skipped = {}
    return old


def _dependencies(results: Results) -> dict[str, Any]:
    """Return what figures depend on besides row, task, seed and fraction, on one level."""
    nested = msgspec.to_builtins(results)
    flat = {name: nested[name] for name in ("source", "student", "computed")}
    for name in ("finetuning", "teacher_finetuning"):
        flat |= {f"{name} {key}": value for key, value in nested[name].items()}
    return flat


def write_results(path: Path, results: Results) -> None:
    """Write glue.json, with this day and machine among the environments."""
    if (now := environment()) not in results.environments:
        results.environments.append(now)
    write_json(path, msgspec.to_builtins(results))


# The files that gluebenchmark.com takes: predictions on the test splits, whose labels are not public.

ZIP_NAME = "submission.zip"
LARGEST_SCORE = 5.0
PARTS: dict[str, tuple[GlueTask, str]] = {
    set_name(task.name, split): (task, split) for task in (*TASKS.values(), DIAGNOSTIC) for split in task.test
}
"""The eleven parts of a submission, CoLA to WNLI and AX, each with its task and test split."""


@dataclass(frozen=True)
class Submission:
    """A submission that was written."""

    path: Path
    """The zip to upload."""
    missing: tuple[str, ...]
    """Names of `PARTS` that are not in it; the site refuses a zip that lacks one."""


Predictions = Mapping[str, tuple[Iterable[int], Iterable[float]]]
"""For names of `PARTS` the rows' numbers and n class numbers or, for STS-B, scores, in the order of the test file."""


def write_submission(folder: Path, predictions: Predictions) -> Submission:
    """Write NAME.tsv for each part that is given, and submission.zip of them; the same predictions give the same bytes.

    The folder is made if it is missing. Scores beyond 0 to 5 are clipped.

    Raises:
        UserError: a prediction is not finite.
    """
    contents = {name: _tsv(name, *predictions[name]).encode() for name in PARTS if name in predictions}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(folder / f"{name}.tsv", content)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents):
            # Without a date of its own an entry has the earliest that there is.
            entry = zipfile.ZipInfo(f"{name}.tsv")
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, contents[name], zipfile.ZIP_DEFLATED)
    write_atomically(folder / ZIP_NAME, packed.getvalue())
    return Submission(folder / ZIP_NAME, tuple(name for name in PARTS if name not in contents))


def _tsv(name: str, ids: Iterable[int], values: Iterable[float]) -> str:
    task, _ = PARTS[name]
    rows = (f"{number}\t{_prediction(task, float(value))}\n" for number, value in zip(ids, values, strict=True))
    return "index\tprediction\n" + "".join(rows)


def _prediction(task: GlueTask, value: float) -> str:
    if not math.isfinite(value):
        raise UserError(f"a prediction for {task.name} is {value}: fine-tuning diverged; lower --learning-rate")
    if task.regression:
        return f"{min(LARGEST_SCORE, max(0.0, value)):.3f}"
    return task.labels[int(value)]
