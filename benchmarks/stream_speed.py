"""Rows per second of the training stream alone, on one core, compared with other streaming libraries.

usage: python benchmarks/stream_speed.py SHARDS WORKDIR --peer-python PYTHON [--rounds 3]

SHARDS hold two layers (768 x float16 for MiniLM: sd embed --teacher minilm --layers 3,6); a copy with only the last one
(384 x float16) is made in WORKDIR. PYTHON is that of an environment with stream-peers-requirements.txt.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from record import write_result

from sentence_distill.pipeline.manifest import require_manifest
from sentence_distill.pipeline.records import write_record
from sentence_distill.pipeline.shards import Shard, make_table, read_sidecar, write_shard

CONTENDERS = ("sd", "datasets", "datasets-shuffled", "litdata", "mosaicml-streaming")
NAMES = {
    "sd": "sd train-student's stream, shuffled",
    "datasets": "datasets, in order",
    "datasets-shuffled": "datasets, shuffled",
    "litdata": "litdata, shuffled",
    "mosaicml-streaming": "mosaicml-streaming, shuffled",
}


def main() -> None:
    """Convert once, measure in turns, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    # An earlier run may have converted other shards.
    for folder in (*args.workdir.glob("litdata-*"), *args.workdir.glob("mosaicml-*"), args.workdir / "one-layer"):
        shutil.rmtree(folder, ignore_errors=True)
    results = []
    for shards in (args.shards, one_layer(args.shards, args.workdir / "one-layer")):
        for name in ("litdata", "mosaicml-streaming"):
            contend(name, shards, args, "--convert")
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
        for _ in range(args.rounds):
            for name in CONTENDERS:
                runs[name].append(contend(name, shards, args))
                print(shards.name, name, round(runs[name][-1]["rows"] / runs[name][-1]["seconds"]), flush=True)
        dim = json.loads((shards / "manifest.json").read_text())["fingerprint"]["dim"]
        results += rows_of(runs, dim)
    path = write_result("stream_speed", {"rounds": args.rounds, "cores": 1, "batch": 128, "dtype": "float16"}, results)
    plot(results, path.with_suffix(".svg"))


def one_layer(shards: Path, folder: Path) -> Path:
    """Copy shards with only the last of their layers."""
    folder.mkdir()
    manifest = require_manifest(shards)
    width = manifest.fingerprint.layer_dim
    fingerprint = replace(manifest.fingerprint, dim=width, layers=manifest.fingerprint.layers[-1:])
    entries = []
    for entry in manifest.shards:
        shard, sidecar = Shard.open(shards / entry.shard), read_sidecar(shards / entry.shard)
        assert sidecar is not None
        table = make_table(shard.ids, shard.corpora, shard.tokens, shard.embeddings[:, -width:], None)
        written = write_shard(
            folder / entry.shard,
            table,
            source=sidecar.source,
            counts=sidecar.counts,
            rejected_xxh3_128=sidecar.rejected_xxh3_128,
            fingerprint=fingerprint,
        )
        entries.append(written.entry)
    for name in manifest.files:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes((shards / name).read_bytes())
    write_record(folder / "manifest.json", replace(manifest, shards=entries))
    return folder


def contend(name: str, shards: Path, args: argparse.Namespace, *options: str) -> dict[str, Any]:
    """Run a contender."""
    python = sys.executable if name == "sd" else args.peer_python
    script = Path(__file__).with_name("stream_contender.py")
    done = subprocess.run(
        [python, script, name, shards.resolve(), args.workdir.resolve(), *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    return {} if options else json.loads(done.stdout.splitlines()[-1])


def rows_of(runs: dict[str, list[dict[str, Any]]], dim: int) -> list[dict[str, Any]]:
    """Return the medians of each contender, with its ratio to the fastest peer."""
    speeds = {name: statistics.median(run["rows"] / run["seconds"] for run in found) for name, found in runs.items()}
    fastest = max(speed for name, speed in speeds.items() if name != "sd")
    return [
        {
            "contender": NAMES[name],
            "dim": dim,
            "rows_per_second": round(speeds[name]),
            "ratio_to_fastest_peer": round(speeds[name] / fastest, 2),
            "rows": found[0]["rows"],
            "seconds_of_rounds": [round(run["seconds"], 2) for run in found],
            "cpu_seconds": round(statistics.median(run["cpu_seconds"] for run in found), 2),
            "peak_mb": max(run["peak_mb"] for run in found),
            "version": found[0]["version"],
        }
        for name, found in runs.items()
    ]


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot rows per second on a logarithmic axis, with a panel for each width."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "sentence-distill"
    figure = Figure(figsize=(10, 2.6), layout="constrained")
    dims = sorted({row["dim"] for row in rows})
    for axes, dim in zip(figure.subplots(1, len(dims), sharey=True), dims, strict=True):
        chosen = [row for row in rows if row["dim"] == dim]
        colours = ["#1f6f8b" if row["contender"].startswith("sd") else "#b8b8b8" for row in chosen]
        bars = axes.barh(
            [row["contender"] for row in chosen], [row["rows_per_second"] for row in chosen], color=colours
        )
        axes.bar_label(bars, [f"{row['rows_per_second']:,}" for row in chosen], padding=3, fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(right=12 * max(row["rows_per_second"] for row in chosen))
        axes.set_title(f"{dim} x float16, one core, rows a second", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].invert_yaxis()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
