"""One task: `sd finetune` fine-tunes a teacher or a student, `sd predict` writes what a student predicts."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sentence_distill.cli.console import print_table, stopped_by_signals
from sentence_distill.cli.options import SectionedCommand, options_of
from sentence_distill.cli.out_file import finetuned_folder, whole_or_none
from sentence_distill.data.errors import UsageError
from sentence_distill.data.progress import counted
from sentence_distill.student.config import FinetuneConfig, PredictConfig

if TYPE_CHECKING:
    from sentence_distill.student.recipe import Row


@click.command(cls=SectionedCommand)
@options_of(
    FinetuneConfig,
    basic=(
        *("model", "train", "dev", "text_column", "label_column", "regression", "task", "glue_dir"),
        *("teacher", "unlabeled", "max_time", "device"),
    ),
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Folder to write.  [default: finetuned/TASK]",
)
@click.option("--overwrite", is_flag=True, help="Replace an earlier fine-tuned model in --out.")
def finetune(config: FinetuneConfig, out: Path | None, overwrite: bool) -> None:
    """Fine-tune a student or a teacher on labels or a GLUE task.

    MODEL is a student or a transformer encoder: a folder, minilm-small, minilm, mpnet, or a name on the hub. A student
    becomes a folder for sd predict. A teacher becomes one for sd embed, which writes its logits to shards; a student
    learns from those with --logits (task-specific distillation, Tang et al. 2019).

    With --teacher the command does all of this: it fine-tunes the teacher on the labels, embeds the examples, augmented
    copies of them and --unlabeled text with it, trains the student on the teacher's vectors, its logits and the labels,
    and shows what each brought. Its stages are kept in TASK-stages/ next to --out, so the same command resumes after a
    kill, and other options of the student repeat nothing of the teacher.

    \b
      sd finetune distilled --train reviews.csv --text-column review --label-column stars
      sd finetune distilled --train reviews.csv --teacher mpnet --unlabeled more-reviews.txt
      sd finetune distilled --train pairs.jsonl --text-column question1,question2 --label-column same
      sd finetune distilled --task SST-2 --glue-dir glue/
    """
    out = out or Path("finetuned") / config.name
    # Named after the task, so that results of several names share it.
    stages = out.with_name(f"{config.name}-stages") if out.name else out
    if config.teacher and stages.resolve() == out.resolve():
        raise UsageError(f"--out {out} is where the stages go, or has no name; choose another folder")
    kept = "finished stages are kept: run the same command again to resume"
    with (
        stopped_by_signals(f"stopped; {kept if config.teacher else 'nothing was written'}"),
        finetuned_folder(out, overwrite),
    ):
        from sentence_distill.student.task_data import read_task

        data = read_task(config)
        # PyTorch takes seconds to import, and a wrong file shows before.
        from sentence_distill.student.finetune import finetune as run
        from sentence_distill.student.recipe import distil_task

        if config.teacher:
            distilled = distil_task(config, data, stages)
            finetuned = distilled.finetuned
            _print_rows(distilled.rows)
        else:
            finetuned = run(config, data)
        with whole_or_none(out):
            finetuned.save(out)
    click.echo(f"{out}: {finetuned.describe()}")
    place = shlex.quote(str(out))
    if finetuned.is_student:
        click.echo(f"next: sd predict {place} --input FILE --out predictions.jsonl")
    elif config.task is not None:
        click.echo(
            f"next: sd embed --corpus FILE --teacher {place}, which writes its logits for the text of {config.task}"
        )
    else:
        corpus, columns = shlex.quote(str(config.train)), shlex.quote(config.text_column)
        split = "" if "," in config.text_column else "--no-split "
        command = f"sd embed --corpus {corpus} --text-column {columns} {split}--min-words 1 --teacher {place}"
        click.echo(f"next: {command} writes its logits")


def _print_rows(rows: "Sequence[Row]") -> None:
    names = list(dict.fromkeys((dev, metric) for row in rows for dev in row.scores for metric in row.scores[dev]))
    table = []
    for row in rows:
        scores = [row.scores.get(dev, {}).get(metric) for dev, metric in names]
        costs = ((row.seconds, ",.0f"), (row.sentences_per_second, ",.0f"))
        cells = ["" if value is None else format(value, form) for value, form in costs]
        table.append((row.title, *("" if score is None else f"{score:.4f}" for score in scores), *cells))
    print_table(
        ("model", *(f"{dev}, {metric}" for dev, metric in names), "training, s", "examples/s"), table, least_width=100
    )


@click.command()
@options_of(PredictConfig)
def predict(config: PredictConfig) -> None:
    """Predict labels or scores with a fine-tuned student.

    FOLDER is a student that sd finetune made, or a name on the hub. It may also be an export of that student (sd
    export), which runs in ONNX Runtime on the CPU. INPUT is a file, folder, glob or URL, compressed or not, or - for
    standard input. Each row is written with its other columns and its prediction, in the order of the input.

    \b
      sd predict finetuned/reviews new.csv -o predicted.csv
      sd predict finetuned/reviews/onnx new.csv -o predicted.csv
      cat lines.txt | sd predict finetuned/reviews > predicted.jsonl
    """
    from sentence_distill.student.file_job import predict_files

    stream = config.out == "-"
    with stopped_by_signals(f"stopped; {'the output ends here' if stream else 'nothing was written'}"):
        counts = predict_files(config)
    empty = f", {counts.empty:,} of them without text" if counts.empty else ""
    click.echo(f"{'standard output' if stream else config.out}: {counted(counts.rows, 'row')}{empty}", err=stream)
