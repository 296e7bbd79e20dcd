"""`sd finetune`: a teacher or a student, fine-tuned on one task."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.finetuning import finetune_config, finetuning_options
from sentence_distill.cli.legacy_options import SEED
from sentence_distill.cli.out_file import FINETUNED_TEACHER, is_finetuned, new_folder, whole_or_none
from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import TASKS

if TYPE_CHECKING:
    from sentence_distill.data.labelled import LabelledTable
    from sentence_distill.pipeline.load import Located
    from sentence_distill.student.fit import Fitted, Fitter
    from sentence_distill.student.own_task import OwnTask
    from sentence_distill.student.task_data import TaskData


_FINETUNING = finetuning_options(
    epochs="6, of a teacher 3", max_steps="2000, of a teacher 2500", learning_rate="1e-3, of a teacher 5e-5"
)
_OF_GLUE = ("glue_dir",)
_OF_FILES = ("dev", "text_column", "label_column", "regression")


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FINETUNING):
        command = option(command)
    return command


@click.command()
@click.argument("model")
@click.option(
    "--train",
    default=None,
    metavar="FILE",
    help="Your own examples: CSV, TSV, JSON lines, Parquet or Arrow, compressed or not.",
)
@click.option(
    "--dev",
    default=None,
    metavar="FILE",
    help="Examples that pick the best step.  [default: a tenth of --train is held out, of each class its share]",
)
@click.option(
    "--text-column",
    default="text",
    show_default=True,
    metavar="NAME[,NAME]",
    help="Column of the texts in --train and --dev, two for pairs.",
)
@click.option("--label-column", default="label", show_default=True, metavar="NAME", help="Column of the labels.")
@click.option(
    "--regression/--classes",
    default=None,
    help="Labels are scores, or classes.  [default: scores where all are numbers and one is not whole]",
)
@click.option(
    "--task", type=click.Choice(list(TASKS), case_sensitive=False), default=None, help="In place of --train: of GLUE."
)
@click.option(
    "--glue-dir",
    type=click.Path(path_type=Path),
    default=None,
    help="GLUE in the official TSV layout.  [default: nyu-mll/glue from the hub]",
)
@click.option(
    "--logits",
    type=click.Path(path_type=Path),
    default=None,
    help="Of a student: shards of a fine-tuned teacher's logits to learn from, in place of the labels.",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path, file_okay=False), default=None, help="[default: finetuned/TASK]"
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier fine-tuned model in --out.")
@_options
@click.option("--seed", default=0, show_default=True, type=SEED, help="Of head, dropout, order and what is held out.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@stopped_by_signals("stopped; nothing was written")
def finetune(
    model: str,
    train: str | None,
    task: str | None,
    logits: Path | None,
    out: Path | None,
    overwrite: bool,
    seed: int,
    device: str,
    **options: Any,
) -> None:
    """Fine-tune MODEL, a student or a transformer encoder, on your own labels or on a task of GLUE.

    MODEL is a folder, wiki-small, or a name on the hub. Of a student the command makes a folder for sd predict; of
    a teacher one for sd embed, which writes its logits to shards, and a student learns from those with --logits
    (task-specific distillation, Tang et al. 2019).

    \b
      sd finetune distilled --train reviews.csv --text-column review --label-column stars
      sd finetune distilled --train pairs.jsonl --text-column question1,question2 --label-column same
      sd finetune distilled --task SST-2 --glue-dir glue/
    """
    from sentence_distill.student.files import is_student, is_unfinished, load_distillation

    _check_sources(train, task)
    name = task or _name(str(train))
    out = out or Path("finetuned") / name
    held = new_folder(out, overwrite, earlier=is_finetuned, command="sd finetune")
    click.get_current_context().with_resource(held)
    # What costs nothing is checked before the libraries that cost seconds.
    if is_student(model) or is_unfinished(Path(model)):
        load_distillation(Path(model))
    if logits is not None and (is_student(model) or not Path(model).is_dir()):
        from sentence_distill.pipeline.manifest import require_manifest

        require_manifest(logits)
    tables = None if task else _tables(str(train), options)

    from sentence_distill.pipeline.hardware import FINETUNING, pick_device, pick_precision
    from sentence_distill.student.finetune import STUDENT, TEACHER
    from sentence_distill.student.fit import Fitter
    from sentence_distill.student.glue import describe_dev
    from sentence_distill.student.models import find_model

    located = find_model(model)
    of_student = is_student(str(located.folder))
    if logits is not None and not of_student:
        raise click.UsageError(f"--logits is what a student learns from, and {model} is none")
    where = pick_device(device)
    fitter = Fitter(
        config=finetune_config(options, STUDENT if of_student else TEACHER),
        device=where,
        precision=pick_precision("auto", where, FINETUNING),
    )
    if tables is None:
        data, own = _glue(str(task), options["glue_dir"]), None
    else:
        own = _own(name, tables, options, seed)
        data = own.data
    fitted = (
        _student(located.folder, data, own, logits, out, fitter, seed)
        if of_student
        else _teacher(located, data, out, fitter, seed)
    )
    kind = "student" if of_student else "teacher"
    progress.log(fitted.outcome.ended)
    counts = {dev: len(part.targets) for dev, part in data.dev.items()}
    click.echo(
        f"{out}: {kind} fine-tuned on {name}, {describe_dev(fitted.outcome.scores, counts)} "
        f"(best at step {fitted.outcome.step:,})"
    )
    following = f"sd predict {shlex.quote(str(out))} --input FILE --out predictions.jsonl"
    click.echo(f"next: {following if of_student else _next_of_teacher(out, task, train, options)}")


def _check_sources(train: str | None, task: str | None) -> None:
    """One of --train and --task, and no option of the other one."""
    if (train is None) == (task is None):
        raise click.UsageError("give --train, a file of your own examples, or --task, one of GLUE")
    context = click.get_current_context()
    unread, needs = (_OF_GLUE, "--task") if task is None else (_OF_FILES, "--train")
    for option in context.command.params:
        if option.name in unread and context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option.opts[0]} goes with {needs}")


def _name(train: str) -> str:
    """A task's name after its file: reviews of data/reviews.csv.gz, task of data/*.csv."""
    name = Path(train.rstrip("/")).name.split(".")[0]
    return re.sub(r"[^\w-]+", "-", name).strip("-") or "task"


