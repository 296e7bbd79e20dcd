"""`sd finetune`: a teacher or a student, fine-tuned on one task."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.cli.finetuning import finetune_config, finetuning_options
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue_tasks import TASKS

if TYPE_CHECKING:
    from sentence_distill.student.fit import Fitted, Fitter
    from sentence_distill.student.task_data import TaskData


_FINETUNING = finetuning_options(
    epochs="6, of a teacher 3", max_steps="2000, of a teacher 2500", learning_rate="1e-3, of a teacher 5e-5"
)


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FINETUNING):
        command = option(command)
    return command


@click.command()
@click.argument("model")
@click.option("--task", required=True, type=click.Choice(list(TASKS), case_sensitive=False), help="Of GLUE: which.")
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
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), default=None, help="[default: finetuned/TASK]")
@_options
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of head, dropout and order.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
def finetune(
    model: str,
    task: str,
    glue_dir: Path | None,
    logits: Path | None,
    out: Path | None,
    seed: int,
    device: str,
    **options: Any,
) -> None:
    """Fine-tune MODEL, a student's folder or a transformer encoder, on a task of GLUE.

    A teacher's folder is then one for sd embed, which writes its logits to shards; a student learns from them with
    --logits (task-specific distillation, Tang et al. 2019).

    \b
      sd finetune minilm --task SST-2 --glue-dir glue/ --out teacher-sst2 --learning-rate 5e-5
      sd augment --task SST-2 --glue-dir glue/ --out sst2.jsonl
      sd embed --corpus sst2.jsonl --text-field sentence --no-split --min-words 1 --teacher teacher-sst2 --out logits/
      sd finetune distilled --task SST-2 --glue-dir glue/ --logits logits/
    """
    from sentence_distill.cli.console import ConsoleProgress
    from sentence_distill.data.glue import TaskMissing, open_glue
    from sentence_distill.pipeline.precision import pick_device, pick_precision
    from sentence_distill.student.finetune import STUDENT, TEACHER
    from sentence_distill.student.fit import Fitter
    from sentence_distill.student.glue import describe_scores
    from sentence_distill.student.models import is_student
    from sentence_distill.student.task_data import TaskData

    of_student, out = is_student(model), out or Path("finetuned") / task
    if logits is not None and not of_student:
        raise click.UsageError(f"--logits is what a student learns from, and {model} is none")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name another folder with --out")
    where = pick_device(device)
    fitter = Fitter(
        config=finetune_config(options, STUDENT if of_student else TEACHER),
        device=where,
        precision=pick_precision("auto", where),
        progress=ConsoleProgress(),
    )
    try:
        data = TaskData.load(open_glue(glue_dir), TASKS[task])
    except TaskMissing as error:
        raise UserError(f"--glue-dir {glue_dir}: {error}") from None
    finetune_and_save = _student if of_student else _teacher
    fitted = finetune_and_save(model, data, logits, out, fitter, seed)
    kind = "student" if of_student else "teacher"
    click.echo(
        f"{out}: {kind} fine-tuned on {task}, {describe_scores(fitted.outcome.scores)} "
        f"(best at step {fitted.outcome.step:,})"
    )
    if not of_student:
        click.echo(
            f"next: sd augment --task {task}{f' --glue-dir {glue_dir}' if glue_dir else ''} --out {task}.jsonl, "
            f"then sd embed --teacher {out} writes its logits"
        )


def _teacher(
    model: str, data: "TaskData", logits: Path | None, out: Path, fitter: "Fitter", seed: int
) -> "Fitted[Any]":
    from functools import partial

    from sentence_distill.pipeline.locate import locate_teacher
    from sentence_distill.student.task_teacher import TeacherClassifier

    start = partial(TeacherClassifier.load, locate_teacher(model), data.task, seed)
    fitted = fitter.fit(start, data, seed=seed, label="finetune")
    fitted.model.save(out)
    return fitted


def _student(
    model: str, data: "TaskData", logits: Path | None, out: Path, fitter: "Fitter", seed: int
) -> "Fitted[Any]":
    from sentence_distill.student.folder import load_distillation, load_student
    from sentence_distill.student.glue_rows import new_classifier
    from sentence_distill.student.task_data import from_logits
    from sentence_distill.student.task_folder import save_classifier

    student, distillation = load_student(Path(model)), load_distillation(Path(model))
    train = None if logits is None else from_logits(logits, data)
    fitted = fitter.fit(lambda: new_classifier(student, data, seed), data, train=train, seed=seed, label="finetune")
    save_classifier(out, fitted, data.task, distillation)
    return fitted
