"""`sd encode`: vectors of a file's sentences."""

import io
from contextlib import suppress
from pathlib import Path

import click

from sentence_distill.cli.console import drop_standard_output, stopped_by_signals
from sentence_distill.cli.options import options_of
from sentence_distill.data.errors import UserError
from sentence_distill.student.config import EncodeConfig

_READ = {
    "jsonl": "polars.read_ndjson({!r})",
    "parquet": "polars.read_parquet({!r})",
    "arrow": "polars.read_ipc({!r})",
    "npy": 'numpy.load({!r}, mmap_mode="r")',
}


@click.command()
@options_of(EncodeConfig)
def encode(config: EncodeConfig) -> None:
    """Encode sentences: one vector for each line, JSON object or row, in their order.

    INPUT is a file, folder, glob or fsspec URL, compressed or not, or - for standard input. The other columns of the
    input, ids for example, are written next to the vectors. Memory stays flat however long the input is. What has no
    text, a null or bytes that are not UTF-8, gets a vector of zeros and is counted.

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
        return f"stopped; {out}.parts holds what is encoded: run the same command again to resume"

    try:
        with stopped_by_signals(stopped):
            done = encode_files(config)
    except UserError:
        if config.out == "-":
            # A program may have put a stream of its own there.
            with suppress(io.UnsupportedOperation):
                drop_standard_output()
        raise
    if done.counts.empty:
        click.echo(
            f"{done.counts.empty:,} of {done.counts.rows:,} rows have no text and vectors of zeros "
            f"({done.counts.describe()})",
            err=True,
        )
    if config.out != "-":
        click.echo(
            f"{out}: {done.counts.rows:,} vectors of {done.dim} {config.dtype}, {out.stat().st_size / 1e6:,.1f} MB\n"
            f"read it: {_READ[done.format].format(config.out)}"
        )
