"""Stage two: `sd train-student`."""

import os
import shlex
import signal

import click

from sentence_distill.cli.console import on_signals
from sentence_distill.cli.options import SectionedCommand, config_option, options_of
from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import counted
from sentence_distill.student.config import TrainConfig


@click.command("train-student", cls=SectionedCommand)
@config_option
@options_of(
    TrainConfig,
    basic=(
        *("shards", "out", "size", "init", "corpus", "epochs", "max_time", "batch_size", "learning_rate", "seed"),
        *("device", "resume", "overwrite"),
    ),
)
def train_student(config: TrainConfig) -> None:
    """Train a BiLSTM student on the shards, without the teacher.

    The result is a sentence-transformers folder: SentenceTransformer("distilled") loads it without this package. Each
    epoch ends with a validation on held-out sentences, and the best weights are kept. Run the same command again to
    resume a run that was stopped; on a CPU the result is bit-identical to that of an uninterrupted run.

    \b
      sd train-student --shards shards/ --size small --max-time 30m
      torchrun --nproc-per-node 8 -m sentence_distill.cli train-student --shards shards/
    """
    if config.resume and config.overwrite:
        raise click.UsageError("--resume continues a run, --overwrite starts over: give one of them")
    from sentence_distill.pipeline.processes import keep_freed_memory
    from sentence_distill.student.run_folder import draw_curves
    from sentence_distill.student.train import Trainer

    trainer = Trainer(config)
    if trainer.group.device.type == "cpu":
        keep_freed_memory()

    def stop(number: int) -> None:
        """Request a stop after the current step."""
        trainer.stop_requested = True
        if trainer.group.main:
            # `print` is not reentrant, and the signal may have interrupted one.
            os.write(2, b"stopping after this step and a checkpoint; send the signal again to stop immediately\n")

    with on_signals(stop):
        try:
            record = trainer.complete()
        except UserError:
            # The launcher terminates all processes once one has exited; this one still has an error to report.
            if trainer.group.size > 1:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            raise
    if record is None:
        return
    out, scores = config.out, record.metrics["held_out"]
    try:
        curves = f"; curves: {draw_curves(out)}"
    except ImportError:
        curves = "; install matplotlib for the training curves"
    name = shlex.quote(str(out))
    click.echo(
        f"{out}: student with held-out cosine {scores['cosine']:.4f}, rank agreement {scores['rank_agreement']:.4f} "
        f"(over {counted(scores['rows'], 'held-out sentence')})\n"
        f"log: {out / 'metrics.jsonl'}{curves}\n"
        f"next: sd eval {name}, sd encode --student {name} --input FILE --out vectors.parquet, sd export {name}"
    )
