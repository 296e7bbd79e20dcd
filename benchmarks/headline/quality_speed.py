"""Draw quality against speed, README's chart, from a result of encode_speed.py.

usage: python benchmarks/headline/quality_speed.py RESULT_JSON OUT_SVG
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

# What a user runs, by contender, with where its name stands from its point.
NAMES = {
    "Student.encode": ("{student}", (0, 10), "center"),
    "model2vec of the teacher, StaticModel.encode": ("model2vec of the teacher", (45, -22), "right"),
    "teacher, sd embed's, float32": ("the teacher by sd embed", (0, -22), "left"),
    "teacher, SentenceTransformer as it comes": (
        "the teacher by sentence-transformers",
        (0, 12),
        "left",
    ),
}


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    # The same bytes for the same result.
    plt.rcParams.update({"svg.hashsalt": "sentence-distill", "font.size": 13, "svg.fonttype": "none"})
    figure, axes = plt.subplots(figsize=(7.2, 4.2))
    for row in result["rows"]:
        if row["contender"] not in NAMES or "sts_spearman" not in row:
            continue
        name, offset, side = NAMES[row["contender"]]
        of_student = row["contender"] == "Student.encode"
        place = row["sentences_per_second"], row["sts_spearman"]
        axes.scatter(*place, s=130 if of_student else 70, color="#d1495b" if of_student else "#30638e", zorder=3)
        name = name.format(student=row.get("student", ""))
        weight = "bold" if of_student else "normal"
        axes.annotate(name, place, offset, textcoords="offset points", ha=side, weight=weight)
    axes.set_xscale("log")
    axes.margins(x=0.15, y=0.3)
    axes.set_xlabel("sentences per second, two cores (log scale)")
    axes.set_ylabel("STS-B dev, Spearman")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(options.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
