"""`sd export`: a student as files that run elsewhere."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sentence_distill.cli.train_student import DEFAULT_STUDENT
from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from sentence_distill.student.export.onnx_export import Exported


@click.command()
@click.argument("student", default=DEFAULT_STUDENT)
@click.option("--onnx", is_flag=True, required=True, expose_value=False, help="As an ONNX file, the one format so far.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Folder to write.  [default: STUDENT/onnx]")
@click.option("--int8", is_flag=True, help="Multiply 8-bit numbers in the LSTM: faster, and a quarter of its size.")
@click.option(
    "--tables",
    type=click.Choice(["float32", "float16", "int8", "pq"]),
    default=None,
    help="Type of the word embeddings; pq is product quantisation, a byte for four numbers.  "
    "[default: float32; with --int8: int8]",
)
@click.option(
    "--vocabulary",
    type=click.IntRange(1),
    default=None,
    metavar="N",
    help="Keep the N most frequent tokens; the others are read as their pieces.  [default: all]",
)
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    default=None,
    help="To count tokens in, and for held-out sentences.  [default: those that the student was trained on]",
)
@click.option(
    "--corpus",
    multiple=True,
    metavar="FILE",
    help="Text to count tokens in instead, with --vocabulary; may be repeated.",
)
@click.option(
    "--sentences",
    type=click.Path(path_type=Path),
    default=None,
    help="Text file to measure with, one sentence a line.  [default: held-out ones of the shards]",
)
def export(
    student: str,
    out: Path | None,
    int8: bool,
    tables: str | None,
    vocabulary: int | None,
    shards: Path | None,
    corpus: tuple[str, ...],
    sentences: Path | None,
) -> None:
    """Write a student as one ONNX file and its tokenizer, for programs without PyTorch and without this package.

    STUDENT is a folder, wiki-small, or a name on the hub. [default: distilled] The command says how close the
    export comes to it, and how fast both are. Needs the extra: pip install 'sentence-distill[onnx]'.

    \b
      sd export distilled --onnx
      sd export distilled --onnx --int8 --tables pq --out small/
    """
    if corpus and vocabulary is None:
        raise click.UsageError("--corpus goes with --vocabulary")
    if missing := [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]:
        raise UserError(f"{' and '.join(missing)} not installed: pip install 'sentence-distill[onnx]'")
    from sentence_distill.student.encoding.export_folder import DEFAULT
    from sentence_distill.student.folder import load_distillation
    from sentence_distill.student.hub import locate_student

    folder = locate_student(student)
    load_distillation(folder)
    if out is None and folder != Path(student):
        raise click.UsageError(f"{student} is no folder of yours; name one for its export: --out FOLDER")
    from sentence_distill.student.export.onnx_export import ExportText, OnnxConfig, export_onnx

    config = OnnxConfig(int8=int8, tables=tables or ("int8" if int8 else "float32"), vocabulary=vocabulary)
    text = ExportText(shards=shards, corpus=corpus, sentences=sentences)
    _print(export_onnx(folder, out or folder / DEFAULT, config, text))


def _print(exported: "Exported") -> None:
    from sentence_distill.student.encoding.export_folder import MODEL, TOKENIZER

    record = exported.record
    sizes = {name: (exported.folder / name).stat().st_size / 1e6 for name in (MODEL, TOKENIZER)}
    parts = "int8" if record["int8"] else "float32"
    click.echo(f"{parts} LSTM, {record['tables']} word embeddings of {record['vocabulary']:,} tokens")
    click.echo(", ".join(f"{name} {megabytes:.2f} MB" for name, megabytes in sizes.items()))
    if exported.skipped:
        click.echo(f"not measured: {exported.skipped}")
    else:
        close, latency = record["agreement"], record["latency_ms"]
        click.echo(
            f"cosine to the student, {close['sentences']:,} sentences ({close['with']}): mean {close['cosine']:.4f}, "
            f"lowest {close['lowest_cosine']:.4f}"
        )
        timed = "; ".join(f"{name} {part['p50']:.2f} / {part['p99']:.2f}" for name, part in latency.items())
        click.echo(f"one sentence on one thread, p50 / p99 in ms: {timed}")
    click.echo(f"export: {exported.folder}")
