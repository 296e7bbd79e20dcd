"""The log of a training run and its curves."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import write_atomically

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_Item = TypeVar("_Item")


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
        """Speed and wait share since this was last asked.

        Args:
            sentences: done so far.
        """
        (before, sentences_before), now = self._before, time.monotonic()
        seconds, waited = max(1e-9, now - before), self._waited
        self._before, self._waited = (now, sentences), 0.0
        return {"sentences_per_second": (sentences - sentences_before) / seconds, "wait_share": waited / seconds}


class TrainingLog:
    """`metrics.jsonl`, one line for every so many steps and one for each validation."""

    def __init__(self, out: Path, *, step: int, validated: int, tensorboard: bool) -> None:
        """Open the log of a run.

        Args:
            out: the student's folder.
            step: where the run stands; lines of what will be done again are removed.
            validated: step of its last validation.
            tensorboard: write TensorBoard's events as well.

        Raises:
            UserError: TensorBoard is not installed.
        """
        path = out / METRICS
        out.mkdir(parents=True, exist_ok=True)
        reached = {"train": step, "validation": validated}
        kept = [line for line in read_metrics(out) if line["step"] <= reached[line["kind"]]] if step else []
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = path.open("a", encoding="utf-8")
        self._events = summary_writer()(str(out / TENSORBOARD), purge_step=step + 1) if tensorboard else None

    def write(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Add a line.

        Args:
            kind: "train" or "validation".
            step: steps done.
            values: what was measured.
        """
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
    """The lines of a run's `metrics.jsonl`; a last line that a kill cut short is left out."""
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
    """TensorBoard's class that writes events.

    Raises:
        UserError: it is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(f"--tensorboard needs its package ({error}): pip install tensorboard") from error
    return SummaryWriter


# The curves of a training run, drawn from its log.

CURVES = ("curves.svg", "curves.png")
_PANELS = (
    ("train", "loss", "loss of a batch"),
    ("train", "learning_rate", "learning rate"),
    ("validation", "cosine", "held-out cosine"),
    ("validation", "rank_agreement", "held-out rank agreement"),
)


def draw_curves(out: Path) -> Path:
    """Draw loss, learning rate and held-out scores over the steps; return the SVG, a PNG is beside it.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    metrics = read_metrics(out)
    # The same log gives the same file.
    with mpl.rc_context({"svg.hashsalt": "sentence-distill", "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 5.5), layout="constrained")
        for axes, (kind, name, title) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
            points = [(line["step"], line[name]) for line in metrics if line["kind"] == kind]
            # A validation is a point of its own; training has thousands, and a line.
            style = {"marker": "o", "markersize": 4} if kind == "validation" else {}
            axes.plot(*zip(*points, strict=True) if points else ((), ()), linewidth=1.2, color="#2563eb", **style)
            axes.set_title(title, fontsize=10, loc="left")
            axes.set_xlabel("step", fontsize=9)
            axes.grid(alpha=0.25)
        for name in CURVES:
            figure.savefig(out / name, dpi=120, metadata={"Date": None} if name.endswith(".svg") else {})
    return out / CURVES[0]
