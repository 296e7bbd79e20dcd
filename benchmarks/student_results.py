"""Gathers what `sd eval`, `sd eval --speed` and `sd eval --glue` measured of a student into one dated file.

usage: python benchmarks/student_results.py STUDENT
"""

import argparse
import json
from pathlib import Path
from typing import Any

from record import write_result


def main() -> None:
    """Read eval.json, speed.json and glue.json of the student's folder and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    folder = parser.parse_args().student
    record, intrinsic, speed, glue = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("distillation", "eval", "speed", "glue")
    )
    rows: list[dict[str, Any]] = [{"measure": "intrinsic", **intrinsic}]
    rows += [{"measure": "speed", "model": name, **figures} for name, figures in speed["contenders"].items()]
    for row, tasks in glue["rows"].items():
        for task, results in tasks.items():
            rows += [{"measure": "GLUE dev", "row": row, "task": task, **result} for result in results]
    fingerprint = record["corpus"]["fingerprint"]
    setting = {
        "teacher": record["teacher"],
        "corpus": {"rows": record["corpus"]["rows"], "content": fingerprint["corpus_content"]},
        "student": record["student"],
        "training": record["training"],
        "finetuning": glue["finetuning"],
        "teacher_finetuning": glue["teacher_finetuning"],
    }
    write_result("student", setting, rows)


if __name__ == "__main__":
    main()
