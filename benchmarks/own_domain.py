"""Collect the results of own_domain.sh in a dated file.

usage: python benchmarks/own_domain.py WORKDIR
"""

import argparse
import json
from pathlib import Path

from record import write_result

from sentence_distill.student.run_folder import read_metrics

_HELD_OUT = ("cosine", "rank_agreement", "recall_at_10", "recall_at_10_among_100")


def main() -> None:
    """Collect and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    options = parser.parse_args()
    rows = []
    for name, figures in json.loads((options.workdir / "eval.json").read_text(encoding="utf-8"))["models"].items():
        row = {"model": name, "sts_spearman": round(figures["sts_spearman"], 4)}
        if "held_out" in figures:
            row |= {key: round(figures["held_out"][key], 4) for key in _HELD_OUT}
        record = options.workdir / name / "distillation.json"
        if record.exists():
            distillation = json.loads(record.read_text(encoding="utf-8"))
            training, last = distillation["training"], distillation["history"][-1]
            row |= {"init": training["init"], "share": training["train_fraction"], "epochs": round(last["epoch"], 1)}
            # Seconds of training, up to the last step in the log.
            row["seconds"] = round(max(line.get("seconds", 0) for line in read_metrics(record.parent)), 1)
        rows.append(row)
    write_result("own_domain", {"text": "questions of QQP's training set"}, rows)


if __name__ == "__main__":
    main()
