"""`sd predict`: labels, or scores, for the texts of files."""

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.options import options_of
from sentence_distill.student.config import PredictConfig


@click.command()
@options_of(PredictConfig)
def predict(config: PredictConfig) -> None:
    """Predict the labels, or scores, of texts with the student in FOLDER, which sd finetune made, or on the hub.

    FOLDER may also be an export of that student (sd export), which runs in ONNX Runtime on the CPU. INPUT is a file,
    folder, glob or URL, compressed or not, or - for standard input. Each row is written with what it held and its
    prediction, in the order of the input.

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
    click.echo(f"{'standard output' if stream else config.out}: {counts.rows:,} rows{empty}", err=stream)
