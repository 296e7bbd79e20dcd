"""`sd eval --glue`: its options, and what it does."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sentence_distill.cli.finetuning import finetune_config, finetuning_options
from sentence_distill.cli.legacy_options import SEED, fractions, numbers
from sentence_distill.cli.out_file import refuse_other
from sentence_distill.data import progress
from sentence_distill.data.glue import TASKS, set_name

if TYPE_CHECKING:
    from sentence_distill.student.glue import Predictions, RowMaker
    from sentence_distill.student.glue_results import Result, Results
    from sentence_distill.student.task_distillation import TaskTeacher

_Command = TypeVar("_Command", bound=Callable[..., Any])
# As student.finetuning.glue_rows names them, which is heavy to import.
ROW_NAMES = (
    *("majority", "scratch", "scratch-words", "task-specific", "frozen", "distilled", "distilled-task-specific"),
    *("teacher-frozen", "teacher"),
)


def _chosen(known: tuple[str, ...]) -> Callable[[click.Context, click.Parameter, str | None], tuple[str, ...] | None]:
    def callback(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
        if value is None or value == "all":
            return None if value is None else known
        names = {name.lower(): name for name in known}
        chosen = [name.strip().lower() for name in value.split(",")]
        if unknown := [name for name in chosen if name not in names]:
            raise click.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}")
        return tuple(dict.fromkeys(names[name] for name in chosen))

    return callback


_OPTIONS = (
    click.option(
        "--tasks",
        callback=_chosen(tuple(TASKS)),
        default="all",
        metavar="NAME[,NAME…]",
        help="GLUE: which.  [default: all nine]",
    ),
    click.option(
        "--rows",
        callback=_chosen(ROW_NAMES),
        default="distilled",
        show_default=True,
        metavar="NAME[,NAME…]",
        help=f"GLUE: what to compare, all or some of {', '.join(ROW_NAMES)}.",
    ),
    click.option("--from-scratch", is_flag=True, help="GLUE: add the rows scratch and scratch-words."),
    click.option("--frozen", is_flag=True, help="GLUE: linear probes on fixed vectors in place of the row distilled."),
    click.option(
        "--seeds", default=1, show_default=True, type=click.IntRange(1), help="GLUE: how many, from --seed on."
    ),
    click.option("--seed", default=0, show_default=True, type=SEED, help="GLUE: the first seed."),
    click.option(
        "--train-fraction",
        "shares",
        default="1",
        show_default=True,
        callback=fractions,
        metavar="X[,X…]",
        help="GLUE: share of the training examples, several for a low-data curve.",
    ),
    *finetuning_options(epochs="6", max_steps="2000", learning_rate="1e-3"),
    click.option(
        "--synthetic",
        default=50_000,
        show_default=True,
        type=click.IntRange(0),
        help="GLUE: augmented examples of a task, about; in task-specific distillation.",
    ),
    click.option(
        "--teacher-learning-rate",
        "teacher_rates",
        default=None,
        callback=numbers,
        metavar="X[,X…]",
        help="GLUE: of the teacher's fine-tuning.  [default: 5e-5]",
    ),
    click.option(
        "--teacher-epochs",
        default=None,
        type=click.IntRange(1),
        help="GLUE: of the teacher's fine-tuning, at most.  [default: 3]",
    ),
    click.option(
        "--submission",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="GLUE: folder for the predictions that gluebenchmark.com takes; needs a single row.",
    ),
    click.option("--device", default="auto", show_default=True, help="GLUE: auto, cpu, cuda or cuda:N."),
)


def glue_options(command: _Command) -> _Command:
    """Give a command the options of GLUE."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def evaluate_glue(
    folder: Path,
    glue_dir: Path | None,
    json_file: Path,
    teacher: str | None,
    options: dict[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Fine-tune and score a student on each task; the figures so far are written after each model.

    Args:
        folder: of the student.
        glue_dir: of the official TSV files, or None for the hub's copy.
        json_file: where the figures go.
        teacher: see `open_teacher`.
        options: of `glue_options`.
        overwrite: begin the file anew, whatever it holds.
    """
    from sentence_distill.data.glue import open_glue
    from sentence_distill.pipeline.files import lock_folder
    from sentence_distill.student.glue import GlueRun, describe
    from sentence_distill.student.glue_results import Results

    rows = _rows(options)
    if options["submission"] and len(rows) != 1:
        raise click.UsageError(f"--submission holds one row's predictions, not those of {', '.join(rows)}")
    if options["submission"] and options["shares"] != (1.0,):
        raise click.UsageError("--submission is of models of all training examples; leave --train-fraction out")
    if options["submission"]:
        _check_submission(options["submission"])
    source = open_glue(glue_dir)
    # Two runs over one file would lose each other's figures.
    with lock_folder(json_file.parent, name=f".lock-{json_file.name}"):
        maker, identity = _prepare(folder, teacher, glue_dir, json_file, options)
        results = Results(json_file, identity, fresh=overwrite)
        run = GlueRun(
            source=source,
            maker=maker,
            results=results,
            seeds=range(options["seed"], options["seed"] + options["seeds"]),
            fractions=options["shares"],
        )
        predictions: Predictions | None = {} if options["submission"] else None
        for row, task, result in run.run(rows, options["tasks"], predictions):
            share = "" if result.fraction == 1.0 else f", {result.examples:,} examples"
            progress.log(f"{task}, {row}, seed {result.seed}{share}: {describe(result)}")
    _print_glue(results, rows, options["tasks"])
    if predictions is not None:
        _submit(predictions, options["submission"])


def _rows(options: dict[str, Any]) -> tuple[str, ...]:
    rows = [*options["rows"], *(("scratch", "scratch-words") if options["from_scratch"] else ())]
    if options["frozen"]:
        rows = ["frozen" if row == "distilled" else row for row in rows]
    # In the order of the table, each once.
    return tuple(row for row in ROW_NAMES if row in rows)


def _prepare(
    folder: Path,
    given: str | None,
    glue_dir: Path | None,
    json_file: Path,
    options: dict[str, Any],
) -> "tuple[RowMaker, dict[str, Any]]":
    from dataclasses import replace

    from sentence_distill.data.hashing import file_hash
    from sentence_distill.pipeline.hardware import FINETUNING, pick_device, pick_precision
    from sentence_distill.student.files import load_distillation, module_weights
    from sentence_distill.student.finetune import LOOP, STUDENT, TEACHER
    from sentence_distill.student.fit import Fitter
    from sentence_distill.student.glue import RowMaker
    from sentence_distill.student.model import load_student
    from sentence_distill.student.models import find_teacher, open_teacher
    from sentence_distill.student.start import initial_words
    from sentence_distill.student.task_distillation import TaskTeacher

    student, distillation, device = load_student(folder), load_distillation(folder), pick_device(options["device"])
    config = finetune_config(options, STUDENT)
    of_teacher = replace(
        TEACHER,
        epochs=options["teacher_epochs"] or TEACHER.epochs,
        least_steps=0 if options["teacher_epochs"] else TEACHER.least_steps,
        learning_rates=options["teacher_rates"] or TEACHER.learning_rates,
    )
    fitter = Fitter(config=config, device=device, precision=pick_precision("auto", device, FINETUNING))

    # Each is asked for by every model that needs it.
    @cache
    def teacher() -> "TaskTeacher":
        located = find_teacher(distillation, given)
        # Beside the figures: a student that others share may be one to read only.
        work = json_file.parent / "glue"
        of_tasks = replace(fitter, config=of_teacher)
        return TaskTeacher(located=located, folder=work, fitter=of_tasks, synthetic=options["synthetic"])

    maker = RowMaker(
        student=student,
        fitter=fitter,
        words=cache(lambda: initial_words(distillation, folder)),
        teacher=teacher,
        teacher_encode=cache(lambda: open_teacher(distillation, given, "teacher").encode),
    )
    identity = {
        "source": "nyu-mll/glue" if glue_dir is None else "a folder of TSV files",
        "student": [file_hash(file) for file in module_weights(folder)],
        "computed": f"{str(fitter.precision).removeprefix('torch.')} on {device.type}",
        "finetuning": {**config.identity(), "loop": LOOP, "synthetic": options["synthetic"]},
        "teacher_finetuning": of_teacher.identity(),
    }
    return maker, identity


def _check_submission(folder: Path) -> None:
    """Refuse a folder that holds something else than a submission."""
    from sentence_distill.student.glue_results import PARTS, ZIP_NAME

    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    refuse_other(folder, names - {ZIP_NAME, *(f"{name}.tsv" for name in PARTS)}, "sd eval --submission")


def _submit(predictions: "Predictions", folder: Path) -> None:
    from sentence_distill.student.glue_results import write_submission

    submission = write_submission(folder, predictions)
    click.echo(f"submission: {submission.path}")
    if submission.missing:
        click.echo(f"  gluebenchmark.com refuses it without {', '.join(submission.missing)}")


def _print_glue(results: "Results", rows: tuple[str, ...], tasks: tuple[str, ...]) -> None:
    from rich.console import Console
    from rich.table import Table

    from sentence_distill.student.config import ROWS

    shown = [row for row in rows if row in results.rows]
    table = Table("GLUE dev", "metric", *(ROWS[row] for row in shown), box=None, header_style="bold")
    for column in table.columns[2:]:
        column.justify = "right"
    for task in tasks:
        found = {row: [r for r in results.rows[row].get(task, []) if r.fraction == 1.0] for row in shown}
        scored = {
            (dev, metric): None for row in shown for r in found[row] for dev in r.scores for metric in r.scores[dev]
        }
        for dev, metric in scored:
            table.add_row(set_name(task, dev), metric, *(_figure(found[row], dev, metric) for row in shown))
    Console().print(table)
    for what, why in results.skipped.items():
        click.echo(f"skipped: {what}: {why}")


def _figure(results: "list[Result]", dev: str, metric: str) -> str:
    from statistics import mean, stdev

    values = [100 * result.scores[dev][metric] for result in results if dev in result.scores]
    if not values:
        return ""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")
