"""Collect the figures of `sd eval`, `sd eval --speed` and `sd eval --glue` on a student in one dated file.

usage: python benchmarks/student_results.py STUDENT [--name student]

Figures that were not measured are left out.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from record import write_result


def main() -> None:
    """Read eval.json, speed.json and glue.json in the student's folder, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    parser.add_argument("--name", default="student", help="Name of the result.")
    options = parser.parse_args()
    files = {path.stem: json.loads(path.read_text()) for path in options.student.glob("*.json")}
    record, glue = files["distillation"], files.get("glue", {})
    # Without the example sentences from the corpus.
    rows: list[dict[str, Any]] = [
        {"measure": "intrinsic", "model": name, **{key: figures[key] for key in figures if key != "examples"}}
        for name, figures in files.get("eval", {}).get("models", {}).items()
    ]
    contenders = files.get("speed", {}).get("contenders", {})
    rows += [{"measure": "speed", "model": name, **figures} for name, figures in contenders.items()]
    for row, tasks in glue.get("rows", {}).items():
        for task, results in tasks.items():
            rows += [{"measure": "GLUE dev", "row": row, "task": task, **result} for result in results]
    fingerprint = record["corpus"]["fingerprint"]
    setting = {
        "teacher": record["teacher"],
        "corpus": {"rows": record["corpus"]["rows"], "content": fingerprint["corpus_content"]},
        "student": record["student"],
        "training": record["training"],
        "metrics": record["metrics"],
        **{name: glue[name] for name in ("finetuning", "teacher_finetuning") if name in glue},
    }
    write_result(options.name, setting, rows)


if __name__ == "__main__":
    main()
