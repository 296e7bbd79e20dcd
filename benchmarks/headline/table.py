"""Collect the results of run.sh in a dated file, plots, and tables in benchmarks/students.md.

usage: python benchmarks/headline/table.py WORKDIR

Figures that were not measured stay empty.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from record import write_result

from sentence_distill.student.config import ROWS

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- made by benchmarks/headline/table.py -->", "<!-- end -->"
SIZES = ("tiny", "small", "base", "large")
# Main metric of each task, on its dev set.
TASKS = {"SST-2": "accuracy", "MRPC": "f1", "RTE": "accuracy", "CoLA": "matthews", "STS-B": "spearman"}
RECALL = ("recall_at_10", "recall_at_10_among_100")
FIDELITY = ("cosine", "rank_agreement", *RECALL)
COLUMNS = (
    *("", "sentences seen, millions", "parameters, millions", "int8 export, MB"),
    *("sentences/s", "ratio", "a second of processor time", "p50, ms"),
    *("cosine", "recall@10", "10 in 100", "STS-B dev"),
)
GLUE_ROWS = ("scratch", "scratch-words", "frozen", "distilled")
_OF_STUDENTS = {"Student.encode": "int8", "Student.encode, bfloat16 in PyTorch": "bf16"}
# Figures of an export, measured with the others on the same sentences.
_QUALITY = (*RECALL, "sts_spearman")
_MEASURED = ("sentences_per_second", "ratio", "sentences_per_cpu_second", "p50_ms", "p99_ms", *_QUALITY)


def read_measured(folder: Path) -> dict[str, Any]:
    """Return the student's figures in its eval.json; empty if there are none."""
    figures = read(folder / "eval.json")
    return figures["models"][figures["student"]] if figures.get("student") else {}


def read(path: Path) -> dict[str, Any]:
    """Read a file of figures; empty if it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def shape(student: dict[str, Any]) -> str:
    """Format the width of word embeddings and the LSTM units of a student."""
    return f"{student['embedding_dim']} / {student['hidden']}"


def size_row(folder: Path, speed: dict[str, Any]) -> dict[str, Any]:
    """Return all figures of the student in a folder."""
    record, measured = read(folder / "distillation.json"), read_measured(folder)
    student, training, rows = record["student"], record["training"], record["corpus"]["rows"]
    row: dict[str, Any] = {
        "kind": "student",
        "model": folder.name,
        "shape": shape(student),
        "sentences": rows,
        "epochs": training["epochs"],
        "max_steps": training["max_steps"],
        "sentences_seen": round(record["history"][-1]["epoch"] * rows * (1 - training["held_out"])),
        "parameters": measured["size"]["parameters"],
        "megabytes": round(measured["size"]["megabytes"], 1),
        "export_megabytes": round(sum(file.stat().st_size for file in _exported(folder)) / 1e6, 1) or None,
        **{name: round(measured["held_out"][name], 4) for name in FIDELITY},
        "sts_spearman": round(measured["sts_spearman"], 4),
    }
    for found in speed.get("rows", []):
        if found["model"] == folder.name:
            kind = _OF_STUDENTS[found["contender"]]
            row |= {f"{kind}_{name}": found[name] for name in _MEASURED if name in found}
    return row


def _exported(folder: Path) -> list[Path]:
    return [file for name in ("model.onnx", "tokenizer.json") if (file := folder / "onnx" / name).exists()]


def glue_rows(folder: Path) -> list[dict[str, Any]]:
    """Return a student's GLUE rows: for all training examples, averaged over seeds."""
    found = []
    measured = read(folder / "glue.json").get("rows", {})
    # The file lists them in the order of measurement.
    for row, tasks in ((row, measured[row]) for row in ROWS if row in measured):
        scores = {
            task: [result["scores"]["dev"][metric] for result in tasks.get(task, []) if result["fraction"] == 1]
            for task, metric in TASKS.items()
        }
        figures = {task: round(100 * mean(of_seeds), 1) for task, of_seeds in scores.items() if of_seeds}
        seeds = {f"{task} seeds": len(of_seeds) for task, of_seeds in scores.items() if len(of_seeds) > 1}
        found.append({"kind": "GLUE dev", "model": folder.name, "row": row, **figures, **seeds})
    return found


def curve_rows(workdir: Path) -> list[dict[str, Any]]:
    """Return students of one size and number of steps, trained on different shares of the sentences."""
    found = []
    for folder in workdir.glob("fraction-*"):
        record, measured = read(folder / "distillation.json"), read_measured(folder)
        if measured:
            training = record["training"]
            sentences = record["corpus"]["rows"] * (1 - training["held_out"]) * training["train_fraction"]
            found.append(
                {
                    "kind": "corpus size",
                    "shape": shape(record["student"]),
                    "sentences": round(sentences),
                    # With few sentences, batches of one length are smaller.
                    "seen": round(sentences * record["history"][-1]["epoch"]),
                    "steps": training["max_steps"],
                    **{name: round(measured["held_out"][name], 4) for name in FIDELITY},
                    "sts_spearman": round(measured["sts_spearman"], 4),
                }
            )
    return sorted(found, key=lambda row: row["sentences"])


def cell(value: float | None, form: str) -> str:
    """Format a figure; "" if it was not measured."""
    return "" if value is None else f"{value:{form}}"


