"""Stage two: the student learns the teacher's vectors from the shards."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.utils import clip_grad_norm_

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import Progress
from sentence_distill.pipeline.fingerprint import differing_fields
from sentence_distill.pipeline.manifest import TOKENIZER, WORD_EMBEDDINGS
from sentence_distill.student.checkpoint import load_checkpoint, save_checkpoint
from sentence_distill.student.config import StudentConfig, TrainConfig
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.fidelity import fidelity, public_targets
from sentence_distill.student.init import initial_embeddings
from sentence_distill.student.losses import distillation_loss
from sentence_distill.student.model import Student, encode_tokens
from sentence_distill.student.stream import Batch, ShardStream

LAST = "checkpoints/last.pt"
BEST = "checkpoints/best.pt"
# A kill costs at most this much work.
CHECKPOINT_EVERY_S = 300.0


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Learning rate of `step` (from 0) of `steps`: linear warm-up, then half a cosine down to 0."""
    warmup = max(1, round(config.warmup * steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass
class State:
    """Where a run stands; with the weights and the optimizer's moments it is all that a resume needs."""

    epoch: int = 0
    """Epochs that are complete."""
    step: int = 0
    """Steps done, over all epochs."""
    step_in_epoch: int = 0
    """Steps done in the current epoch."""
    best: float = -math.inf
    """Highest held-out cosine so far."""
    rows: int = 0
    """Sentences done in the current epoch."""


class Trainer:
    """One training run.

    Attributes:
        stop_requested: set it, from a signal handler for one, to stop behind the step that is under way.
    """

    def __init__(
        self,
        *,
        shards: Path,
        out: Path,
        student: StudentConfig,
        config: TrainConfig,
        device: torch.device,
        precision: torch.dtype,
        progress: Progress,
    ) -> None:
        """Check the shards and build the student with its initial weights.

        Args:
            shards: a complete folder of shards.
            out: folder of the checkpoints.
            student: shape of the student.
            config: options of the training.
            device: where to train.
            precision: bfloat16 computes the LSTM under autocast; weights and loss stay float32.
            progress: where to report.
        """
        self.config = config
        self.out = out
        self.device = device
        self.precision = precision
        self.progress = progress
        self.stream = ShardStream(shards, held_out=config.held_out)
        self.held_out_ids, self.held_out_targets = self.stream.held_out()
        torch.manual_seed(config.seed)
        self.encoder = StudentEncoder(student)
        words = load_file(shards / WORD_EMBEDDINGS)["weight"].float()
        generator = torch.Generator().manual_seed(config.seed)
        with torch.no_grad():
            self.encoder.embedding.weight.copy_(
                initial_embeddings(config.init, words, student.embedding_dim, generator)
            )
        self.encoder.to(device)
        self.tokenizer = Tokenizer.from_file(str(shards / TOKENIZER))
        self.optimizer = torch.optim.AdamW(
            self.encoder.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self.state = State()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.stop_requested = False
        self.saved = time.monotonic()
        self.history: list[dict[str, float]] = []
        per_epoch = [self.stream.steps(config.batch_size, config.seed, epoch) for epoch in range(config.epochs)]
        self.steps = sum(per_epoch)

    def run(self) -> Student:
        """Train to the end and return the best student.

        Raises:
            UserError: the loss is no longer finite, nothing is left to train on, or a stop was requested.
        """
        if not self.steps:
            raise UserError("all rows are held out; take a larger corpus, or lower --held-out")
        total = self.config.epochs * self.stream.train_rows
        with self.progress.task("train", total, "sentences") as advance:
            advance(self._rows_done())
            for epoch in range(self.state.epoch, self.config.epochs):
                mean_loss = self._epoch(epoch, advance)
                self._end_epoch(epoch, mean_loss)
        self.encoder.load_state_dict(load_checkpoint(self.out / BEST)["model"])
        return Student(self.encoder.cpu(), self.tokenizer)

    def _epoch(self, epoch: int, advance: Any) -> float:
        self.encoder.train()
        for batch in self._batches(epoch):
            loss = self._step(batch)
            advance(len(batch.targets))
            if self.state.step % 50 == 0:
                self._check(loss)
            if self.stop_requested:
                self._check(loss)
                self.save()
                raise UserError(
                    f"stopped at step {self.state.step:,} of {self.steps:,}; "
                    "the same command with --resume goes on from there"
                )
            if time.monotonic() - self.saved >= CHECKPOINT_EVERY_S:
                self._check(loss)
                self.save()
        self._check(self.loss_sum)
        return self.loss_sum.item() / self.state.rows

    def _batches(self, epoch: int) -> Iterator[Batch]:
        return self.stream.batches(
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            skip=self.state.step_in_epoch,
        )

    def _step(self, batch: Batch) -> torch.Tensor:
        rate = learning_rate(self.state.step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        autocast = torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16)
        with autocast:
            pooled = self.encoder.pool(batch.input_ids.to(self.device))
        vectors = self.encoder.targets(pooled)
        losses = distillation_loss(vectors, batch.targets.to(self.device), self.config.loss)
        # A batch that its length left small counts by its rows, so that each sentence weighs the same.
        (losses.sum() / self.config.batch_size).backward()
        clip_grad_norm_(self.encoder.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self.state.step_in_epoch += 1
        self.state.rows += len(losses)
        # Summed on the device: reading each step's loss would make it wait.
        self.loss_sum += losses.detach().sum()
        return losses.detach().mean()

    def _check(self, loss: torch.Tensor) -> None:
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss is {loss.item()} at step {self.state.step} (learning rate "
                f"{self.optimizer.param_groups[0]['lr']:.2g}); begin again with a lower --learning-rate, --overwrite"
            )

    def _end_epoch(self, epoch: int, mean_loss: float) -> None:
        self.encoder.eval()
        targets = public_targets(self.held_out_targets, self.encoder.config)
        scores = fidelity(encode_tokens(self.encoder, self.held_out_ids), targets)
        self.state.epoch, self.state.step_in_epoch, self.state.rows = epoch + 1, 0, 0
        self.loss_sum.zero_()
        self.history.append({"epoch": epoch + 1, "loss": mean_loss, **scores})
        self.progress.log(
            f"epoch {epoch + 1} of {self.config.epochs}: loss {mean_loss:.4f}, held-out cosine "
            f"{scores['cosine']:.4f}, MSE {scores['mse']:.3g}, rank agreement {scores['rank_agreement']:.4f}"
        )
        if scores["cosine"] > self.state.best:
            self.state.best = scores["cosine"]
            save_checkpoint(self.out / BEST, {"model": self.encoder.state_dict()})
        self.save()

    def _rows_done(self) -> int:
        return self.state.epoch * self.stream.train_rows + self.state.rows

    def identity(self) -> dict[str, Any]:
        """What two runs must share to be the same run."""
        student = {f"student {field}": value for field, value in asdict(self.encoder.config).items()}
        shards = {f"shards' {field}": value for field, value in self.stream.fingerprint.items()}
        return {**student, **asdict(self.config), **shards, "precision": str(self.precision)}

    def save(self) -> None:
        """Write the last checkpoint."""
        self.saved = time.monotonic()
        save_checkpoint(
            self.out / LAST,
            {
                "identity": self.identity(),
                "state": asdict(self.state),
                "history": self.history,
                "loss_sum": self.loss_sum,
                "model": self.encoder.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            },
        )

    def resume(self) -> None:
        """Go on from the last checkpoint.

        Raises:
            UserError: there is none, or it is of another run; the fields that differ are named.
        """
        checkpoint = load_checkpoint(self.out / LAST)
        if missing := {"identity", "state", "history", "loss_sum", "model", "optimizer"} - checkpoint.keys():
            raise UserError(f"{self.out / LAST} is no checkpoint of this version ({missing}); --overwrite begins again")
        if differing := differing_fields(checkpoint["identity"], self.identity()):
            raise UserError(
                f"the checkpoint in {self.out} is of another run, which differs in {'; '.join(differing)}; "
                "give that run's options, or begin again with --overwrite"
            )
        self.encoder.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.state = State(**checkpoint["state"])
        self.history = checkpoint["history"]
        self.loss_sum = checkpoint["loss_sum"].to(self.device)
