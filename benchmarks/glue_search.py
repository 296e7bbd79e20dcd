"""Search for fine-tuning options on two small tasks, for a distilled student and for a BiLSTM from scratch.

The defaults of `sd eval --glue` are the same for every row, and were chosen like this. One seed, best step on dev.

usage: python benchmarks/glue_search.py STUDENT GLUE_DIR WORK
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from record import write_result

TASKS = "CoLA,MRPC"
ROWS = "scratch-words,distilled"
# Learning rate of the head, and that of the encoder as a multiple of it.
GRID = (("3e-4", "1"), ("1e-3", "1"), ("3e-3", "1"), ("1e-3", "0.3"))


def main() -> None:
    """Complete the missing models in WORK, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("glue", type=Path)
    parser.add_argument("work", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = [_row(args.student, args.glue, args.work, rate, encoder) for rate, encoder in GRID]
    write_result("glue_search", {"tasks": TASKS, "rows": ROWS, "seed": 0}, rows)


def _row(student: Path, glue: Path, work: Path, rate: str, encoder: str) -> dict[str, Any]:
    out = work / f"{rate}-{encoder}.json"
    command = [sys.executable, "-m", "sentence_distill.cli", "eval", "--glue", student, "--glue-dir", glue]
    command += ["--tasks", TASKS, "--rows", ROWS, "--learning-rate", rate, "--encoder-rate", encoder, "--json", out]
    # Models in the file are skipped.
    subprocess.run(list(map(str, command)), check=True)
    found = json.loads(out.read_text())["rows"]
    scores = {
        f"{row} {task} {metric}": round(100 * value, 1)
        for row, tasks in found.items()
        for task, results in tasks.items()
        for metric, value in results[0]["scores"]["dev"].items()
    }
    return {"learning_rate": rate, "encoder_rate": encoder, **scores}


if __name__ == "__main__":
    main()