def _glue(task: str, folder: Path | None) -> "TaskData":
    from sentence_distill.data.glue import TaskMissing, open_glue
    from sentence_distill.student.task_data import TaskData

    try:
        return TaskData.load(open_glue(folder), TASKS[task])
    except TaskMissing as error:
        raise UserError(f"--glue-dir {folder}: {error}") from None


def _tables(train: str, options: dict[str, Any]) -> "tuple[LabelledTable, LabelledTable | None]":
    """Read --train and --dev."""
    from sentence_distill.data.corpus import text_columns
    from sentence_distill.data.labelled import read_labelled

    columns = text_columns(options["text_column"], "--text-column")
    table = read_labelled(train, columns, options["label_column"])
    return table, read_labelled(options["dev"], columns, options["label_column"]) if options["dev"] else None


def _own(
    name: str,
    tables: "tuple[LabelledTable, LabelledTable | None]",
    options: dict[str, Any],
    seed: int,
) -> "OwnTask":
    from sentence_distill.data.corpus import text_columns
    from sentence_distill.student.own_task import make_own_task

    own = make_own_task(
        name,
        *tables,
        columns=text_columns(options["text_column"], "--text-column"),
        label=options["label_column"],
        regression=options["regression"],
        seed=seed,
    )
    progress.log(f"{name}: {own.describe()}")
    if options["dev"] is None:
        held_out = len(own.data.dev["dev"].targets)
        progress.log(
            f"held out of {tables[0].name}: {held_out:,} examples, which pick the best step; --dev names others"
        )
    return own


def _next_of_teacher(out: Path, task: str | None, train: str | None, options: dict[str, Any]) -> str:
    teacher = shlex.quote(str(out))
    if task is None:
        columns = options["text_column"]
        split = "" if "," in columns else "--no-split "
        return (
            f"sd embed --corpus {shlex.quote(str(train))} --text-column {shlex.quote(columns)} {split}--min-words 1 "
            f"--teacher {teacher} writes its logits"
        )
    return f"sd embed --corpus FILE --teacher {teacher}, which writes its logits for the text of {task}"


def _teacher(located: "Located", data: "TaskData", out: Path, fitter: "Fitter", seed: int) -> "Fitted[Any]":
    from dataclasses import asdict
    from functools import partial

    from sentence_distill.cli.console import write_json
    from sentence_distill.student.task_teacher import TeacherClassifier

    start = partial(TeacherClassifier.load, located, data.task, seed)
    progress.log(f"fine-tuning: {fitter.config.describe(len(data.train.targets))}")
    fitted = fitter.fit(start, data, seed=seed, label="finetune")
    record = {"task": data.task.name, "learning_rate": fitted.learning_rate, **asdict(fitted.outcome)}
    with whole_or_none(out):
        before = {path.name for path in out.iterdir()}
        fitted.model.save(out)
        files = sorted({path.name for path in out.iterdir()} - before)
        write_json(out / FINETUNED_TEACHER, {**record, "files": files})
    return fitted


def _student(
    folder: Path, data: "TaskData", own: "OwnTask | None", logits: Path | None, out: Path, fitter: "Fitter", seed: int
) -> "Fitted[Any]":
    from sentence_distill.student.classifier import match_labels, standardised
    from sentence_distill.student.files import load_distillation, moved_record
    from sentence_distill.student.glue import new_classifier
    from sentence_distill.student.model import load_student
    from sentence_distill.student.own_task import save_classifier
    from sentence_distill.student.task_data import from_logits

    student, distillation = load_student(folder), load_distillation(folder)
    train = None if logits is None else from_logits(logits, data)
    of_scores = train is not None and data.task.regression
    if train is not None and of_scores:
        train = standardised(train)
    progress.log(f"fine-tuning: {fitter.config.describe(len((train or data.train).targets))}")
    fitted = fitter.fit(lambda: new_classifier(student, data, seed), data, train=train, seed=seed, label="finetune")
    if of_scores:
        match_labels(fitted.model, data.train, fitter.device, fitter.precision)
    if own is not None:
        own.restore_scale(fitted.model)
    with whole_or_none(out):
        save_classifier(out, fitted, data, moved_record(distillation, folder, out))
    return fitted
