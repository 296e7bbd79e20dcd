"""`sd predict`: labels, or scores, for a file's texts."""

import codecs
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from sentence_distill.cli.out_file import check_out_file
from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from sentence_distill.data.rows import Row
    from sentence_distill.data.sources import Source
    from sentence_distill.student.finetuning.predict import Classifier

_FORMATS = ("jsonl", "csv", "tsv", "text", "parquet", "arrow")
_STREAM = "-"


@click.command()
@click.argument("folder")
@click.option(
    "--input",
    "location",
    default=_STREAM,
    show_default=True,
    metavar="FILE",
    help="CSV, TSV, JSON lines, Parquet, Arrow or plain text, compressed or not; - is standard input.",
)
@click.option(
    "--out",
    default=_STREAM,
    show_default=True,
    metavar="FILE",
    help="A name in .jsonl, .csv, .tsv or .parquet; - writes JSON lines to standard output.",
)
@click.option(
    "--text-column",
    default=None,
    metavar="NAME[,NAME]",
    help="Column of the texts, two for pairs.  [default: as in fine-tuning]",
)
@click.option(
    "--format",
    type=click.Choice(_FORMATS),
    default=None,
    help="Of the input.  [default: by name and first bytes; of standard input JSON lines, or a text a line]",
)
@click.option("--all", "every_class", is_flag=True, help="Write the probability of every class.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--overwrite", is_flag=True, help="Replace --out where it is there already.")
def predict(
    folder: str,
    location: str,
    out: str,
    text_column: str | None,
    format: str | None,
    every_class: bool,
    device: str,
    overwrite: bool,
) -> None:
    """Predict the labels, or scores, of texts with the student in FOLDER, which sd finetune made, or on the hub.

    FOLDER may also be an export of that student (sd export), which runs in ONNX Runtime on the CPU. Each row is written
    with what it held and its prediction, in the order of the input.

    \b
      sd predict finetuned/reviews --input new.csv --out predicted.csv
      sd predict finetuned/reviews/onnx --input new.csv --out predicted.csv
      cat lines.txt | sd predict finetuned/reviews > predicted.jsonl
    """
    from sentence_distill.cli.console import ConsoleProgress
    from sentence_distill.data.corpus import text_fields
    from sentence_distill.data.row_writer import open_writer, output_format
    from sentence_distill.data.sources import find_sources
    from sentence_distill.student.finetuning.predict_files import predict_rows

    kind = "jsonl" if out == _STREAM else output_format(out)
    sources = [] if location == _STREAM else find_sources([location])
    if out != _STREAM:
        check_out_file(Path(out), sources, overwrite)
    classifier = _load(folder, device)
    columns = classifier.task.columns if text_column is None else text_fields(text_column, "--text-column")
    if len(columns) != len(classifier.task.columns):
        raise UserError(
            f"--text-column {text_column}: {folder} reads {len(classifier.task.columns)} column(s) of texts"
        )
    if every_class and classifier.task.regression:
        raise UserError(f"--all: {folder} gives scores, not classes")
    with (
        _output(out) as file,
        open_writer(file, kind) as writer,
        ConsoleProgress().task("predict", None, "rows") as advance,
    ):
        rows = _rows_of(sources, format, columns) if sources else _standard_input(format, columns)
        counts = predict_rows(classifier, rows, writer, columns=columns, every_class=every_class, advance=advance)
        if not counts.rows:
            raise UserError(f"{'standard input' if location == _STREAM else location} holds no row")
    empty = f", {counts.empty:,} of them without text" if counts.empty else ""
    click.echo(f"{'standard output' if out == _STREAM else out}: {counts.rows:,} rows{empty}", err=out == _STREAM)


def _load(folder: str, device: str) -> "Classifier":
    from sentence_distill.student.encoding.export_folder import is_export
    from sentence_distill.student.finetuning.predict import Classifier

    if is_export(Path(folder)):
        return Classifier.load(folder, "cpu" if device == "auto" else device)
    # PyTorch takes most of a second to import, and an export does without.
    from sentence_distill.pipeline.hardware import pick_device

    return Classifier.load(folder, pick_device(device))


def _rows_of(sources: "Sequence[Source]", format: str | None, columns: tuple[str, ...]) -> "Iterator[Row]":
    from sentence_distill.data.rows import read_rows

    for source in sources:
        yield from read_rows(source, format, columns[0])


def _standard_input(format: str | None, columns: tuple[str, ...]) -> "Iterator[Row]":
    from sentence_distill.data.rows import STREAM_FORMATS, rows_of_stream
    from sentence_distill.data.sources import standard_input

    stream = standard_input()
    # A peek waits for the first bytes, and takes none of them away.
    first = stream.peek(1).removeprefix(codecs.BOM_UTF8).lstrip()
    kind = format or ("jsonl" if first.startswith(b"{") else "text")
    if kind not in STREAM_FORMATS:
        raise UserError(f"--format {kind} can't be read from standard input; name a file with --input")
    return rows_of_stream(stream, "standard input", kind, columns[0])


@contextmanager
def _output(out: str) -> Iterator[BinaryIO]:
    from sentence_distill.pipeline.files import replacing

    if out == _STREAM:
        yield sys.stdout.buffer
        return
    with replacing(Path(out)) as file:
        yield file
