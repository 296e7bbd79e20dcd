"""`sd train-student`: stage two."""

import os
import shlex
import signal

import click

from sentence_distill.cli.console import on_signals
from sentence_distill.cli.options import config_option, options_of
from sentence_distill.data.errors import UserError
from sentence_distill.student.config import TrainConfig


@click.command("train-student")
@config_option
@options_of(TrainConfig)
def train_student(config: TrainConfig) -> None:
    """Train a BiLSTM student on the shards; the teacher is never loaded.

    Writes a sentence-transformers folder: SentenceTransformer("distilled") loads it without this package.
    Each epoch is validated on held-out sentences, and the best weights are kept. Stop it when you like: the
    same command resumes it, to the bit on a CPU.

    \b
      sd train-student --shards shards/ --size small --max-time 30m
      torchrun --nproc-per-node 8 -m sentence_distill.cli train-student --shards shards/
    """
    if config.resume and config.overwrite:
        raise click.UsageError("--resume continues a run, --overwrite begins again: give one of them")
    from sentence_distill.pipeline.processes import keep_freed_memory
    from sentence_distill.student.run_folder import draw_curves
    from sentence_distill.student.train import Trainer

    trainer = Trainer(config)
    if trainer.group.device.type == "cpu":
        keep_freed_memory()

    def stop(number: int) -> None:
        """Let the run end after a whole step."""
        trainer.stop_requested = True
        if trainer.group.main:
            # Not by print: the signal may have come while something is printed.
            os.write(2, b"stopping: the step under way and a checkpoint are finished first; again to end at once\n")

    with on_signals(stop):
        try:
            record = trainer.complete()
        except UserError:
            # The launcher ends all processes when one is gone; this one has yet to say what became of the run.
            if trainer.group.size > 1:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
    if record is None:
        return
    out, scores = config.out, record.metrics["held_out"]
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
