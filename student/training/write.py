"""From a finished training run to a student's folder."""

from dataclasses import asdict
from pathlib import Path

from sentence_distill.student.fidelity import SCORES
from sentence_distill.student.files import shards_place
from sentence_distill.student.folder import save_student
from sentence_distill.student.training.train import Trainer


def write_trained(trainer: Trainer, shards: Path) -> dict[str, float]:
    """Write the best student of a run into its folder; return its held-out scores and over how many rows they are."""
    student, best = trainer.best_student()
    scores = {**{name: best[name] for name in SCORES}, "rows": len(trainer.held_out)}
    fingerprint = trainer.stream.fingerprint
    teacher = {name: fingerprint[name] for name in ("teacher", "teacher_weights", "pooling", "normalize")}
    teacher["layers"] = list(trainer.config.target_layers or fingerprint["layers"])
    start = trainer.start
    save_student(
        trainer.out,
        student,
        {
            "teacher": teacher,
            "corpus": {"rows": trainer.stream.manifest["totals"]["rows"], "fingerprint": fingerprint},
            "shards": shards_place(shards, trainer.out),
            "training": asdict(trainer.config),
            **({"start": {"student": start.name, "weights": start.weights}} if start else {}),
            "history": trainer.history,
            "metrics": {"held_out": scores},
        },
    )
    return scores
