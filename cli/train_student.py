"""`sd train-student`: stage two."""

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.cli.console import end_at_once_next
from sentence_distill.cli.legacy_options import SEED, layer_numbers, seconds
from sentence_distill.cli.options import config_option
from sentence_distill.cli.out_file import remove_earlier, remove_unused, resumes
from sentence_distill.data import progress
from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from sentence_distill.student.config import StudentConfig, TrainConfig
    from sentence_distill.student.start import Start
    from sentence_distill.student.train import Trainer

DEFAULT_STUDENT = "distilled"


@click.command("train-student")
@config_option
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    default="shards",
    show_default=True,
    help="Folder that sd embed made.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_STUDENT,
    show_default=True,
    help="Folder of the student and its checkpoints.",
)
@click.option(
    "--size",
    type=click.Choice(["tiny", "small", "base", "large"]),
    help="Of the student: 2, 4, 11 or 16 million parameters; the next three options change it.  [default: base, or "
    "that of --init]",
)
@click.option("--embedding-dim", default=None, type=click.IntRange(1), help="Width of the word embeddings.")
@click.option("--hidden", default=None, type=click.IntRange(1), help="LSTM units in each direction.")
@click.option("--layers", default=None, type=click.IntRange(1), help="LSTM layers.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "max", "mean+max"]),
    help="From the states of all tokens to one vector.  [default: mean, or that of --init]",
)
@click.option(
    "--init",
    default="pca",
    show_default=True,
    metavar="pca|random|STUDENT",
    help="Word embeddings to begin with: the teacher's reduced by PCA, or random ones; or a student whose weights to "
    "begin with: a folder, wiki-small, or owner/name on the hub.",
)
@click.option(
    "--target-layers",
    callback=layer_numbers,
    metavar="N[,N…]",
    help="Which of the teacher's layers in the shards to approximate, each with a loss of its own; the last is what "
    "the student encodes to.  [default: all]",
)
@click.option("--cosine", default=1.0, show_default=True, type=click.FloatRange(0), help="Weight of 1 - cosine.")
@click.option("--mse", default=0.0, show_default=True, type=click.FloatRange(0), help="Weight of the squared error.")
@click.option(
    "--relational",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Weight of the divergence from the teacher's similarities inside a batch.",
)
@click.option(
    "--temperature",
    default=0.05,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Of the similarities of --relational.",
)
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1), help="Most passes over the shards.")
@click.option("--max-steps", default=None, type=click.IntRange(1), help="Most optimizer steps.")
@click.option(
    "--max-time",
    callback=seconds,
    metavar="TIME",
    help="Most time of training, as 90s, 30m or 2h; the learning rate ends with it.",
)
@click.option(
    "--batch-size",
    default=128,
    show_default=True,
    type=click.IntRange(1),
    help="Sentences of a batch, all of one length, of all processes together.",
)
@click.option(
    "--learning-rate",
    default=4e-3,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Peak, after warm-up.",
)
@click.option(
    "--embedding-rate",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Learning rate of the word embeddings, as a multiple of the others'.",
)
@click.option("--warmup", default=0.05, show_default=True, type=click.FloatRange(0, 1), help="Share of the run.")
@click.option("--weight-decay", default=0.01, show_default=True, type=click.FloatRange(0))
@click.option(
    "--clip",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Largest norm of the gradient.",
)
@click.option(
    "--token-dropout",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of the tokens that are hidden.",
)
@click.option(
    "--embedding-dropout",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 1, max_open=True),
    help="Share of a batch's words that are hidden wherever they stand.",
)
@click.option(
    "--held-out",
    default=None,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the sentences never trained on.  [default: 0.01, but at least 500 sentences, or a tenth of a small "
    "corpus]",
)
@click.option(
    "--train-fraction",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Share of the others to train on; says what a larger corpus would bring.",
)
@click.option("--validate-every", default=None, type=click.IntRange(1), metavar="STEPS", help="[default: each epoch]")
@click.option(
    "--patience",
    default=None,
    type=click.IntRange(1),
    help="Validations without a better held-out cosine after which to end.  [default: never]",
)
@click.option("--seed", default=0, show_default=True, type=SEED)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="Of the LSTM's arithmetic; auto is bf16 where the hardware has it.",
)
@click.option(
    "--checkpoint-every",
    default=300.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help="What a kill costs at most.",
)
@click.option(
    "--keep-checkpoints", default=2, show_default=True, type=click.IntRange(1), help="How many stay while it trains."
)
@click.option("--tensorboard/--no-tensorboard", default=False, help="Write TensorBoard's events as well.")
@click.option("--resume", is_flag=True, help="Refuse to begin a new run if --out holds none to resume.")
@click.option("--overwrite", is_flag=True, help="Begin again if --out holds a run or a student already.")
def train_student(
    shards: Path,
    out: Path,
    device: str,
    precision: str,
    checkpoint_every: float,
    keep_checkpoints: int,
    tensorboard: bool,
    resume: bool,
    overwrite: bool,
    **options: Any,
) -> None:
    """Train a BiLSTM student on the shards; the teacher is never loaded.

    Writes a sentence-transformers folder: SentenceTransformer("distilled") loads it without this package.
    Each epoch is validated on held-out sentences, and the best weights are kept. Stop it when you like: the
    same command resumes it, to the bit on a CPU.

    \b
      sd train-student --shards shards/ --size small --max-time 30m
      torchrun --nproc-per-node 8 -m sentence_distill.cli train-student --shards shards/
    """
    from dataclasses import fields

    from sentence_distill.pipeline.hardware import TRAINING, pick_precision
    from sentence_distill.student.config import TrainConfig
    from sentence_distill.student.distributed import Ranks
    from sentence_distill.student.start import Start
    from sentence_distill.student.train import Trainer

    if ":/" in str(shards):
        raise UserError(f"{shards} is a URL, and shards are mapped into memory; copy them to a local folder first")
    config = TrainConfig(**{field.name: options[field.name] for field in fields(TrainConfig)})
    start = Start.load(config.init)
    if start and out.exists() and out.samefile(start.folder):
        # A run that is stopped could not go on without it.
        raise UserError(f"{out} is the student to begin with, and stays as it is; give another --out")
    student = _student(shards, config, start, options)
    resuming = resumes(out, resume, overwrite)
    ranks = Ranks(device)
    if not ranks.main:
        progress.show_on(progress.Silent())
    dtype = pick_precision(precision, ranks.device, TRAINING)
    trainer = Trainer(
        shards=shards,
        out=out,
        student=student,
        config=config,
        ranks=ranks,
        precision=dtype,
        start=start,
        checkpoint_every=checkpoint_every,
        keep_checkpoints=keep_checkpoints,
    )
    with _stopping_on_signals(trainer):
        if ranks.main:
            _train_and_write(trainer, shards, resuming, tensorboard)
        else:
            if resuming:
                trainer.resume()
            trainer.run()


