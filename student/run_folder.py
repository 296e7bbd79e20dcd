"""The folder of a training run: what may be in it when it begins, its checkpoints, its log and curves."""

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
    """Decide whether a training resumes the run in its folder or begins one; refuse a folder of something else."""
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
    # An export belongs to its student's weights.
    if is_export(out / EXPORT_FOLDER):
        shutil.rmtree(out / EXPORT_FOLDER)


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
    step_in_epoch: int = 0
    sentences: int = 0
    seconds: float = 0.0
    loss: float = 0.0
    """Sum of the losses of all sentences since the last validation."""
    validated: int = 0
    """Sentences done at the last validation."""
    best: float = -math.inf
    """Highest held-out cosine so far, the mean over corpora."""
    worse: int = 0
    """Validations since then."""


class Checkpoints:
    """The checkpoints of one run: the newest `keep`, and the best weights.

    A thread writes each while training continues; it has its name only when it is complete. A write that fails raises
    its OSError from the next call.
    """

    def __init__(self, out: Path, keep: int) -> None:
        self.folder = out / CHECKPOINTS
        self._best = self.folder / "best.pt"
        self._keep = keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writes: list[Future[None]] = []

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Copy a state (tensors, numbers, strings and containers of them) and let it be written."""
        self._write(self.folder / f"step-{step:010d}.pt", state)

    def save_best(self, state: dict[str, Any]) -> None:
        """Copy the best weights and what is known of them, and let that be written."""
        self._write(self._best, state)

    def wait(self) -> None:
        """Return when all is written."""
        while self._writes:
            self._writes.pop(0).result()

    def check(self) -> None:
        """Raise the error of a write that failed; wait for none."""
        while self._writes and self._writes[0].done():
            self._writes.pop(0).result()

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        # The report reads a run's log, and needs no PyTorch.
        import torch

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
        """Read the newest state."""
        if not (steps := self._steps()):
            raise UserError(f"there is no checkpoint in {self.folder} to resume; leave --resume out to begin")
        return _load(steps[-1])

    def best(self) -> dict[str, Any]:
        """Read what `save_best` saved."""
        return _load(self._best)

    def remove(self) -> None:
        """Remove all checkpoints; what else lies in their folder stays."""
        self.remove_temporaries()
        # A run can be resumed as long as any of its steps is there, and needs its best weights for that.
        for path in (*self._steps(), self._best):
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


def _load(path: Path) -> dict[str, Any]:
    """Read a checkpoint; no code in it is run."""
    import torch

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


class Meter:
    """Speed of a run, and the share of its time in which it waited for data."""

    def __init__(self, sentences: int) -> None:
        """Begin at so many sentences done."""
        self._waited = 0.0
        self._before = (time.monotonic(), sentences)

    def waiting(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """Pass items on; the time until each is there counts as waiting."""
        while True:
            began = time.monotonic()
            item = next(items, None)
            self._waited += time.monotonic() - began
            if item is None:
                return
            yield item

    def rates(self, sentences: int) -> dict[str, float]:
        """Return speed and wait share since this was last asked; `sentences` are done so far."""
        (before, sentences_before), now = self._before, time.monotonic()
        seconds, waited = max(1e-9, now - before), self._waited
        self._before, self._waited = (now, sentences), 0.0
        return {"sentences_per_second": (sentences - sentences_before) / seconds, "wait_share": waited / seconds}


class TrainingLog:
    """`metrics.jsonl`, one line for every so many steps and one for each validation, and TensorBoard's events."""

    def __init__(self, out: Path, *, step: int, validated: int, tensorboard: bool) -> None:
        """Open the log of a run at a step, validated last at another; lines of what will be done again are removed."""
        out.mkdir(parents=True, exist_ok=True)
        reached = {"train": step, "validation": validated}
        kept = [line for line in read_metrics(out) if line["step"] <= reached[line["kind"]]] if step else []
        write_atomically(out / METRICS, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = (out / METRICS).open("a", encoding="utf-8")
        self._events = summary_writer()(str(out / TENSORBOARD), purge_step=step + 1) if tensorboard else None

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Add a line of a kind, "train" or "validation"."""
        self._file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{kind}/{name}", value, step)
            self._events.flush()

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._events is not None:
            self._events.close()


def read_metrics(out: Path) -> list[dict[str, Any]]:
    """Read the lines of a run's `metrics.jsonl`; a last line that a kill cut short is left out."""
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
    """Return TensorBoard's class that writes events."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(f"--tensorboard needs its package ({error}): pip install tensorboard") from error
    return SummaryWriter


def draw_curves(out: Path) -> Path:
    """Draw loss, learning rate and held-out scores over the steps as SVG and PNG; return the SVG."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    metrics = read_metrics(out)
    # The same log gives the same file.
    with mpl.rc_context({"svg.hashsalt": "sentence-distill", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        for axes, (kind, name, title) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
            points = [(line["step"], line[name]) for line in metrics if line["kind"] == kind]
            # A validation is a point of its own; training has thousands, and a line, which one point would not show.
            style = {"marker": "o", "markersize": 4} if kind == "validation" or len(points) == 1 else {}
            axes.plot(*zip(*points, strict=True) if points else ((), ()), linewidth=1.2, color="#2563eb", **style)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel("step", fontsize=9)
            axes.grid(alpha=0.25)
        for name in CURVES:
            figure.savefig(out / name, dpi=120, metadata={"Date": None} if name.endswith(".svg") else {})
    return out / CURVES[0]
