"""`sd encode`: vectors of a file's sentences."""

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.cli.console import stopped_by_signals
from sentence_distill.cli.legacy_options import (
    input_arguments,
    input_format_option,
    inputs_of,
    overwrite_option,
    text_column_option,
)
from sentence_distill.cli.out_file import check_free
from sentence_distill.data.errors import UserError
from sentence_distill.data.records import FORMATS
from sentence_distill.student.config import DEFAULT_STUDENT

if TYPE_CHECKING:
    from sentence_distill.data.corpus import Corpus
    from sentence_distill.student.encode_files import Encoded, TextEncoder

_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
    ".npy": "npy",
}
_READ = {
    "jsonl": "polars.read_ndjson({!r})",
    "parquet": "polars.read_parquet({!r})",
    "arrow": "polars.read_ipc({!r})",
    "npy": 'numpy.load({!r}, mmap_mode="r")',
}


@click.command()
@input_arguments(None)
@click.option(
    "--student",
    default=None,
    metavar="NAME",
    help="Folder or name on the hub of a student, or folder of its export.  [default: distilled; if there is none, the "
    "packaged wiki-small]",
)
@click.option(
    "-o",
    "--out",
    default="-",
    metavar="FILE",
    help="File of the vectors; a run that was stopped is resumed.  [default: standard output]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["jsonl", "parquet", "arrow", "npy"]),
    default=None,
    help="Format of --out.  [default: by its name; to standard output jsonl]",
)
@input_format_option(FORMATS)
@text_column_option("Column of the text.", aliases=["--text-field"])
@click.option(
    "--columns",
    default=None,
    metavar="NAME[,NAME]",
    help="Columns of the input to write next to the vectors.  [default: all]",
)
@click.option("--no-text", is_flag=True, help="Write the vectors alone; npy always does.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Type of the vectors.",
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "onnx", "torch"]),
    default="auto",
    show_default=True,
    help="What computes: int8 in ONNX Runtime, the fastest on a CPU, or PyTorch. auto takes PyTorch on a GPU, or if "
    "--precision or --device is given.",
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default=None,
    help="Compute dtype in PyTorch.  [default: auto, bf16 if the hardware supports it]",
)
@click.option("--device", default=None, help="Device of PyTorch: auto, cpu, cuda or cuda:N.  [default: auto]")
@click.option("--threads", type=click.IntRange(1), default=None, help="Number of CPU threads.  [default: all cores]")
@overwrite_option("Replace --out if it is there already; begin again if another run was stopped.")
def encode(arguments: tuple[str, ...], inputs: tuple[str, ...], student: str | None, out: str, **options: Any) -> None:
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
    from sentence_distill.cli.console import drop_standard_output
    from sentence_distill.student.encode_files import EncodeConfig, FileEncoder, parts_folder

    format_ = _format(out, options["format_"])
    columns = _columns(options)
    if out != "-":
        check_free(Path(out), options["overwrite"])
    corpus = _open(inputs_of(arguments, inputs), out, options)
    if options["threads"]:
        # The tokenizers library reads it when it is first used.
        os.environ["RAYON_NUM_THREADS"] = str(options["threads"])
    loaded, runs = _load(student or _default_student(), options)
    click.echo(f"encoding by {runs}", err=True)
    config = EncodeConfig(dtype=options["dtype"], columns=columns, format=format_)
    encoder = FileEncoder(loaded, corpus, config)
    if out == "-":
        try:
            with stopped_by_signals("stopped before the end of the input"):
                _summary(encoder.stream(sys.stdout.buffer))
        except UserError:
            drop_standard_output()
            raise
        return

    def stopped() -> str:
        if not parts_folder(Path(out)).exists():
            return "stopped before the first part was encoded; nothing was written"
        return f"stopped; {out}.parts holds what is encoded: run the same command again to resume"

    with stopped_by_signals(stopped):
        done = encoder.write(Path(out), overwrite=options["overwrite"])
    _summary(done)
    click.echo(
        f"{out}: {done.rows:,} vectors of {loaded.dim} {options['dtype']}, {Path(out).stat().st_size / 1e6:,.1f} MB\n"
        f"read it: {_READ[format_].format(out)}"
    )


def _columns(options: dict[str, Any]) -> tuple[str, ...] | None:
    if options["no_text"]:
        if options["columns"] is not None:
            raise click.UsageError("--no-text writes no column next to the vectors, --columns some; give one of them")
        return ()
    if options["columns"] is None:
        return None
    return tuple(dict.fromkeys(name.strip() for name in options["columns"].split(",") if name.strip()))


