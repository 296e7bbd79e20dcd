"""Results on GLUE, and the submission."""

import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import DIAGNOSTIC, TASKS, GlueTask, set_name
from sentence_distill.pipeline.files import write_atomically
from sentence_distill.pipeline.records import differing_fields
from sentence_distill.student.environment import environment


@dataclass(frozen=True, kw_only=True)
class Result:
    """One fine-tuned, or otherwise made, model's figures on one task.

    Args:
        seed: of fine-tuning.
        fraction: share of the training examples.
        scores: for each dev set its metrics, at the best step.
        learning_rate: the best; 0 where nothing is fine-tuned.
        step: the best; likewise.
        examples: number of training examples, with a teacher's logits those too.
        seconds: of the last fine-tuning.
        data: hash of the task's training and dev examples.
    """

    seed: int
    fraction: float
    scores: dict[str, dict[str, float]]
    learning_rate: float = 0.0
    step: int = 0
    examples: int
    seconds: float = 0.0
    data: str


class Results:
    """The figures of a run, by row and task, in a file that is written anew with each.

    Attributes:
        rows: for each row and task its results.
        skipped: what could not be done, with the reason.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, fresh: bool = False) -> None:
        """Go on with a file.

        Args:
            path: of the file.
            identity: what its figures depend on beside row, task, seed and fraction.
            fresh: replace the file instead, with the first figure.

        Raises:
            UserError: the file is damaged, or holds figures of another identity.
        """
        self.path = path
        self.identity = json.loads(json.dumps(identity))
        self.rows: dict[str, dict[str, list[Result]]] = {}
        self.skipped: dict[str, str] = {}
        # Of all days and machines that added a figure, so that none passes for the last one's.
        self._environments: list[dict[str, Any]] = []
        if fresh:
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self._require_same({name: found.get(name) for name in self.identity})
            self.rows = {
                row: {task: [Result(**result) for result in results] for task, results in tasks.items()}
                for row, tasks in found["rows"].items()
            }
            self._environments = found["environments"] if "environments" in found else [found["environment"]]
        except FileNotFoundError:
            pass
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged ({error}); write elsewhere with --json, or --overwrite replaces it"
            ) from error

    def _require_same(self, found: dict[str, Any]) -> None:
        old, new = _flat(found), _flat(self.identity)
        if differing := differing_fields(old, new):
            raise UserError(
                f"{self.path} holds figures of another run, which differs in {'; '.join(differing)}; write these "
                "elsewhere with --json, or --overwrite replaces it"
            )

    def find(self, row: str, task: str, seed: int, fraction: float, data: str) -> Result | None:
        """A result that is there already, over the same examples."""
        wanted = (seed, fraction, data)
        results = self.rows.get(row, {}).get(task, [])
        return next((result for result in results if (result.seed, result.fraction, result.data) == wanted), None)

    def add(self, row: str, task: str, result: Result) -> None:
        """Keep a result, in place of one of the same seed and fraction, and of all that are over other examples.

        The results of a row and task are averaged, and a mean over two dev sets would be of none.
        """
        results = self.rows.setdefault(row, {}).setdefault(task, [])
        others = [
            known
            for known in results
            if known.data == result.data and (known.seed, known.fraction) != (result.seed, result.fraction)
        ]
        self.rows[row][task] = sorted([*others, result], key=lambda known: (-known.fraction, known.seed))
        self.write()

    def skip(self, what: str, reason: str) -> None:
        """Note what could not be done, and why."""
        self.skipped[what] = reason
        self.write()

    def write(self) -> None:
        """Write the file."""
        rows = {
            row: {task: [asdict(result) for result in results] for task, results in tasks.items()}
            for row, tasks in self.rows.items()
        }
        if (now := environment()) not in self._environments:
            self._environments.append(now)
        figures = {**self.identity, "environments": self._environments, "rows": rows, "skipped": self.skipped}
        write_atomically(self.path, (json.dumps(figures, indent=1) + "\n").encode())


def _flat(identity: dict[str, Any]) -> dict[str, Any]:
    """With the fields of nested options beside the others."""
    flat: dict[str, Any] = {}
    for name, value in identity.items():
        nested = value if isinstance(value, dict) else {}
        flat |= {f"{name} {key}": inner for key, inner in nested.items()} or {name: value}
    return flat


# The files that gluebenchmark.com takes: predictions on the test splits, whose labels are not public.

ZIP_NAME = "submission.zip"
LARGEST_SCORE = 5.0
PARTS: dict[str, tuple[GlueTask, str]] = {
    set_name(task.name, split): (task, split) for task in (*TASKS.values(), DIAGNOSTIC) for split in task.test
}
"""The eleven parts of a submission, CoLA to WNLI and AX, each with its task and test split."""


@dataclass(frozen=True)
class Submission:
    """What was written.

    Args:
        path: of the zip to upload.
        missing: names of `PARTS` that are not in it; the site refuses a zip that lacks one.
    """

    path: Path
    missing: tuple[str, ...]


def write_submission(folder: Path, predictions: Mapping[str, tuple[Iterable[int], Iterable[float]]]) -> Submission:
    """Write NAME.tsv for each part that is given, and submission.zip of them; the same predictions give the same bytes.

    Args:
        folder: made where it is not there.
        predictions: for names of `PARTS` the rows' numbers and n class numbers or, for STS-B, scores, in the order
            of the test file. Scores beyond 0 to 5 are clipped.

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
