"""`sd export`: a student, or a classifier, as files that run elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.data.errors import UserError
from sentence_distill.student.config import DEFAULT_STUDENT

if TYPE_CHECKING:
    from sentence_distill.student.export import Exported


@click.command()
@click.argument("student", default=DEFAULT_STUDENT)
@click.option("--onnx", is_flag=True, required=True, expose_value=False, help="As an ONNX file, the one format so far.")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default=None, help="Folder to write.  [default: STUDENT/onnx]"
)
@click.option("--int8", is_flag=True, help="Store and multiply 8-bit numbers: faster, and a quarter of the size.")
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    default=None,
    help="Shards to take held-out sentences from.  [default: those that the student was trained on]",
)
@click.option(
    "--sentences",
    type=click.Path(path_type=Path),
    default=None,
    help="Text file to measure with, one sentence a line.  [default: held-out ones of the shards]",
)
@stopped_by_signals("stopped; nothing was written")
def export(
    student: str,
    out: Path | None,
    int8: bool,
    shards: Path | None,
    sentences: Path | None,
) -> None:
    """Write a student as one ONNX file and its tokenizer, for programs without PyTorch and without this package.

    STUDENT is a folder, wiki-small, or a name on the hub. [default: distilled] A student that sd finetune made is
    exported as a classifier. The command says how close the export comes to it, and how fast both are.

    \b
      sd export distilled --onnx
      sd export distilled --onnx --int8 --out small/
      sd export finetuned/reviews --onnx --int8
    """
    from sentence_distill.pipeline.manifest import require_vectors
    from sentence_distill.student.export_folder import DEFAULT, require_replaceable
    from sentence_distill.student.hub import locate_student
    from sentence_distill.student.reference import sentences_of_file

    folder = locate_student(student)
    _require_student(folder, student)
    if out is None and folder != Path(student):
        raise click.UsageError(f"{student} is no folder of yours; name one for its export: --out FOLDER")
    out = out or folder / DEFAULT
    require_replaceable(out)
    if shards:
        require_vectors(shards)
    if sentences:
        sentences_of_file(sentences, 1)
    from sentence_distill.student.export import export_onnx

    _print(export_onnx(folder, out, int8=int8, shards=shards, sentences=sentences))


def _require_student(folder: Path, name: str) -> None:
    from sentence_distill.student.export_folder import is_export
    from sentence_distill.student.files import DISTILLATION, load_distillation

    if is_export(folder):
        raise UserError(f"{name} is an export already; name the folder of the student that it was made of")
    if not (folder / DISTILLATION).exists() and (folder / "config.json").exists():
        raise UserError(
            f"{name} is a transformer, and sd export takes students; distil one of it (sd embed, sd train-student), or "
            "export the transformer itself with Hugging Face's optimum"
        )
    load_distillation(folder)


def _print(exported: "Exported") -> None:
    from sentence_distill.student.export import describe, describe_agreement, next_command
    from sentence_distill.student.export_folder import MODEL, README, TOKENIZER

    record = exported.record
    sizes = {name: (exported.folder / name).stat().st_size / 1e6 for name in (MODEL, TOKENIZER)}
    click.echo(describe(record, exported.labels))
    click.echo(f"{'int8' if record.int8 else 'float32'}, {record.vocabulary:,} tokens")
    click.echo(", ".join(f"{name} {megabytes:.2f} MB" for name, megabytes in sizes.items()))
    if record.agreement is None or record.latency_ms is None:
        click.echo(f"not measured: {exported.skipped}")
    else:
        click.echo(describe_agreement(record.agreement))
        timed = "; ".join(f"{name} {part['p50']:.2f} / {part['p99']:.2f}" for name, part in record.latency_ms.items())
        click.echo(f"one sentence on one thread, p50 / p99 in ms: {timed}")
    click.echo(f"export: {exported.folder}")
    command = next_command(record, str(exported.folder))
    click.echo(f"next: {command}; without this package: the script in {exported.folder / README}")
