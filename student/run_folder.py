"""The folder of a training run: checks before it starts, checkpoints, the log, and curves."""

import io
import json
import math
import pickle
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sentence_distill.data.errors import UserError, first_line
from sentence_distill.pipeline.files import LOCK_NAME, TEMPORARY, replacing, write_atomically
from sentence_distill.student.figures import CHECKPOINTS, DISTILLATION
from sentence_distill.student.files import EXPORT_FOLDER, FIGURES, HEAD, TASK, is_export

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
CURVES = ("curves.svg", "curves.png")
_PANELS = (
    ("train", "loss", "loss of a batch"),
    ("train", "learning_rate", "learning rate"),
    ("validation", "cosine", "held-out cosine"),
    ("validation", "rank_agreement", "held-out rank agreement"),
)
_Item = TypeVar("_Item")


def resumes(out: Path, *, resume: bool, overwrite: bool) -> bool:
    """Return True if training resumes the run in `out`, False if it starts one; refuse a folder of something else."""
    stopped, finished = any((out / CHECKPOINTS).glob("step-*.pt")), (out / DISTILLATION).exists()
    if resume and overwrite:
        raise UserError("--resume continues a run, --overwrite starts over: give one of them")
    if not (stopped or finished):
        # Files of a run that ended before its first checkpoint don't matter.
        names = {path.name for path in out.iterdir()} if out.exists() else set()
        of_run = {METRICS, TENSORBOARD, CHECKPOINTS, LOCK_NAME, *CURVES}
        other = {name for name in names - of_run if not name.endswith(TEMPORARY)}
        if other and METRICS not in names:
            raise UserError(
                f"{out} holds {min(other)}, which sd train-student did not write; name another folder with --out"
            )
        if other and not overwrite:
            raise UserError(f"{out} holds {min(other)} and a run that ended early; replace it with --overwrite")
    if overwrite:
        return False
    if finished and not stopped:
        raise UserError(
            f"{out} holds a finished student; measure it with sd eval, name another --out, or replace it with "
            "--overwrite"
        )
    if resume and not stopped:
        raise UserError(f"there is no checkpoint in {out} to resume from; leave out --resume to start a run")
    return stopped


def remove_earlier(out: Path) -> None:
    """Remove the record, figures and export of an earlier student, whose weights will be replaced."""
    # The log marks the folder as that of a run, which may be replaced, if the process is killed before the end.
    (out / METRICS).touch()
    for name in (DISTILLATION, TASK, HEAD, *FIGURES):
        (out / name).unlink(missing_ok=True)
    # An export belongs to the earlier weights.
    if is_export(out / EXPORT_FOLDER):
        shutil.rmtree(out / EXPORT_FOLDER)


def remove_unused(out: Path) -> None:
    """Remove the empty log of a run that ended before its first step, if there is nothing else."""
    names = {path.name for path in out.iterdir()} - {LOCK_NAME}
    if names == {METRICS} and not (out / METRICS).stat().st_size:
        (out / METRICS).unlink()


@dataclass
class TrainingState:
    """Position of a run: together with the weights and the state of the optimizers, all that resuming needs."""

    epoch: int = 0
    """Number of completed epochs."""
    step: int = 0
    step_in_epoch: int = 0
    sentences: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    """Sum of the losses of all sentences since the last validation."""
    validated: int = 0
    """Number of sentences at the last validation."""
    best: float = -math.inf
    """Best score so far; see `figures.quality`."""
    worse: int = 0
    """Number of validations since the best one."""


