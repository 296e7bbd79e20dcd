"""Collect the results of vectors_first.sh in a dated file.

usage: python benchmarks/headline/vectors_first.py WORKDIR TASK
"""

import argparse
from pathlib import Path

from record import write_result
from table import read


def main() -> None:
    """Collect and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("task")
    options = parser.parse_args()
    place = options.workdir
    logits, vectors = (read(place / name / "manifest.json") for name in ("logits", "vectors"))
    teacher = read(place / "teacher" / "config.json")
    setting = {
        "task": f"{options.task}, dev",
        "logits": logits["totals"],
        "vectors": vectors["totals"] | {"layers": vectors["fingerprint"]["layers"]},
        "teacher": {key: teacher[key] for key in ("model_type", "num_hidden_layers", "hidden_size")},
    }
    rows = []
    for folder in sorted(place.glob("student*")):
        task, distillation = read(folder / "task.json"), read(folder / "distillation.json")
        row = {
            "model": folder.name,
            **{name: round(100 * value, 1) for name, value in task["scores"]["dev"].items()},
            **{key: task[key] for key in ("learning_rate", "step", "seconds")},
            "vectors_of": {key: distillation["teacher"][key] for key in ("teacher", "layers")},
            "start": distillation.get("start", {}).get("student"),
        }
        rows.append(row)
    write_result(f"vectors_first_{options.task}", setting, rows)


if __name__ == "__main__":
    main()
