"""A student's weights in half the bytes."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.files import write_atomically, write_json
from sentence_distill.student.evaluation.models import megabytes
from sentence_distill.student.files import DISTILLATION, load_distillation, moved_record
from sentence_distill.student.finetuning.task_folder import student_files
from sentence_distill.student.folder import load_student, update_distillation


def copy_student(source: Path, folder: Path) -> None:
    """Copy a student and its record; neither checkpoints and logs, nor what else lies in its folder.

    Raises:
        UserError: there is no student that can be read in `source`.
    """
    load_student(source)
    for name, file in student_files(source).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    record = moved_record(load_distillation(source), source, folder)
    write_json(folder / DISTILLATION, record)


def halve_weights(folder: Path) -> None:
    """Store the weights in a student's folder as float16, which its record says; whoever loads it gets float32 of them.

    Raises:
        UserError: a weight lies outside of what float16 can hold.
    """
    files = [file for file in student_files(folder).values() if file.suffix == ".safetensors"]
    halved = {file: {name: weight.half() for name, weight in load_file(file).items()} for file in files}
    for file, weights in halved.items():
        if wrong := [name for name, weight in weights.items() if not torch.isfinite(weight).all()]:
            raise UserError(f"{file}: {wrong[0]} holds numbers that float16 can't; keep this student in float32")
    for file, weights in halved.items():
        write_atomically(file, save(weights))
    metrics = load_distillation(folder)["metrics"]
    if "size" in metrics:
        metrics["size"] = {**metrics["size"], "megabytes": megabytes(folder)}
    update_distillation(folder, metrics=metrics, weights="float16")
