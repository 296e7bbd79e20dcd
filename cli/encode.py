"""`sd encode`: the sentences of a file to vectors."""

import io
from contextlib import suppress
from pathlib import Path

import click

from sentence_distill.cli.console import drop_standard_output, stopped_by_signals
from sentence_distill.cli.options import SectionedCommand, options_of
from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import counted
from sentence_distill.student.config import EncodeConfig

_READ = {
    "jsonl": "polars.read_ndjson({!r})",
    "parquet": "polars.read_parquet({!r})",
    "arrow": "polars.read_ipc({!r})",
    "npy": 'numpy.load({!r}, mmap_mode="r")',
}


@click.command(cls=SectionedCommand)
@options_of(
    EncodeConfig,
    basic=("inputs", "student", "out", "format", "text_column", "columns", "keep_columns", "device", "overwrite"),
)
def encode(config: EncodeConfig) -> None:
    """Encode sentences: one vector per line, JSON object or row.

    INPUT is a file, folder, glob or fsspec URL, compressed or not, or - for standard input. The vectors are written in
    the order of the input, next to its other columns, such as ids. Memory use does not grow with the input. A row
    without text, because of a null or bytes that are not UTF-8, gets a vector of zeros, and such rows are counted.

    \b
      sd encode queries.txt -o queries.parquet
      sd encode tickets.csv --text-column body --columns id -o tickets.parquet
      sd encode 'logs/*.jsonl.zst' --text-column message -o logs.npy --dtype float16
      zcat titles.gz | sd encode - --no-text > vectors.jsonl
    """
    from sentence_distill.student.file_job import encode_files, parts_folder

    out = Path(config.out)

    def stopped() -> str:
        if config.out == "-":
            return "stopped before the end of the input"
        if not parts_folder(out).exists():
            return "stopped before the first part was encoded; nothing was written"
        return f"stopped; {out}.parts keeps the finished parts: run the same command again to resume"

    try:
        with stopped_by_signals(stopped):
            done = encode_files(config)
    except UserError:
        if config.out == "-":
            # A program that calls this function may have replaced sys.stdout.
            with suppress(io.UnsupportedOperation):
                drop_standard_output()
        raise
    if done.counts.empty:
        click.echo(
            f"{done.counts.empty:,} of {counted(done.counts.rows, 'row')} without text, encoded as zeros "
            f"({done.counts.describe()})",
            err=True,
        )
    if config.out != "-":
        click.echo(
            f"{out}: {counted(done.counts.rows, 'vector')} of {done.dim} {config.dtype}, "
            f"{out.stat().st_size / 1e6:,.1f} MB\n"
            f"read it: {_READ[done.format].format(config.out)}"
        )