def _default_student() -> str:
    from sentence_distill.student.hub import SMALL

    if Path(DEFAULT_STUDENT).exists():
        return DEFAULT_STUDENT
    click.echo(f"there is no {DEFAULT_STUDENT} here: the packaged student {SMALL} encodes", err=True)
    return SMALL


def _load(student: str, options: dict[str, Any]) -> "tuple[TextEncoder, str]":
    """Open what encodes; return it with a line that says what it is."""
    from sentence_distill.student.onnx_student import ExportRecord, is_export

    of_torch = [f"--{name}" for name in ("precision", "device") if options[name] is not None]
    backend, threads = options["backend"], options["threads"]
    export = is_export(Path(student))
    if export or backend == "onnx":
        if of_torch:
            other = f"{student} is an export, which runs in ONNX Runtime" if export else "the backend is onnx"
            raise click.UsageError(f"{of_torch[0]} is of PyTorch, and {other}")
        if export and backend == "torch":
            raise click.UsageError(f"{student} is an export, which PyTorch does not run; name the student's folder")
    if export:
        from sentence_distill.student.onnx_student import OnnxStudent

        dtype = "int8" if ExportRecord.read(Path(student)).int8 else "float32"
        return OnnxStudent.of_export(Path(student), threads or 0), f"{student}: {dtype} in ONNX Runtime"
    if backend == "onnx" or (backend == "auto" and not of_torch and not _has_gpu()):
        from sentence_distill.student.hub import locate_student
        from sentence_distill.student.onnx_encoder import open_onnx
        from sentence_distill.student.onnx_student import OnnxStudent

        folder = locate_student(student)
        if opened := open_onnx(backend, lambda: OnnxStudent.of_student(folder, threads or 0)):
            return opened, f"{student}: int8 in ONNX Runtime"
    return _load_torch(student, options)


def _has_gpu() -> bool:
    # PyTorch takes most of a second to import, which is left out where no driver of a GPU is (NVIDIA's, WSL's, AMD's).
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")):
        return False
    import torch

    return torch.cuda.is_available()


def _load_torch(student: str, options: dict[str, Any]) -> "tuple[TextEncoder, str]":
    import torch

    from sentence_distill.pipeline.hardware import STUDENT, pick_device, pick_precision
    from sentence_distill.student.model import Student, TorchEncoder

    if options["threads"]:
        torch.set_num_threads(options["threads"])
    device = pick_device(options["device"] or "auto")
    precision = pick_precision(options["precision"] or "auto", device, STUDENT)
    loaded = Student.load(student, backend="torch")
    loaded.encoder.to(device)
    name = str(precision).removeprefix("torch.")
    return TorchEncoder(loaded, precision), f"{student}: {name} in PyTorch on {device}"


def _format(out: str, given: str | None) -> str:
    if out == "-":
        if given == "npy":
            raise click.UsageError("--format npy needs a file: how many rows there are stands at its start; name --out")
        return given or "jsonl"
    if given or (given := _BY_SUFFIX.get(Path(out).suffix.lower())):
        return given
    raise click.UsageError(f"--out {out}: name it .parquet, .arrow, .jsonl or .npy, or say --format")


def _open(inputs: tuple[str, ...], out: str, options: dict[str, Any]) -> "Corpus":
    from sentence_distill.data.corpus import Corpus, text_columns
    from sentence_distill.student.encode_files import parts_folder

    format_, text_column = options["input_format"], options["text_column"]
    if len(text_columns(text_column)) > 1:
        raise click.UsageError(f"--text-column {text_column}: one column; a pair is encoded in two runs, a side each")
    if "-" not in inputs:
        parts = None if out == "-" else parts_folder(Path(out))
        corpus = Corpus.open(
            inputs,
            format=format_,
            text_column=text_column,
            keep_blank=True,
            leave_out=parts,
            log=partial(click.echo, err=True),
        )
        if any(source.is_file(Path(out)) for source in corpus.sources):
            raise UserError(f"--out {out} is among the input; name another file")
        corpus.check()
        return corpus
    if len(inputs) > 1 or out != "-":
        raise click.UsageError(
            "standard input goes to standard output alone, since it can't be read again; give a file to be able to "
            "resume after a stop"
        )
    return Corpus.of_standard_input(format_, text_column, keep_blank=True)


def _summary(done: "Encoded") -> None:
    if done.without_text:
        click.echo(
            f"{sum(done.without_text.values()):,} of {done.rows:,} rows have no text and vectors of zeros "
            f"({done.describe()})",
            err=True,
        )
