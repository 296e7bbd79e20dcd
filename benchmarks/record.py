"""Dated result files of benchmarks, with versions and hardware."""

import json
import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sentence_distill.student.environment import cpu, versions

RESULTS = Path(__file__).parent / "results"


def _script() -> str:
    """The script that runs, as it lies in benchmarks/."""
    path = Path(sys.argv[0]).resolve()
    return str(path.relative_to(RESULTS.parent)) if path.is_relative_to(RESULTS.parent) else path.name


def write_result(name: str, setting: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Print `rows` and write them with their setting to results/NAME-DATE.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{datetime.now(UTC):%Y-%m-%d}.json"
    result = {
        "benchmark": name,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "command": "python benchmarks/" + " ".join([_script(), *(Path(a).name for a in sys.argv[1:])]),
        "setting": setting,
        "hardware": {"cpu": cpu(), "threads": torch.get_num_threads(), "system": platform.system()},
        "versions": {"python": platform.python_version(), **versions()},
        "rows": rows,
    }
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    print(path)
    return path
