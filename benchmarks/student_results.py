"""Gathers what `sd eval` and `sd eval --glue` measured of a student into one dated file.

usage: python benchmarks/student_results.py STUDENT
"""

import argparse
import json
from pathlib import Path
from typing import Any

from record import write_result


def main() -> None:
    """Read eval.json and glue.json of the student's folder and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("student", type=Path)
    folder = parser.parse_args().student
    record, intrinsic, glue = (
        json.loads((folder / name).read_text()) for name in ("distillation.json", "eval.json", "glue.json")
    )
    rows: list[dict[str, Any]] = [{"measure": "intrinsic", **intrinsic}]
    for row, tasks in glue["rows"].items():
        rows += [{"measure": "GLUE dev", "row": row, **result} for result in tasks.values()]
    fingerprint = record["corpus"]["fingerprint"]
    setting = {
        "teacher": record["teacher"],
        "corpus": {"rows": record["corpus"]["rows"], "content": fingerprint["corpus_content"]},
        "student": record["student"],
        "training": record["training"],
        "finetuning": glue["finetuning"],
    }
    write_result("student", setting, rows)


if __name__ == "__main__":
    main()
