"""Sentences per second of training, compared with a naive loop and with a teacher in the loop.

usage: python benchmarks/train_speed.py SHARDS [--mpnet FOLDER] [--rounds 3]

SHARDS are from MiniLM (sd embed --teacher minilm); training uses the last of several layers.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import write_result

from sentence_distill.pipeline.load import locate_teacher

NAMES = {
    "naive": "naive loop: padded, packed, float32, lists",
    "sd": "sd train-student",
    "sd-fp32": "sd train-student --precision fp32",
    "sd-dense": "the same, dense AdamW on the word embeddings",
    "sd-default-malloc": "the same, freed memory given back",
    "minilm": "teacher in the loop: MiniLM, SentenceTransformer",
    "mpnet": "teacher in the loop: mpnet, SentenceTransformer",
}
_EPOCH = 2_500_000


def main() -> None:
    """Measure in turns, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--mpnet", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    teachers = {"minilm": locate_teacher("minilm").folder, "mpnet": args.mpnet}
    names = [name for name in NAMES if name != "mpnet" or args.mpnet]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(args.rounds):
        for name in names:
            runs[name].append(contend(name, args.shards, teachers))
            print(f"round {number + 1}, {name}: {runs[name][-1]}", flush=True)
    naive = statistics.median(run["rate"] for run in runs["naive"])
    rows = []
    for name, found in runs.items():
        rate = statistics.median(run["rate"] for run in found)
        rows.append(
            {
                "contender": NAMES[name],
                "sentences_per_second": round(rate, 1),
                "ratio_to_naive": round(rate / naive, 2),
                "hours_for_2.5_million": round(_EPOCH / rate / 3600, 2),
                "wait_share": round(statistics.median(run["wait_share"] for run in found), 4),
                "peak_mb": max(run["peak_mb"] for run in found),
                "rates_of_rounds": [round(run["rate"], 1) for run in found],
            }
        )
    path = write_result("train_speed", {"student": "300/300", "batch": 128, "rounds": args.rounds}, rows)
    plot(rows, path.with_suffix(".svg"))


def contend(name: str, shards: Path, teachers: dict[str, Path]) -> dict[str, Any]:
    """Run a contender."""
    kind = "teacher-in-the-loop" if name in teachers else name
    script = Path(__file__).with_name("train_contender.py")
    command = [sys.executable, script, kind, shards, teachers.get(name, Path("none"))]
    done = subprocess.run([*map(str, command)], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot sentences per second."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "sentence-distill"
    figure = Figure(figsize=(9, 0.42 * len(rows) + 0.8), layout="constrained")
    axes = figure.subplots()
    rates = [row["sentences_per_second"] for row in rows]
    colours = ["#1f6f8b" if row["contender"].startswith("sd") else "#b8b8b8" for row in rows]
    bars = axes.barh([row["contender"] for row in rows], rates, color=colours)
    axes.bar_label(bars, [f"{rate:,.0f}, {row['ratio_to_naive']:.1f}x" for rate, row in zip(rates, rows, strict=True)],
                   padding=4, fontsize=9)  # fmt: skip
    axes.set_xlim(right=1.2 * max(rates))
    axes.set_xlabel("sentences a second trained on")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
