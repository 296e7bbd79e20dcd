"""Collect the results of more_text.sh in a dated file.

usage: python benchmarks/headline/more_text.py WORKDIR PART
"""

import argparse
from pathlib import Path

from record import write_result
from table import FIDELITY, read


def main() -> None:
    """Collect and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("part", type=Path)
    options = parser.parse_args()
    rows = []
    for file in sorted(options.workdir.glob("part-*.json"), reverse=True):
        size = file.stem.removeprefix("part-")
        # In the order of sd eval's arguments: trained on all text, trained on the part; then their teacher.
        *models, teacher = read(file)["models"].values()
        for folder, figures in zip((options.workdir, options.part), models, strict=True):
            record = read(folder / size / "distillation.json")
            rows.append(
                {
                    "size": size,
                    "sentences": record["corpus"]["rows"],
                    "held_out": figures["held_out"]["rows"],
                    "epochs": record["training"]["epochs"],
                    "max_steps": record["training"]["max_steps"],
                    **{name: round(figures["held_out"][name], 4) for name in FIDELITY},
                    "sts_spearman": round(figures["sts_spearman"], 4),
                    "teacher_sts_spearman": round(teacher["sts_spearman"], 4),
                }
            )
    write_result("more_text", {"held out": "sentences of the part"}, rows)


if __name__ == "__main__":
    main()
