"""`sd eval`: measure models."""

import os
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.glue import evaluate_glue, glue_options
from sentence_distill.cli.intrinsic import evaluate_intrinsic
from sentence_distill.cli.out_file import check_free, holds_keys
from sentence_distill.cli.speed import evaluate_speed, speed_options
from sentence_distill.data.errors import UserError
from sentence_distill.student.config import DEFAULT_STUDENT


def _names(options: Callable[[Callable[..., Any]], Callable[..., Any]]) -> list[str]:
    return [str(option.name) for option in click.command()(options(lambda: None)).params]


# Which of the runs read an option; the others read all.
_READ_BY = {
    "shards": ("eval", "speed"),
    "sts": ("eval", "speed"),
    **dict.fromkeys(("teacher", "glue_dir"), ("eval", "speed", "glue")),
    **dict.fromkeys(_names(glue_options), ("glue",)),
    **dict.fromkeys(_names(speed_options), ("speed",)),
}
# The keys by which each run knows its own earlier file of figures.
_FIGURES: dict[str, tuple[set[str], ...]] = {
    "eval": ({"size", "skipped"}, {"models", "skipped"}),
    "glue": ({"source", "rows"},),
    "speed": ({"contenders", "threads"},),
}
# What a signal leaves of each run.
_KEPT = {
    "eval": "stopped; nothing was written",
    "speed": "stopped; nothing was written",
    "glue": "stopped; the figures so far are in {}, and the same command makes the rest",
}
_RUNS = {"eval": "sd eval alone", "speed": "--speed", "glue": "--glue"}


@click.command("eval")
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--student", default=None, metavar="FOLDER", help="The same as one MODEL.")
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    default=None,
    help="For held-out fidelity and speed.  [default: those that the first student was trained on]",
)
@click.option(
    "--sts",
    type=click.Path(path_type=Path),
    default=None,
    help="TSV with sentence1, sentence2, score.  [default: STS-B/dev.tsv in --glue-dir]",
)
@click.option(
    "--teacher",
    default=None,
    metavar="NAME",
    help="Teacher to compare with.  [default: the student's, where this machine has it]",
)
@click.option("--glue", is_flag=True, help="Fine-tune one student and score it on GLUE instead.")
@click.option(
    "--glue-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="GLUE in the official TSV layout.  [default: nyu-mll/glue from the hub]",
)
@glue_options
@click.option("--speed", is_flag=True, help="Time the models, and what a user would pick instead, one process each.")
@speed_options
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Where the figures go.  [default: eval, glue or speed.json in the first student's folder]",
)
@click.option("--overwrite", is_flag=True, help="Replace --json, whatever it holds; earlier figures are not kept.")
def evaluate(
    models: tuple[str, ...],
    student: str | None,
    shards: Path | None,
    sts: Path | None,
    teacher: str | None,
    glue: bool,
    glue_dir: Path | None,
    speed: bool,
    json_file: Path | None,
    overwrite: bool,
    **options: Any,
) -> None:
    """Measure models: fidelity, STS-B, size and speed; with --glue a student's fine-tuned scores, with --speed costs.

    MODEL is the folder of a student or of a sentence-transformers model, a name on the hub, wiki-small, minilm or
    mpnet; several are shown side by side. [default: distilled]

    What can't be measured, because its data is not here, is listed with the reason.
    """
    from sentence_distill.pipeline.manifest import require_vectors

    kinds = [kind for kind, wanted in (("glue", glue), ("speed", speed)) if wanted]
    if len(kinds) > 1:
        raise click.UsageError(f"--{kinds[0]} and --{kinds[1]} are two runs; give one of them")
    kind = kinds[0] if kinds else "eval"
    _refuse_unread(click.get_current_context(), kind)
    models = _models(models, student)
    fine_tuned = _one_student(models) if glue else None
    json_file = json_file or _default_json(models, f"{kind}.json")
    if not json_file.parent.is_dir():
        raise UserError(f"--json {json_file}: there is no folder {json_file.parent}")
    if not os.access(json_file.parent, os.W_OK):
        raise UserError(f"no file can be written to {json_file.parent}; name another place for the figures with --json")
    if shards:
        require_vectors(shards)
    check_free(json_file, overwrite, option="--json", own=partial(_holds_figures, kind))
    with stopped_by_signals(_KEPT[kind].format(json_file)):
        if fine_tuned:
            evaluate_glue(fine_tuned, glue_dir, json_file, teacher, options, overwrite=overwrite)
        elif speed:
            evaluate_speed(models, shards, _sts_file(sts, glue_dir), teacher, json_file, options)
        else:
            evaluate_intrinsic(models, shards, _sts_file(sts, glue_dir), teacher, json_file, overwrite=overwrite)
    click.echo(f"figures: {json_file}")
    if kind == "eval" and (students := _own_students(models)):
        click.echo(f"next: {_next(students[0])}")


def _next(student: str) -> str:
    """What a student is for."""
    from sentence_distill.student.files import TASK

    name = shlex.quote(student)
    if (Path(student) / TASK).exists():
        return f"sd predict {name} --input FILE --out predictions.jsonl, sd report {name}"
    return f"sd encode --student {name} --input FILE --out vectors.parquet, sd export {name} --onnx, sd report {name}"


def _holds_figures(kind: str, path: Path) -> bool:
    return holds_keys(path, *_FIGURES[kind])


def _refuse_unread(context: click.Context, kind: str) -> None:
    """Refuse options that were given and that this kind of run does not read."""
    for option in context.command.params:
        runs = _READ_BY.get(str(option.name), (kind,))
        if kind not in runs and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} goes with {' or '.join(_RUNS[run] for run in runs)}")


def _models(models: tuple[str, ...], student: str | None) -> tuple[str, ...]:
    if models and student:
        raise click.UsageError("--student is the same as one MODEL; give one of them")
    if student:
        return (student,)
    if not models:
        return (str(_require_student(DEFAULT_STUDENT)),)
    if len(set(models)) < len(models):
        raise click.UsageError("a MODEL is named twice")
    return models


def _is_packaged(model: str) -> bool:
    from sentence_distill.student.hub import packaged_student

    return packaged_student(model) is not None


def _one_student(models: tuple[str, ...]) -> Path:
    if len(models) > 1:
        raise UserError(f"--glue fine-tunes one student, not {len(models)} models; run it for each")
    return _require_student(models[0])


def _require_student(folder: str) -> Path:
    from sentence_distill.student.files import load_distillation
    from sentence_distill.student.hub import require_own_folder

    require_own_folder(folder)
    load_distillation(Path(folder))
    return Path(folder)


def _own_students(models: tuple[str, ...]) -> list[str]:
    """Those that are folders of the user's: not packaged ones, nor those of the hub."""
    from sentence_distill.student.files import is_student

    return [model for model in models if is_student(model)]


def _default_json(models: tuple[str, ...], name: str) -> Path:
    """In the first student's folder; that there is none shows before anything is loaded or measured."""
    if students := _own_students(models):
        return Path(students[0]) / name
    from sentence_distill.student.models import find_model

    for model in models:
        find_model(model)
    if packaged := [model for model in models if _is_packaged(model)]:
        raise UserError(f"{packaged[0]} lies inside the package, where no figures can go; name a file with --json")
    raise UserError("no student is among the models, in whose folder the figures would go; name a file with --json")


def _sts_file(sts: Path | None, glue_dir: Path | None) -> Path | None:
    if sts is not None or glue_dir is None:
        return sts
    inside = glue_dir / "STS-B" / "dev.tsv"
    return inside if inside.exists() else None
