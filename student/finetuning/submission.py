"""The files that gluebenchmark.com takes: predictions on the test splits, whose labels are not public."""

import io
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue_tasks import DIAGNOSTIC, TASKS, GlueTask, set_name
from sentence_distill.pipeline.files import write_atomically

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
