"""`sd train-student`: stage two."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sentence_distill.data.errors import UserError

if TYPE_CHECKING:
    from sentence_distill.student.train import Trainer

DEFAULT_STUDENT = "distilled"


@click.command("train-student")
@click.option(
    "--shards",
    type=click.Path(path_type=Path),
    default="shards",
    show_default=True,
    help="Folder that sd embed made.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=DEFAULT_STUDENT,
    show_default=True,
    help="Folder of the student and its checkpoints.",
)
@click.option(
    "--embedding-dim", default=300, show_default=True, type=click.IntRange(1), help="Width of the word embeddings."
)
@click.option("--hidden", default=300, show_default=True, type=click.IntRange(1), help="LSTM units in each direction.")
@click.option("--layers", default=1, show_default=True, type=click.IntRange(1), help="LSTM layers.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "max", "mean+max"]),
    default="mean",
    show_default=True,
    help="From the states of all tokens to one vector.",
)
@click.option(
    "--init",
    type=click.Choice(["pca", "random"]),
    default="pca",
    show_default=True,
    help="Word embeddings: the teacher's reduced by PCA, or random.",
)
@click.option("--loss", type=click.Choice(["cosine", "mse", "both"]), default="cosine", show_default=True)
@click.option("--epochs", default=3, show_default=True, type=click.IntRange(1))
@click.option(
    "--batch-size",
    default=128,
    show_default=True,
    type=click.IntRange(1),
    help="Sentences of a batch, all of one length.",
)
@click.option(
    "--learning-rate",
    default=4e-3,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Peak, after warm-up.",
)
@click.option("--warmup", default=0.05, show_default=True, type=click.FloatRange(0, 1), help="Share of the steps.")
@click.option("--weight-decay", default=0.01, show_default=True, type=click.FloatRange(0))
@click.option(
    "--clip",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, min_open=True),
    help="Largest norm of the gradient.",
)
@click.option(
    "--held-out",
    default=0.01,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the sentences never trained on.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "bf16", "fp32"]),
    default="auto",
    show_default=True,
    help="Of the LSTM's arithmetic; auto is bf16 where the hardware has it.",
)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint in --out.")
@click.option("--overwrite", is_flag=True, help="Begin again where --out holds a run already.")
def train_student(
    shards: Path, out: Path, device: str, precision: str, resume: bool, overwrite: bool, **options: Any
) -> None:
    """Train a BiLSTM student on the shards; the teacher is never loaded.

    Writes a sentence-transformers folder: SentenceTransformer("distilled") loads it without this package.
    Each epoch is validated on held-out sentences, and the best one is kept.
    """
    from dataclasses import fields

    from sentence_distill.cli.console import ConsoleProgress
    from sentence_distill.pipeline.lock import lock_folder
    from sentence_distill.pipeline.manifest import require_manifest
    from sentence_distill.pipeline.precision import pick_device, pick_precision
    from sentence_distill.student.config import StudentConfig, TrainConfig
    from sentence_distill.student.train import Trainer
    from sentence_distill.student.write import write_trained

    if ":/" in str(shards):
        raise UserError(f"{shards} is a URL, and shards are mapped into memory; copy them to a local folder first")
    config = TrainConfig(**{field.name: options[field.name] for field in fields(TrainConfig)})
    fingerprint = require_manifest(shards)["fingerprint"]
    targets = len(fingerprint["layers"])
    student = StudentConfig(
        vocabulary=fingerprint["vocabulary"],
        target_dims=(fingerprint["dim"] // targets,) * targets,
        # The cosine leaves the length of the student's vectors open, so they get length 1.
        normalize=fingerprint["normalize"] or config.loss == "cosine",
        **{name: options[name] for name in ("embedding_dim", "hidden", "layers", "pooling")},
    )
    progress = ConsoleProgress()
    where = pick_device(device)
    _refuse_used(out, resume, overwrite)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(
        shards=shards,
        out=out,
        student=student,
        config=config,
        device=where,
        precision=pick_precision(precision, where),
        progress=progress,
    )
    if resume:
        trainer.resume()
    progress.log(
        f"student: {sum(p.numel() for p in trainer.encoder.parameters()):,} parameters; {trainer.steps:,} steps "
        f"over {trainer.stream.train_rows:,} sentences, {len(trainer.held_out_ids):,} held out; on {where}"
    )
    with lock_folder(out), _stopping_on_signals(trainer):
        scores = write_trained(out, trainer.run(), trainer, shards)
    click.echo(
        f"{out}: student with held-out cosine {scores['cosine']:.4f}, rank agreement {scores['rank_agreement']:.4f}\n"
        f"next: sd eval --student {out}, sd eval --glue --student {out}"
    )


def _refuse_used(out: Path, resume: bool, overwrite: bool) -> None:
    if resume or overwrite:
        return
    if (out / "distillation.json").exists():
        raise UserError(
            f"{out} holds a student already; measure it with sd eval, or train anew with --overwrite or another --out"
        )
    if (out / "checkpoints" / "last.pt").exists():
        raise UserError(f"{out} holds a run that was stopped; go on with --resume, or begin again with --overwrite")


@contextmanager
def _stopping_on_signals(trainer: "Trainer") -> Iterator[None]:
    """Let Ctrl-C and a scheduler's SIGTERM end the run behind a whole step; a second one ends it at once."""
    import signal

    def stop(number: int, frame: object) -> None:
        trainer.stop_requested = True
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