def _student(shards: Path, config: "TrainConfig", start: "Start | None", options: dict[str, Any]) -> "StudentConfig":
    from sentence_distill.pipeline.manifest import require_vectors
    from sentence_distill.student.config import StudentConfig

    fingerprint = require_vectors(shards)["fingerprint"]
    layers = len(config.target_layers or fingerprint["layers"])
    return StudentConfig(
        vocabulary=fingerprint["vocabulary"],
        target_dims=(fingerprint["dim"] // len(fingerprint["layers"]),) * layers,
        # Without the squared error the length of the student's vectors is open, so they get length 1.
        normalize=fingerprint["normalize"] or not config.mse,
        **_shape(start, options),
    )


def _shape(start: "Start | None", options: dict[str, Any]) -> dict[str, Any]:
    from sentence_distill.student.config import SIZES

    single = {name: options[name] for name in (*SIZES["base"], "pooling") if options[name] is not None}
    given = {**SIZES.get(options["size"], {}), **single}
    if start is None:
        return {**SIZES["base"], **given}
    for name, value in given.items():
        if value != start.shape[name]:
            raise UserError(
                f"--{name.replace('_', '-')} would be {value}, and that of {start.name} is {start.shape[name]}; leave "
                "out --size and what changes it, or begin with --init pca"
            )
    return start.shape


def _train_and_write(trainer: "Trainer", shards: Path, resuming: bool, tensorboard: bool) -> None:
    from sentence_distill.pipeline.files import lock_folder, made_folder
    from sentence_distill.student.log import draw_curves, summary_writer
    from sentence_distill.student.train import write_trained

    out = trainer.out
    if tensorboard:
        # Before an earlier run is removed for one that can't begin.
        summary_writer()
    with made_folder(out), lock_folder(out):
        try:
            _prepare(trainer, resuming)
            parameters = sum(weight.numel() for weight in trainer.encoder.parameters())
            progress.log(
                f"student: {parameters:,} parameters; {trainer.steps:,} steps "
                f"over {trainer.stream.train_rows:,} sentences, {len(trainer.held_out):,} held out; "
                f"{trainer.ranks.size} process(es), on {trainer.ranks.device}"
            )
            trainer.run(tensorboard=tensorboard)
            scores = write_trained(trainer, shards)
            trainer.checkpoints.remove()
        except BaseException:
            remove_unused(out)
            raise
    try:
        curves = f"; curves: {draw_curves(out)}"
    except ImportError:
        curves = "; curves are drawn where matplotlib is installed"
    name = shlex.quote(str(out))
    click.echo(
        f"{out}: student with held-out cosine {scores['cosine']:.4f}, rank agreement {scores['rank_agreement']:.4f} "
        f"(over {scores['rows']:,} held-out sentences)\n"
        f"log: {out / 'metrics.jsonl'}{curves}\n"
        f"next: sd eval {name}, sd encode --student {name} --input FILE --out vectors.parquet, sd export {name}"
    )


def _prepare(trainer: "Trainer", resuming: bool) -> None:
    trainer.checkpoints.remove_temporaries()
    if resuming:
        trainer.resume()
        progress.log(f"resuming from step {trainer.state.step:,}")
    else:
        trainer.checkpoints.remove()
        remove_earlier(trainer.out)


@contextmanager
def _stopping_on_signals(trainer: "Trainer") -> Iterator[None]:
    """Let Ctrl-C and a scheduler's SIGTERM end the run behind a whole step; a second one ends it at once."""
    import signal

    def stop(number: int, frame: object) -> None:
        trainer.stop_requested = True
        end_at_once_next()
        if trainer.ranks.main:
            # Not by print: the signal may have come while something is printed.
            os.write(2, b"stopping: the step under way and a checkpoint are finished first; again to end at once\n")

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except UserError:
        # The launcher ends all processes when one is gone; this one has yet to say what became of the run.
        if trainer.ranks.size > 1:
            before[signal.SIGTERM] = signal.SIG_IGN
        raise
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) == stop or handler == signal.SIG_IGN:
                signal.signal(number, handler)