def student_cells(row: dict[str, Any]) -> list[str]:
    """Format a student's line in the table of sizes."""
    return [
        f"`{row['model']}` ({row['shape']})",
        f"{row['sentences_seen'] / 1e6:.1f}",
        f"{row['parameters'] / 1e6:.1f}",
        cell(row["export_megabytes"], ".1f"),
        cell(row.get("int8_sentences_per_second"), ",.0f"),
        cell(row.get("int8_ratio"), ".0f"),
        cell(row.get("int8_sentences_per_cpu_second"), ",.0f"),
        cell(row.get("int8_p50_ms"), ".2f"),
        f"{row['cosine']:.3f}",
        *(cell(row.get(f"int8_{name}"), ".3f") for name in _QUALITY),
    ]


def teacher_cells(row: dict[str, Any]) -> list[str]:
    """Format the line of a way to run the teacher, or of another model derived from it."""
    return [
        row["contender"],
        *("", "", ""),
        f"{row['sentences_per_second']:,.0f}",
        f"{row['ratio']:.{0 if row['ratio'] > 10 else 1}f}",
        f"{row['sentences_per_cpu_second']:,.0f}",
        cell(row.get("p50_ms"), ".2f"),
        "",
        *(f"{row[name]:.3f}" for name in _QUALITY),
    ]


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table, with an empty line before it; [] if it has no rows."""
    if not rows:
        return []
    return ["", *(f"| {' | '.join(cells)} |" for cells in (columns, ("---", *["---:"] * (len(columns) - 1)), *rows))]


def sizes_table(rows: list[dict[str, Any]], speed: dict[str, Any]) -> list[str]:
    """Make the table of students and alternatives from the same teacher."""
    teacher = [row for row in speed.get("rows", []) if row["model"] == "teacher"]
    cells = [student_cells(row) for row in rows if row["kind"] == "student"]
    cells += [teacher_cells(row) for row in sorted(teacher, key=lambda row: -row["ratio"])]
    return markdown(COLUMNS, cells)


def glue_table(rows: list[dict[str, Any]]) -> list[str]:
    """Make the table of each student's GLUE rows."""
    glue = [row for row in rows if row["kind"] == "GLUE dev" and row["row"] in GLUE_ROWS]
    cells = [(f"`{row['model']}`, {ROWS[row['row']]}", *(cell(row.get(task), ".1f") for task in TASKS)) for row in glue]
    return markdown(("GLUE dev", *TASKS), cells)


def curve_table(rows: list[dict[str, Any]]) -> list[str]:
    """Make the table of students trained on other shares of the corpus."""
    curve = [row for row in rows if row["kind"] == "corpus size"]
    cells = [
        (
            f"{row['shape']}, {row['steps']:,} steps",
            *(f"{row[name]:,}" for name in ("sentences", "seen")),
            *(f"{row[name]:.3f}" for name in ("cosine", *RECALL, "sts_spearman")),
        )
        for row in curve
    ]
    return markdown(("", "sentences", "seen, in all", "cosine", "recall@10", "10 in 100", "STS-B dev"), cells)


def replace_made(page: Path, lines: list[str]) -> None:
    """Write lines between two marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text("\n".join([f"{before}{BEGIN}", *lines, "", f"{END}{after}"]), encoding="utf-8")


def plot(rows: list[dict[str, Any]], speed: dict[str, Any], path: Path) -> None:
    """Plot fidelity to the teacher against sentences per second of processor time."""
    import matplotlib as mpl
    import matplotlib.pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "sentence-distill"
    students = [row for row in rows if "int8_sentences_per_cpu_second" in row]
    others = [row for row in speed.get("rows", []) if row["model"] == "teacher"]
    measures = {
        "recall_at_10": "the teacher's 10 neighbours among the model's 10",
        "recall_at_10_among_100": "the same among its 100",
        "sts_spearman": "STS-B dev, Spearman",
    }
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.4))
    for axis, (measure, title) in zip(axes, measures.items(), strict=True):
        points = [(row["int8_sentences_per_cpu_second"], row[f"int8_{measure}"]) for row in students]
        axis.plot(*zip(*points, strict=True), "o-", color="#1f6f8b", label="students, int8 export")
        for number, (point, row) in enumerate(zip(points, students, strict=True)):
            # Alternately below and above the line, so that labels of neighbors don't overlap.
            place, side = ((-4, -13), "right") if number % 2 == 0 else ((4, 6), "left")
            axis.annotate(row["model"], point, xytext=place, textcoords="offset points", ha=side, fontsize=9)
        for marker, row in zip("sD^vP*X", others, strict=False):
            point = (row["sentences_per_cpu_second"], row[measure])
            axis.plot(*point, marker, color="#8a8a8a", markersize=7, label=row["contender"])
        axis.set_xscale("log")
        axis.set_xlabel("sentences a second of processor time")
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.1, y=0.15)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncols=3, frameon=False, fontsize=9)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Collect, write and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workdir", type=Path)
    options = parser.parse_args()
    speed = read(options.workdir / "speed.json")
    folders = [options.workdir / size for size in SIZES if (options.workdir / size / "eval.json").exists()]
    rows = [size_row(folder, speed) for folder in folders]
    rows += [row for folder in folders for row in glue_rows(folder)] + curve_rows(options.workdir)
    setting = {"corpus": read(folders[0] / "distillation.json")["corpus"], "speed": speed}
    path = write_result("headline", setting, rows)
    plot(rows, speed, path.with_suffix(".svg"))
    picture = f"![Quality over speed](results/{path.stem}.svg)"
    made = [*sizes_table(rows, speed), "", picture, *glue_table(rows), *curve_table(rows)]
    replace_made(ROOT / "benchmarks/students.md", made)


if __name__ == "__main__":
    main()