class Checkpoints:
    """The checkpoints of a run: the newest `keep`, and the best weights.

    A thread writes them while training continues, and they get their names only when they are complete. The OSError of
    a failed write is raised by the next call.
    """

    def __init__(self, out: Path, keep: int) -> None:
        self.folder = out / CHECKPOINTS
        self._best = self.folder / "best.pt"
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writes: list[Future[None]] = []

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy a state (tensors, numbers, strings and containers of them) and write it in the background."""
        self._write(self.folder / f"step-{step:010d}.pt", state)

    def save_best(self, state: dict[str, Any]) -> None:
        """Copy the best weights and their scores, and write them in the background."""
        self._write(self._best, state)

    def wait(self) -> None:
        """Wait until everything is written."""
        while self._writes:
            self._writes.pop(0).result()

    def check(self) -> None:
        """Raise the error of a failed write, without waiting for others."""
        while self._writes and self._writes[0].done():
            self._writes.pop(0).result()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        # Imported here, because the report uses this module without PyTorch.
        import torch

        # Wait for the previous write, so that there are at most two states in memory.
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
        """Read the newest state."""
        if not (steps := self._steps()):
            raise UserError(
                f"there is no checkpoint in {self.folder} to resume from; leave out --resume to start a run"
            )
        return _load(steps[-1])

    def best(self) -> dict[str, Any]:
        """Read the best weights and their scores; see `save_best`."""
        return _load(self._best)

    def remove(self) -> None:
        """Remove all checkpoints, but no other files in their folder."""
        self.remove_temporaries()
        # Best weights last: as long as a step is left, the run can be resumed, and needs them.
        for path in (*self._steps(), self._best):
            path.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def remove_temporaries(self) -> None:
        """Remove temporary files in the run's folder that killed writers have left."""
        for folder in (self.folder, self.folder.parent):
            for path in folder.glob("*" + TEMPORARY):
                # A temporary folder is from an export; the next export removes it.
                if not path.is_dir():
                    path.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, without executing code in it."""
    import torch

    # Exceptions of PyTorch for damaged files.
    damage = (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, LookupError, TypeError, AttributeError)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        return state
    except damage as error:
        raise UserError(
            f"checkpoint {path} is damaged ({first_line(error)}); remove it to resume from the previous one, or start "
            "over with --overwrite"
        ) from error


class Meter:
    """Speed of a run, and the share of its time that it spends waiting for data."""

    def __init__(self, sentences: int) -> None:
        """Start measuring when `sentences` have been processed."""
        self._waited = 0.0
        self._before = (time.monotonic(), sentences)

    def waiting(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """Yield items, counting the time until each one is available as waiting."""
        while True:
            began = time.monotonic()
            item = next(items, None)
            self._waited += time.monotonic() - began
            if item is None:
                return
            yield item

    def rates(self, sentences: int) -> dict[str, float]:
        """Return the speed and the share of waiting since the last call; `sentences` is the total so far."""
        (before, sentences_before), now = self._before, time.monotonic()
        seconds, waited = max(1e-9, now - before), self._waited
        self._before, self._waited = (now, sentences), 0.0
        return {"sentences_per_second": (sentences - sentences_before) / seconds, "wait_share": waited / seconds}


class TrainingLog:
    """Log of a run: `metrics.jsonl`, with a line every few steps and one per validation, and TensorBoard events."""

    def __init__(self, out: Path, *, step: int, validated: int, tensorboard: bool) -> None:
        """Open the log of a run at a step, last validated at `validated`; later lines, of lost steps, are removed."""
        out.mkdir(parents=True, exist_ok=True)
        reached = {"train": step, "validation": validated}
        kept = [line for line in read_metrics(out) if line["step"] <= reached[line["kind"]]] if step else []
        write_atomically(out / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = (out / METRICS).open("a", encoding="utf-8")
        self._events = summary_writer()(str(out / TENSORBOARD), purge_step=step + 1) if tensorboard else None

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Append a line of kind "train" or "validation"."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)
            self._events.flush()

    def close(self) -> None:
        """Close the log files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Read the lines of `metrics.jsonl`; an incomplete last line, left by a kill, is ignored."""
    try:
        lines = (out / METRICS).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    metrics = []
    for number, line in enumerate(lines):
        try:
            metrics.append(json.loads(line))
        except ValueError:
            if number < len(lines) - 1:
                raise UserError(f"{out / METRICS} is damaged in line {number + 1}; remove that line") from None
    return metrics


def summary_writer() -> Any:
    """Import and return TensorBoard's SummaryWriter."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(f"--tensorboard needs the package ({error}): pip install tensorboard") from error
    return SummaryWriter


def draw_curves(out: Path) -> Path:
    """Plot loss, learning rate and held-out scores by step as SVG and PNG; return the path of the SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    metrics = read_metrics(out)
    # A fixed salt makes the SVG reproducible.
    with mpl.rc_context({"svg.hashsalt": "sentence-distill", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        for axes, (kind, name, title) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
            points = [(line["step"], line[name]) for line in metrics if line["kind"] == kind]
            # Markers for validations, which are few, and for a single point; training has thousands of points.
            style = {"marker": "o", "markersize": 4} if kind == "validation" or len(points) == 1 else {}
            axes.plot(*zip(*points, strict=True) if points else ((), ()), linewidth=1.2, color="#2563eb", **style)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel("step", fontsize=9)
            axes.grid(alpha=0.25)
        for name in CURVES:
            figure.savefig(out / name, dpi=120, metadata={"Date": None} if name.endswith(".svg") else {})
    return out / CURVES[0]
