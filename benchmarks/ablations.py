"""Ablations of the training recipe: fidelity, STS-B and two GLUE tasks, with one choice changed at a time.

usage: python benchmarks/ablations.py SHARDS GLUE_DIR WORKDIR [--steps 800] [--only NAME[;NAME…]]

SHARDS hold layers 3 and 6 of MiniLM (sd embed --teacher minilm --layers 3,6). Variants that are done are skipped; a run
with all of them writes the dated result and its plot.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from record import write_result

TASKS = "MRPC,CoLA"
# Variants that change neither loss nor regularization are measured by fidelity and STS-B only.
WITHOUT_GLUE = ("float32", "moving average", "embedding rate", "word embeddings", "size")
# Options that variants change: the current defaults, for the last layer.
BASE = ("--target-layers", "6")
VARIANTS: dict[str, tuple[str, ...]] = {
    "baseline": BASE,
    "baseline, seed 1": (*BASE, "--seed", "1"),
    "layers 3 and 6": (*BASE, "--target-layers", "3,6"),
    "MSE": (*BASE, "--cosine", "0", "--mse", "100"),
    "relational 1": (*BASE, "--relational", "1"),
    "relational 0.1": (*BASE, "--relational", "0.1"),
    "token dropout 0.1": (*BASE, "--token-dropout", "0.1"),
    "embedding dropout 0.1": (*BASE, "--embedding-dropout", "0.1"),
    "moving average of weights": BASE,
    "float32": (*BASE, "--precision", "fp32"),
    "embedding rate 1": (*BASE, "--embedding-rate", "1"),
    "embedding rate 4": (*BASE, "--embedding-rate", "4"),
    "word embeddings: SparseAdam, rate 1": (*BASE, "--embedding-rate", "1"),
    "word embeddings: SparseAdam, rate 4": (*BASE, "--embedding-rate", "4"),
    "word embeddings: dense AdamW, rate 1": BASE,
    "size tiny": (*BASE, "--size", "tiny"),
    "size small": (*BASE, "--size", "small"),
    "size large": (*BASE, "--size", "large"),
}


def main() -> None:
    """Train and measure the variants that are missing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("glue", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--only", default=None)
    parser.add_argument("--train", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        _train(args.train, args.shards, args.work / _folder(args.train), args.steps)
        return
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.only.split(";") if args.only else VARIANTS:
        if not _done(name, args.work / _folder(name), args.steps):
            # Each variant runs in its own process, so that it can't influence the next one.
            subprocess.run([sys.executable, __file__, *map(str, (args.shards, args.glue, args.work)), "--train", name,
                            "--steps", str(args.steps)], check=True)  # fmt: skip
            _measure(name, args.work / _folder(name), args.shards, args.glue)
    rows = [
        _row(name, args.work / _folder(name)) for name in VARIANTS if _done(name, args.work / _folder(name), args.steps)
    ]
    manifest = json.loads((args.shards / "manifest.json").read_text())
    setting = {"steps": args.steps, "batch": 128, "sentences in the shards": manifest["totals"]["rows"], "tasks": TASKS}
    path = write_result("ablations", setting, rows)
    _plot(rows, path.with_suffix(".svg"))


def _glue(name: str) -> bool:
    return not name.startswith(WITHOUT_GLUE)


def _done(name: str, student: Path, steps: int) -> bool:
    if not (student / "eval.json").exists():
        return False
    if _glue(name):
        if not (student / "glue.json").exists():
            return False
        if len(json.loads((student / "glue.json").read_text())["rows"]["distilled"]) < len(TASKS.split(",")):
            return False
    return bool(json.loads((student / "distillation.json").read_text())["training"]["max_steps"] == steps)


def _folder(name: str) -> str:
    return "".join(letter for letter in name.replace(" ", "-") if letter not in ",:")


def _train(name: str, shards: Path, out: Path, steps: int) -> None:
    from sentence_distill.cli.main import main as sd
    from sentence_distill.student import step as optimizer
    from sentence_distill.student import train

    if "dense" in name:
        train.Optimizer = DenseOptimizer
    if "SparseAdam" in name:
        optimizer.RowAdam = SparseAdam
    if name.startswith("moving"):
        train.Trainer = _averaged(train.Trainer)
    sys.argv = ["sd", "train-student", "--shards", str(shards), "--out", str(out), "--overwrite",
                "--max-steps", str(steps), *VARIANTS[name]]  # fmt: skip
    sd()


def _measure(name: str, student: Path, shards: Path, glue: Path) -> None:
    command = [sys.executable, "-m", "sentence_distill.cli", "eval", "--student", student, "--glue-dir", glue]
    subprocess.run([*map(str, command), "--shards", str(shards)], check=True)
    if _glue(name):
        subprocess.run([*map(str, command), "--glue", "--tasks", TASKS], check=True)


def _row(name: str, student: Path) -> dict[str, Any]:
    figures = json.loads((student / "eval.json").read_text())
    intrinsic = figures["models"][figures["student"]]
    found = json.loads((student / "glue.json").read_text())["rows"]["distilled"] if _glue(name) else {}
    scores = {task: results[0]["scores"]["dev"] for task, results in found.items()}
    lines = [json.loads(line) for line in (student / "metrics.jsonl").read_text().splitlines()]
    speeds = sorted(line["sentences_per_second"] for line in lines if line["kind"] == "train")
    return {
        "variant": name,
        "cosine": round(intrinsic["held_out"]["cosine"], 4),
        "rank_agreement": round(intrinsic["held_out"]["rank_agreement"], 4),
        "sts_b_spearman": round(intrinsic["sts_spearman"], 4),
        **{
            f"{task} {metric}": round(100 * value, 1)
            for task, found in scores.items()
            for metric, value in found.items()
        },
        "parameters": intrinsic["size"]["parameters"],
        "megabytes": round(intrinsic["size"]["megabytes"], 1),
        "trained_per_second": round(speeds[len(speeds) // 2]),
        "encoded_per_second": round(intrinsic["sentences_per_second"]),
    }


class DenseOptimizer:
    """AdamW over all weights, including the whole table of word embeddings, as in a naive loop."""

    def __init__(self, encoder: Any, config: Any) -> None:
        self._table = encoder.embedding.weight
        self.dense = [weight for weight in encoder.parameters() if weight is not self._table]
        self._clip = config.clip
        self._adamw = torch.optim.AdamW(encoder.parameters(), lr=1.0, weight_decay=config.weight_decay, fused=True)
        self.rate = 0.0

    def step(self, rate: float, words: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """See `sentence_distill.student.step.Optimizer`."""
        self.rate = self._adamw.param_groups[0]["lr"] = rate
        norm = torch.nn.utils.clip_grad_norm_([*self.dense, rows], self._clip)
        self._table.grad = torch.zeros_like(self._table).index_copy_(0, words, rows.grad)
        self._adamw.step()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer."""
        return self._adamw.state_dict()


class SparseAdam:
    """PyTorch's SparseAdam in place of RowAdam."""

    def __init__(self, table: torch.Tensor) -> None:
        self._table = torch.nn.Parameter(table)
        self._adam = torch.optim.SparseAdam([self._table])

    def step(self, rows: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
        """See `sentence_distill.student.step.RowAdam`."""
        self._adam.param_groups[0]["lr"] = rate
        self._table.grad = torch.sparse_coo_tensor(
            rows[None], gradient, self._table.shape, is_coalesced=True, check_invariants=False
        )
        self._adam.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer."""
        return self._adam.state_dict()


def _averaged(base: Any) -> Any:
    """Trainer that validates and saves an exponential moving average of its weights."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    class Averaged(base):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self._average = AveragedModel(self.encoder, multi_avg_fn=get_ema_multi_avg_fn(0.995))

        def _step(self, batch: Any) -> Any:
            result = super()._step(batch)
            self._average.update_parameters(self.encoder)
            return result

        def _validate(self, log: Any) -> None:
            current = {name: weight.clone() for name, weight in self.encoder.state_dict().items()}
            self.encoder.load_state_dict(self._average.module.state_dict())
            super()._validate(log)
            self.encoder.load_state_dict(current)

    return Averaged


def _plot(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "sentence-distill"
    measures = [key for key in rows[0] if key in ("cosine", "sts_b_spearman") or " " in key][:5]
    figure = Figure(figsize=(3 * len(measures), 0.32 * len(rows) + 1), layout="constrained")
    for axes, measure in zip(figure.subplots(1, len(measures), sharey=True), measures, strict=True):
        values = [row.get(measure, float("nan")) for row in rows]
        axes.axvline(values[0], color="#94a3b8", linewidth=1)
        axes.plot(values, range(len(rows)), "o", color="#2563eb", markersize=5)
        axes.set_yticks(range(len(rows)), [row["variant"] for row in rows], fontsize=8)
        axes.set_title(measure.replace("_", " "), fontsize=9)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="y", alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
