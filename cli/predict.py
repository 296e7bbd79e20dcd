"""`sd predict`: labels, or scores, for the texts of files."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.legacy_options import (
    input_arguments,
    input_format_option,
    inputs_of,
    overwrite_option,
    text_column_option,
)
from sentence_distill.cli.out_file import check_out_file
from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.records import FORMATS

if TYPE_CHECKING:
    from sentence_distill.data.corpus import Corpus
    from sentence_distill.student.predict import Classifier

_STREAM = "-"


@click.command()
@click.argument("folder")
@input_arguments("- (standard input)")
@click.option(
    "-o",
    "--out",
    default=_STREAM,
    show_default=True,
    metavar="FILE",
    help="File to write; - is standard output.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "csv", "tsv", "parquet"]),
    default=None,
    help="Format of --out.  [default: by its name; to standard output jsonl]",
)
@input_format_option(FORMATS)
@text_column_option("Column of the texts, two for pairs.  [default: as in fine-tuning]", default=None)
@click.option("--all", "every_class", is_flag=True, help="Write the probability of every class.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@overwrite_option("Replace --out if it is there already.")
def predict(
    folder: str, arguments: tuple[str, ...], inputs: tuple[str, ...], out: str, overwrite: bool, **options: Any
) -> None:
    """Predict the labels, or scores, of texts with the student in FOLDER, which sd finetune made, or on the hub.

    FOLDER may also be an export of that student (sd export), which runs in ONNX Runtime on the CPU. INPUT is a file,
    folder, glob or URL, compressed or not, or - for standard input. Each row is written with what it held and its
    prediction, in the order of the input.

    \b
      sd predict finetuned/reviews new.csv -o predicted.csv
      sd predict finetuned/reviews/onnx new.csv -o predicted.csv
      cat lines.txt | sd predict finetuned/reviews > predicted.jsonl
    """
    from sentence_distill.data.corpus import Corpus, text_columns
    from sentence_distill.data.row_writer import open_writer, output_format

    locations = inputs_of(arguments, inputs, _STREAM)
    kind = options["format_"] or ("jsonl" if out == _STREAM else output_format(out))
    text_column, input_format = options["text_column"], options["input_format"]
    columns = None if text_column is None else text_columns(text_column)
    corpus = None
    if locations == (_STREAM,):
        if out != _STREAM:
            check_out_file(Path(out), [], overwrite)
    elif _STREAM in locations:
        raise click.UsageError("standard input can't be joined with files; name one or the other")
    else:
        corpus = Corpus.open(locations, format=input_format, keep_blank=True)
        if out != _STREAM:
            check_out_file(Path(out), corpus.sources, overwrite)

    from sentence_distill.student.predict import predict_rows

    classifier = _load(folder, options["device"])
    trained = classifier.task.columns
    if columns is not None and len(columns) != len(trained):
        raise UserError(f"--text-column {text_column}: {folder} reads {len(trained)} column(s) of texts")
    if options["every_class"] and classifier.task.regression:
        raise UserError(f"--all: {folder} gives scores, not classes")
    chosen = ",".join(columns or trained)
    corpus = _read_from(corpus, chosen, input_format)
    with (
        stopped_by_signals(f"stopped; {'the output ends here' if out == _STREAM else 'nothing was written'}"),
        _output(out) as file,
        open_writer(file, kind) as writer,
        progress.task("predict", None, "rows") as advance,
    ):
        counts = predict_rows(
            classifier,
            corpus.rows(),
            writer,
            columns=columns or trained,
            every_class=options["every_class"],
            advance=advance,
        )
        if not counts.rows:
            raise UserError(f"{'standard input' if locations == (_STREAM,) else ', '.join(locations)} holds no row")
    empty = f", {counts.empty:,} of them without text" if counts.empty else ""
    click.echo(f"{'standard output' if out == _STREAM else out}: {counts.rows:,} rows{empty}", err=out == _STREAM)


def _load(folder: str, device: str) -> "Classifier":
    from sentence_distill.student.onnx_student import is_export
    from sentence_distill.student.predict import Classifier

    if is_export(Path(folder)):
        return Classifier.load(folder, "cpu" if device == "auto" else device)
    # PyTorch takes most of a second to import, and an export does without.
    from sentence_distill.pipeline.hardware import pick_device

    return Classifier.load(folder, pick_device(device))


def _read_from(corpus: "Corpus | None", text_column: str, input_format: str | None) -> "Corpus":
    from dataclasses import replace

    from sentence_distill.data.corpus import Corpus

    if corpus is None:
        return Corpus.of_standard_input(input_format, text_column, keep_blank=True)
    return replace(corpus, text_column=text_column)


@contextmanager
def _output(out: str) -> Iterator[BinaryIO]:
    from sentence_distill.pipeline.files import replacing

    if out == _STREAM:
        yield sys.stdout.buffer
        return
    with replacing(Path(out)) as file:
        yield file
