"""Train a student on shards."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.progress import Advance
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.manifest import require_vectors
from sentence_distill.pipeline.processes import keep_freed_memory
from sentence_distill.pipeline.records import TOKENIZER, WORD_EMBEDDINGS, as_dict
from sentence_distill.student.checkpoint import Checkpoints, State
from sentence_distill.student.config import StudentConfig, TrainConfig, default_held_out
from sentence_distill.student.dataset import Batch, LostShardError, ShardStream
from sentence_distill.student.distributed import LostRankError, Ranks
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.files import shards_place
from sentence_distill.student.log import Meter, TrainingLog
from sentence_distill.student.metrics import SCORES, fidelity, public_targets
from sentence_distill.student.model import Student, encode_tokens, save_student
from sentence_distill.student.optim import Optimizer, learning_rate
from sentence_distill.student.start import Start, initial_embeddings
from sentence_distill.student.step import Stepper


class HeldOut:
    """Sentences that are never trained on."""

    def __init__(self, stream: ShardStream) -> None:
        """Read them.

        Raises:
            UserError: they are too few.
        """
        self._tokens, self._targets = stream.held_out()

    def __len__(self) -> int:
        return len(self._tokens)

    def scores(self, encoder: StudentEncoder, ranks: Ranks) -> dict[str, float]:
        """Fidelity of the student (see `fidelity`), the same for all processes.

        One measures and tells the others, so that all take the same decision: another machine might round otherwise.

        Raises:
            LostRankError: another process is gone.
        """
        scores = torch.zeros(len(SCORES), dtype=torch.float64, device=ranks.device)
        if ranks.main:
            dim, normalize = encoder.config.target_dims[-1], encoder.config.normalize
            targets = public_targets(self._targets, dim, normalize=normalize)
            found = fidelity(encode_tokens(encoder, self._tokens), targets)
            scores.copy_(torch.tensor([found[name] for name in SCORES]))
        ranks.sum([scores])
        return dict(zip(SCORES, scores.tolist(), strict=True))


# Stage two: the student learns the teacher's vectors from the shards.

LOG_EVERY = 50
# Processes tell each other of the clock and of a request to stop; it costs a wait for the device.
_AGREE_EVERY = 10


class Trainer:
    """One training run, or one process's part in it.

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
        ranks: Ranks,
        precision: torch.dtype,
        start: Start | None = None,
        checkpoint_every: float = 300.0,
        keep_checkpoints: int = 2,
    ) -> None:
        """Check the shards and build the student with its initial weights.

        Args:
            shards: a complete folder of shards.
            out: folder of the student, its checkpoints and its log.
            student: shape of the student.
            config: options of the training.
            ranks: the processes that train together.
            precision: bfloat16 computes the LSTM under autocast; weights and loss stay float32.
            start: what `config.init` names, if that is a student.
            checkpoint_every: seconds between two checkpoints; a kill costs at most this much work.
            keep_checkpoints: how many stay.

        Raises:
            UserError: nothing is left to train on, or the shards do not fit the start.
        """
        if config.held_out is None:
            config = replace(config, held_out=default_held_out(require_vectors(shards).totals.rows))
        assert config.held_out is not None
        self.config = config
        self.out = out
        self.ranks = ranks
        self.precision = precision
        self.stream = ShardStream(
            shards, held_out=config.held_out, layers=config.target_layers, train_fraction=config.train_fraction
        )
        self.held_out = HeldOut(self.stream)
        torch.manual_seed(config.seed)
        self.encoder = StudentEncoder(student)
        self.tokenizer = TextTokenizer((shards / TOKENIZER).read_text(encoding="utf-8"))
        self.start = start
        self._set_initial_weights(shards)
        self.encoder.to(ranks.device)
        self.optimizer = Optimizer(self.encoder, config)
        self.stepper = Stepper(self.encoder, config, precision, ranks)
        self.checkpoints = Checkpoints(out, keep_checkpoints)
        self.state = State()
        self.stop_requested = False
        self.history: list[dict[str, float]] = []
        per_epoch = (self.stream.steps(config.batch_size, config.seed, epoch) for epoch in range(config.epochs))
        self.steps = min(sum(per_epoch), config.max_steps or 1 << 62)
        if not self.steps:
            raise UserError(
                "no row is left to train on; take a larger corpus, lower --held-out or raise --train-fraction"
            )
        self._checkpoint_every = checkpoint_every
        self._loss = torch.zeros((), dtype=torch.float64, device=ranks.device)
        self._began = self._saved = time.monotonic()
        self._meter = Meter(0)

    def _set_initial_weights(self, shards: Path) -> None:
        """Those of the start, or the word embeddings that `config.init` asks for beside random weights."""
        if self.start is None:
            words = load_file(shards / WORD_EMBEDDINGS)["weight"].float()
            generator, table = torch.Generator().manual_seed(self.config.seed), self.encoder.embedding.weight
            with torch.no_grad():
                table.copy_(initial_embeddings(self.config.init, words, table.shape[1], generator))
        else:
            for note in self.start.copy_into(self.encoder, self.tokenizer):
                progress.log(note)

    def run(self, *, tensorboard: bool = False) -> None:
        """Train to the end.

        Args:
            tensorboard: write TensorBoard's events.

        Raises:
            UserError: the loss is no longer finite, a stop was requested, or another process of the run died.
            OSError: a checkpoint could not be written.
        """
        log = self._open_log(tensorboard) if self.ranks.main else None
        self._saved = time.monotonic()
        self._began = self._saved - self.state.seconds
        self._meter = Meter(self.state.sentences)
        if self.ranks.device.type == "cpu":
            keep_freed_memory()
        self.encoder.train()
        try:
            with progress.task("train", self._sentences(), "sentences", self.state.sentences) as advance:
                self.ranks.share_first(list(self.encoder.parameters()))
                if self.start is not None and not self.state.step:
                    self._validate_start(self.start)
                self._validate_if_due(log)
                while not self._finished():
                    self._epoch(advance, log)
            # What is left is to write the student, which a full disk may prevent.
            self.save()
            self.checkpoints.wait()
        except (LostRankError, LostShardError) as error:
            raise UserError(f"{error}; {self._save_what_is_left()}") from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"memory ran out at step {self.state.step:,} ({first_line(error)}); take a smaller --size or "
                "--batch-size"
            ) from error
        finally:
            if log is not None:
                log.close()

    def _save_what_is_left(self) -> str:
        """Save the last whole step, which is that of all processes, from whichever of them is left; say so."""
        if not self.state.step:
            return "no step was done yet"
        self._write_checkpoint()
        self.checkpoints.wait()
        return f"stopped at step {self.state.step:,}; the same command resumes from there"

    def best_student(self) -> tuple[Student, dict[str, float]]:
        """The student of the best validation and its entry of the history; for the main process, which wrote it."""
        best = self.checkpoints.best()
        self.encoder.load_state_dict(best["model"])
        return Student(self.encoder.cpu(), self.tokenizer), best["entry"]

    def _open_log(self, tensorboard: bool) -> TrainingLog:
        validated = int(self.history[-1]["step"]) if self.history else 0
        return TrainingLog(self.out, step=self.state.step, validated=validated, tensorboard=tensorboard)

    def _sentences(self) -> int | None:
        """How many there are to train on if patience does not end the run before; None where a clock ends it."""
        if self.config.max_time is not None:
            return None
        whole = self.config.epochs * self.stream.train_rows
        return whole if self.config.max_steps is None else min(whole, self.steps * self.config.batch_size)

    def _finished(self) -> bool:
        config, state = self.config, self.state
        return (
            state.step >= self.steps
            or (config.max_time is not None and state.seconds >= config.max_time)
            or (config.patience is not None and state.worse >= config.patience)
        )

    def _epoch(self, advance: Advance, log: TrainingLog | None) -> None:
        for batch in self._meter.waiting(self._batches()):
            loss, norm = self._step(batch)
            advance(len(loss), self._report(loss, norm, log) if self.state.step % LOG_EVERY == 0 else "")
            stop = self._agree()
            self._validate_if_due(log)
            self._save_or_stop(stop)
            if self._finished():
                return
        self.state.epoch, self.state.step_in_epoch = self.state.epoch + 1, 0
        if self._validate_if_due(log):
            self.save()

    def _batches(self) -> Iterator[Batch]:
        """The rest of the current epoch."""
        return self.stream.batches(
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=self.state.epoch,
            skip=self.state.step_in_epoch,
        )

    def _step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on a batch: the loss of each sentence, and the norm of the gradient."""
        config, state = self.config, self.state
        pieces = self.stepper.pieces
        loss, words = self.stepper.gradient(batch, state.step)
        if self.stepper.pieces > pieces:
            progress.log(f"memory ran out; a batch is computed in {self.stepper.pieces} pieces from now on")
        weights = [*self.optimizer.dense, words.rows]
        for weight in weights:
            # A process whose share of a small batch is empty.
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        self.ranks.sum([weight.grad for weight in weights if weight.grad is not None])
        done = (state.step + 1) / (self.steps + 1)
        if config.max_time is not None:
            done = max(done, min(1.0, state.seconds / config.max_time))
        norm = self.optimizer.step(learning_rate(done, config), words.words, words.rows)
        state.step += 1
        state.step_in_epoch += 1
        state.sentences += len(loss)
        # Summed on the device: reading each step's loss would make it wait.
        self._loss += loss.sum()
        return loss, norm

    def _agree(self) -> bool:
        """Let all processes know the same of the clock and of a request to stop; whether there is one."""
        if self.ranks.size > 1 and self.state.step % _AGREE_EVERY:
            return False
        seconds = time.monotonic() - self._began
        told = torch.tensor([seconds if self.ranks.main else 0.0, float(self.stop_requested)])
        if self.ranks.size > 1:
            told = told.to(self.ranks.device)
            self.ranks.sum([told])
        self.state.seconds, stops = told.tolist()
        return stops > 0

    def _report(self, loss: torch.Tensor, norm: torch.Tensor, log: TrainingLog | None) -> str:
        """Log the step that was done; what the progress bar shows of it."""
        self._require_finite(torch.stack([loss.mean(), norm]))
        rates = self._meter.rates(self.state.sentences)
        values = {
            "epoch": self.state.sentences / self.stream.train_rows,
            "loss": loss.mean().item(),
            "learning_rate": self.optimizer.rate,
            "gradient_norm": norm.item(),
            "seconds": self.state.seconds,
            **rates,
        }
        if log is not None:
            log.write("train", self.state.step, values)
        note = f"loss {values['loss']:.4f}, waits {rates['wait_share']:.1%}"
        if self.config.max_time is not None:
            note += f", {max(0.0, self.config.max_time - self.state.seconds):,.0f} s left"
        return note

    def _require_finite(self, values: torch.Tensor) -> None:
        if not torch.isfinite(values).all():
            raise UserError(
                f"the loss or a weight is no longer finite at step {self.state.step:,} (learning rate "
                f"{self.optimizer.rate:.2g}); begin again with a lower --learning-rate, --overwrite"
            )

    def _save_or_stop(self, stop: bool) -> None:
        self.checkpoints.check()
        if stop:
            self.save()
            self.checkpoints.wait()
            raise UserError(
                f"stopped at step {self.state.step:,} of {self.steps:,}; the same command resumes from there"
            )
        if time.monotonic() - self._saved >= self._checkpoint_every:
            self.save()

    def _validate_if_due(self, log: TrainingLog | None) -> bool:
        """Validate at the end, and each epoch or so many steps, once each; whether it was time."""
        config, state = self.config, self.state
        regular = state.step % config.validate_every if config.validate_every else state.step_in_epoch
        if state.sentences == state.validated or (regular and not self._finished()):
            return False
        self._validate(log)
        return True

    def _validate_start(self, start: Start) -> None:
        """Measure what training begins with, which stays the best so far until a validation is better."""
        entry = {"step": 0, **self.held_out.scores(self.encoder, self.ranks)}
        progress.log(f"{start.name}, before training: held-out cosine {entry['cosine']:.4f}")
        self._keep_as_best(entry)

    def _validate(self, log: TrainingLog | None) -> None:
        """Measure the student on the held-out sentences, and keep its weights if it is the best so far."""
        state = self.state
        scores = self.held_out.scores(self.encoder, self.ranks)
        self._require_finite(torch.tensor([self._loss.item(), scores["cosine"]]))
        entry = {
            "epoch": state.sentences / self.stream.train_rows,
            "step": state.step,
            "loss": self._loss.item() / (state.sentences - state.validated),
            **scores,
        }
        self._loss.zero_()
        state.validated = state.sentences
        self.history.append(entry)
        progress.log(
            f"step {state.step:,} of {self.steps:,} (epoch {entry['epoch']:.2f}): loss {entry['loss']:.4f}, held-out "
            f"cosine {entry['cosine']:.4f}, MSE {entry['mse']:.3g}, rank agreement {entry['rank_agreement']:.4f}"
        )
        if log is not None:
            log.write("validation", state.step, {name: entry[name] for name in ("epoch", "loss", *SCORES)})
        state.worse += 1
        if entry["cosine"] > state.best:
            self._keep_as_best(entry)

    def _keep_as_best(self, entry: dict[str, float]) -> None:
        self.state.best, self.state.worse = entry["cosine"], 0
        if self.ranks.main:
            self.checkpoints.save_best({"model": self.encoder.state_dict(), "entry": entry})

    def identity(self) -> dict[str, Any]:
        """What two runs must share to be the same run; the number of processes is not part of it."""
        student = {f"student {field}": value for field, value in asdict(self.encoder.config).items()}
        shards = {f"shards' {field}": value for field, value in as_dict(self.stream.fingerprint).items()}
        start = {"weights of init": self.start.weights} if self.start else {}
        return {**student, **asdict(self.config), **start, **shards, "precision": str(self.precision)}

    def save(self) -> None:
        """Let a checkpoint be written, by the first process."""
        self._saved = time.monotonic()
        if self.ranks.main:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        # A gradient that was not finite shows in the weights, and one of them would spoil the run for good.
        self._require_finite(torch.stack([weight.sum() for weight in self.encoder.parameters()]))
        self.state.loss = self._loss.item()
        self.checkpoints.save(
            self.state.step,
            {
                "identity": self.identity(),
                "state": asdict(self.state),
                "history": self.history,
                "model": self.encoder.state_dict(),
                "optimizers": self.optimizer.state_dict(),
            },
        )

    def resume(self) -> None:
        """Go on from the newest checkpoint.

        Raises:
            UserError: there is none, or it is of another run; the options that differ are named.
        """
        checkpoint = self.checkpoints.newest()
        if missing := {"identity", "state", "history", "model", "optimizers"} - checkpoint.keys():
            raise UserError(f"the checkpoint in {self.out} is of another version ({missing}); --overwrite begins again")
        # An option that came later is at its default in a run from before.
        identity = {**asdict(TrainConfig()), **checkpoint["identity"]}
        if differing := _differing_options(identity, self.identity()):
            raise UserError(
                f"{self.out} holds a stopped run with other options: {'; '.join(differing)}; give those of that run to "
                "resume it, or --overwrite begins again"
            )
        self.encoder.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizers"])
        self.state = State(**checkpoint["state"])
        self.history = checkpoint["history"]
        self._loss.fill_(self.state.loss)


# What follows from the shards and from other options.
_DERIVED = ("student vocabulary", "student target_dims", "student normalize")


def _differing_options(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The options in which two runs differ, as a user gives them; see `Trainer.identity`."""
    fields = [field for field in sorted(old.keys() | new.keys()) if old.get(field) != new.get(field)]
    options, shards = [], []
    for field in fields:
        if field.startswith("shards' "):
            name = field.removeprefix("shards' ")
            shards.append(next((part for part in ("corpus", "teacher") if name.startswith(part)), name))
        elif field == "weights of init":
            options.append("--init names a student with other weights")
        elif field not in _DERIVED:
            option = field.removeprefix("student ").replace("_", "-")
            options.append(f"--{option} was {_shown(old.get(field))}, not {_shown(new.get(field))}")
    if shards:
        different = ", ".join(dict.fromkeys(shards)).replace("_", " ")
        options.append(f"--shards are not the same: another {different}")
    return options or [field.removeprefix("student ") for field in fields]


def _shown(value: Any) -> str:
    """An option's value as it is given."""
    if value is None:
        return "given"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return {"torch.float32": "fp32", "torch.bfloat16": "bf16"}.get(str(value), str(value))


# From a finished training run to a student's folder.


def write_trained(trainer: Trainer, shards: Path) -> dict[str, float]:
    """Write the best student of a run into its folder; return its held-out scores and over how many rows they are."""
    student, best = trainer.best_student()
    scores = {**{name: best[name] for name in SCORES}, "rows": len(trainer.held_out)}
    fingerprint = as_dict(trainer.stream.fingerprint)
    teacher = {name: fingerprint[name] for name in ("teacher", "teacher_weights", "pooling", "normalize")}
    teacher["layers"] = list(trainer.config.target_layers or fingerprint["layers"])
    start = trainer.start
    save_student(
        trainer.out,
        student,
        {
            "teacher": teacher,
            "corpus": {"rows": trainer.stream.manifest.totals.rows, "fingerprint": fingerprint},
            "shards": shards_place(shards, trainer.out),
            "training": asdict(trainer.config),
            **({"start": {"student": start.name, "weights": start.weights}} if start else {}),
            "history": trainer.history,
            "metrics": {"held_out": scores},
        },
    )
    return scores
