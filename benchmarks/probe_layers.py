"""Linear probes on the mean state of each layer of a teacher, for single-sentence tasks.

A student can hardly learn anything from a layer that a probe does not find in it. Tasks are limited to the first 10,000
examples.

usage: python benchmarks/probe_layers.py GLUE_DIR TEACHER [TEACHER …]
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import write_result

from sentence_distill.data.glue import TASKS, GlueFolder
from sentence_distill.pipeline.hardware import TEACHER, pick_precision
from sentence_distill.pipeline.load import locate_teacher
from sentence_distill.pipeline.teacher import Teacher
from sentence_distill.student.glue import probe
from sentence_distill.student.task_data import Labelled, TaskData

_TASKS = ("CoLA", "SST-2")
_MOST_EXAMPLES = 10_000
_CPU = torch.device("cpu")


def main() -> None:
    """Probe every layer of every teacher and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("glue", type=Path)
    parser.add_argument("teachers", nargs="+")
    args = parser.parse_args()
    rows = [row for name in args.teachers for task in _TASKS for row in _rows(name, args.glue, task)]
    write_result("probe_layers", {"tasks": _TASKS, "most examples": _MOST_EXAMPLES, "pooling": "mean"}, rows)


def _rows(name: str, glue: Path, task: str) -> list[dict[str, Any]]:
    located, dtype = locate_teacher(name), pick_precision("auto", _CPU, TEACHER)
    last = Teacher(located, device=_CPU, dtype=dtype).model.config.num_hidden_layers
    layers = range(0, last + 1, max(1, last // 6))
    teacher = Teacher(located, pooling="mean", layers=layers, device=_CPU, dtype=dtype)
    data = TaskData.load(GlueFolder(glue), TASKS[task])
    train, dev = data.train.take(np.arange(min(_MOST_EXAMPLES, len(data.train.targets)))), data.dev["dev"]
    known = {id(part.texts): _vectors(teacher, part) for part in (train, dev)}
    rows = []
    for place, layer in enumerate(layers):
        columns = slice(place * teacher.layer_dim, (place + 1) * teacher.layer_dim)
        scores = _probe(known, train, dev, columns, data)
        rows.append({"teacher": located.name, "task": task, "layer": layer, **scores})
    return rows


def _vectors(teacher: Teacher, part: Labelled) -> np.ndarray:
    (texts,) = part.texts
    return teacher.embed(teacher.tokenize(texts), 4096)


def _probe(
    known: dict[int, np.ndarray], train: Labelled, dev: Labelled, columns: slice, data: TaskData
) -> dict[str, float]:
    places = {id(part.texts[0]): known[id(part.texts)][:, columns] for part in (train, dev)}
    scores, _ = probe(lambda texts: places[id(texts)], replace(data, train=train, dev={"dev": dev}))
    return {metric: round(100 * value, 1) for metric, value in scores["dev"].items()}


if __name__ == "__main__":
    main()
