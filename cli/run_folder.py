"""The folder that `sd train-student` writes: what may be there before, and what goes."""

import shutil
from pathlib import Path

import click

from sentence_distill.data.errors import UserError


def refuse_used(out: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder whose run or student was not meant, and one that holds something else.

    Raises:
        UserError: it is refused.
    """
    stopped, finished = any((out / "checkpoints").glob("step-*.pt")), (out / "distillation.json").exists()
    if resume and overwrite:
        raise click.UsageError("--resume goes on, --overwrite begins again: give one of them")
    if stopped and not (resume or overwrite):
        raise UserError(f"{out} holds a run that was stopped; go on with --resume, or begin again with --overwrite")
    if finished and not stopped and not overwrite:
        raise UserError(
            f"{out} holds a finished student; measure it with sd eval, or train anew with --overwrite or another --out"
        )
    if not (stopped or finished):
        _refuse_foreign(out, overwrite)


def _refuse_foreign(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds what no run left there; beside a run that had no checkpoint --overwrite lets it in."""
    from sentence_distill.pipeline.files import TEMPORARY
    from sentence_distill.pipeline.lock import LOCK_NAME
    from sentence_distill.student.training.checkpoint import CHECKPOINTS
    from sentence_distill.student.training.curves import CURVES
    from sentence_distill.student.training.log import METRICS, TENSORBOARD

    names = {path.name for path in out.iterdir()} if out.exists() else set()
    begun = METRICS in names
    of_run = {METRICS, TENSORBOARD, CHECKPOINTS, LOCK_NAME, *CURVES}
    other = sorted(name for name in names - of_run if not name.endswith(TEMPORARY))
    if other and not (begun and overwrite):
        again = ", or begin again with --overwrite" if begun else ""
        raise UserError(f"{out} holds {other[0]}, which is of no run; name another folder with --out{again}")


def remove_earlier(out: Path) -> None:
    """Remove the record of an earlier run's student, and what was made and measured of it; its weights are replaced."""
    from sentence_distill.student.encoding.export_folder import DEFAULT, RECORD
    from sentence_distill.student.finetuning.task_folder import HEAD, TASK
    from sentence_distill.student.training.log import METRICS

    # A kill below leaves files of the earlier student, in what is a run's folder from here on.
    (out / METRICS).touch()
    for name in ("distillation.json", TASK, HEAD, "eval.json", "glue.json", "speed.json", "mteb.json"):
        (out / name).unlink(missing_ok=True)
    if (out / DEFAULT / RECORD).exists():
        shutil.rmtree(out / DEFAULT)
