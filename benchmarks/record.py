"""Dated result files of benchmarks, with versions and hardware."""

import json
import os
import platform
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sentence_distill.student.figures import Environment

RESULTS = Path(__file__).parent / "results"
# Files that contenders derive from a model, and keep in the folder of a run for the next rounds.
_MADE = ("model2vec", "onnx", "onnx-int8", "openvino", "openvino-int8", "openvino-int8-model")


def forget_made(workdir: Path) -> None:
    """Remove files of an earlier run, which may have had other weights, or may have been stopped."""
    for name in _MADE:
        path = workdir / name
        if path.is_symlink():
            path.unlink()
        shutil.rmtree(path, ignore_errors=True)


def _script() -> str:
    """Return the name of the running script, relative to benchmarks/."""
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(RESULTS.parent)) if path.is_relative_to(RESULTS.parent) else path.name


def write_result(name: str, setting: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Print `rows`, and write them with their setting to results/NAME-DATE.json."""
    RESULTS.mkdir(exist_ok=True)
    # With avx2_only.c, programs don't use all instructions that the processor reports.
    hidden = "avx2_only" in os.environ.get("LD_PRELOAD", "")
    path = RESULTS / f"{name}{'-avx2' if hidden else ''}-{datetime.now(UTC):%Y-%m-%d}.json"
    here = Environment.here()
    result = {
        "benchmark": name,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": "python benchmarks/" + " ".join([_script(), *(Path(a).name for a in sys.argv[1:])]),
        "setting": setting,
        "hardware": {
            "cpu": here.cpu,
            "instructions": [found for found in here.instructions if found == "avx2" or not hidden],
            **({"hidden": "AVX-512, AMX and VNNI, by avx2_only.c"} if hidden else {}),
            "threads": torch.get_num_threads(),
            "system": platform.system(),
        },
        "versions": {"python": platform.python_version(), **here.versions},
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(path)
    return path
