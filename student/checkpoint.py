"""The folder of a training run: what may be in it when it begins, and its checkpoints."""

import io
import math
import pickle
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.pipeline.files import LOCK_NAME, TEMPORARY, replacing
from sentence_distill.student.files import CHECKPOINTS, DISTILLATION, FIGURES, HEAD, TASK
from sentence_distill.student.log import CURVES, METRICS, TENSORBOARD

# An export of the student, which belongs to its weights.
_EXPORT, _EXPORT_RECORD = "onnx", "export.json"
_BEST = "best.pt"


def resumes(out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Decide whether a training resumes the run in its folder, or begins one.

    Args:
        out: the folder.
        resume: insist on resuming.
        overwrite: begin again, whatever run or student is there.

    Raises:
        UserError: the folder holds a finished student or something else, or no run to resume.
    """
    stopped, finished = any((out / CHECKPOINTS).glob("step-*.pt")), (out / DISTILLATION).exists()
    if resume and overwrite:
        raise UserError("--resume continues a run, --overwrite begins again: give one of them")
    if not (stopped or finished):
        # Files of a run that ended before its first checkpoint may stay.
        names = {path.name for path in out.iterdir()} if out.exists() else set()
        of_run = {METRICS, TENSORBOARD, CHECKPOINTS, LOCK_NAME, *CURVES}
        other = {name for name in names - of_run if not name.endswith(TEMPORARY)}
        if other and METRICS not in names:
            raise UserError(
                f"{out} holds {min(other)}, which sd train-student did not write; name another folder with --out"
            )
        if other and not overwrite:
            raise UserError(f"{out} holds {min(other)} and a run that ended early; --overwrite replaces it")
    if overwrite:
        return False
    if finished and not stopped:
        raise UserError(
            f"{out} holds a finished student; measure it with sd eval, name another --out, or --overwrite replaces it"
        )
    if resume and not stopped:
        raise UserError(f"there is no checkpoint in {out} to resume; leave --resume out to begin")
    return stopped


def remove_earlier(out: Path) -> None:
    """Remove the record of an earlier student, and what was made and measured of it; its weights are replaced."""
    # If a kill comes next, the rest of the earlier student is in the folder of a run, which may be replaced.
    (out / METRICS).touch()
    for name in (DISTILLATION, TASK, HEAD, *FIGURES):
        (out / name).unlink(missing_ok=True)
    if (out / _EXPORT / _EXPORT_RECORD).exists():
        shutil.rmtree(out / _EXPORT)


def remove_unused(out: Path) -> None:
    """Remove the empty log of a run that ended before its first step, if nothing else is there."""
    names = {path.name for path in out.iterdir()} - {LOCK_NAME}
    if names == {METRICS} and not (out / METRICS).stat().st_size:
        (out / METRICS).unlink()


@dataclass
class TrainingState:
    """Position of a run; with the weights and the optimizers' moments it is all that a resume needs."""

    epoch: int = 0
    """Epochs that are complete."""
    step: int = 0
    """Steps done, over all epochs."""
    step_in_epoch: int = 0
    """Steps done in the current epoch."""
    sentences: int = 0
    """Sentences done, over all epochs."""
    seconds: float = 0.0
    """Time spent training."""
    loss: float = 0.0
    """Sum of the losses of all sentences since the last validation."""
    validated: int = 0
    """Sentences done at the last validation."""
    best: float = -math.inf
    """Highest held-out cosine so far."""
    worse: int = 0
    """Validations since then."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the best weights.

    A thread writes each while training continues; it has its name only when it is complete.
    """

    def __init__(self, out: Path, keep: int) -> None:
        self.folder = out / CHECKPOINTS
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writes: list[Future[None]] = []

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy a state (tensors, numbers, strings and containers of them) and let it be written.

        Raises:
            OSError: an earlier one could not be written.
        """
        self._write(self.folder / f"step-{step:010d}.pt", state)

    def save_best(self, state: dict[str, Any]) -> None:
        """The same for the best weights and what is known of them."""
        self._write(self.folder / _BEST, state)

    def wait(self) -> None:
        """Return when all is written.

        Raises:
            OSError: something could not be.
        """
        while self._writes:
            self._writes.pop(0).result()

    def check(self) -> None:
        """Raise the OSError of a write that failed; wait for none."""
        while self._writes and self._writes[0].done():
            self._writes.pop(0).result()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        # Two states in memory are enough.
        self.wait()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._writes.append(self._thread.submit(self._commit, path, buffer))

    def _commit(self, path: Path, buffer: io.BytesIO) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(buffer.getbuffer())
        for old in self._steps()[: -self._keep]:
            old.unlink(missing_ok=True)

    def _steps(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def newest(self) -> dict[str, Any]:
        """The newest state.

        Raises:
            UserError: there is none, or it is damaged.
        """
        if not (steps := self._steps()):
            raise UserError(f"there is no checkpoint in {self.folder} to resume; leave --resume out to begin")
        return load_checkpoint(steps[-1])

    def best(self) -> dict[str, Any]:
        """What `save_best` saved.

        Raises:
            UserError: it is damaged.
        """
        return load_checkpoint(self.folder / _BEST)

    def remove(self) -> None:
        """Remove all checkpoints; what else lies in their folder stays."""
        self.remove_temporaries()
        # A run can be resumed as long as any of its steps is there, and needs its best weights for that.
        for path in (*self._steps(), self.folder / _BEST):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def remove_temporaries(self) -> None:
        """Remove what writers that were killed left in the run's folder."""
        for folder in (self.folder, self.folder.parent):
            for path in folder.glob("*" + TEMPORARY):
                # An export's is a folder, and the next export removes it.
                if not path.is_dir():
                    path.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint; no code in it is run.

    Raises:
        UserError: it is damaged.
    """
    # What PyTorch raises over random bytes.
    damage = (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except damage as error:
        raise UserError(
            f"checkpoint {path} is damaged ({first_line(error)}); remove it to resume from the one before, or "
            "--overwrite begins again"
        ) from error
