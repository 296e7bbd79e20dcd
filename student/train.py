"""Stage two, `sd train-student`: train a student on shards."""

import statistics
import time
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError, first_line
from sentence_distill.data.options import command_line
from sentence_distill.data.progress import Advance, counted
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.files import lock_folder, made_folder
from sentence_distill.pipeline.hardware import TRAINING, pick_precision
from sentence_distill.pipeline.manifest import require_vectors
from sentence_distill.pipeline.records import TOKENIZER, WORD_EMBEDDINGS, as_dict, differing_fields
from sentence_distill.student.config import SIZES, StudentConfig, TrainConfig, default_held_out
from sentence_distill.student.dataset import Batch, LostShardError, ShardStream
from sentence_distill.student.distributed import LostProcessError, ProcessGroup
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.figures import CorpusCosine, Distillation, cosine_on, quality, read_distillation
from sentence_distill.student.files import shards_place
from sentence_distill.student.metrics import SCORES, by_corpus, fidelity, public_targets
from sentence_distill.student.model import Student, encode_tokens, save_student
from sentence_distill.student.run_folder import (
    Checkpoints,
    Meter,
    TrainingLog,
    TrainingState,
    remove_earlier,
    remove_unused,
    resumes,
    summary_writer,
)
from sentence_distill.student.start import WarmStart, initial_embeddings
from sentence_distill.student.step import Optimizer, Stepper, learning_rate

LOG_EVERY = 50
# Steps between exchanges of the clock and of requests to stop, which make processes wait for their devices.
_AGREE_EVERY = 10
# Options of a student's shape; the rest of the shape follows from the shards and other options.
_SHAPE = (*SIZES["base"], "pooling")


def train_student(config: TrainConfig | None = None, /, **options: Any) -> Distillation | None:
    """Train a student on the shards of `sd embed`, and write it to a folder.

    Args:
        config: all options; alternatively, pass fields as keyword arguments: `train_student(shards="shards")`.
        **options: fields of `TrainConfig`.

    Returns:
        The record of the student; None in all processes of a distributed run but the first.

    Raises:
        UserError: an option is invalid, or the run can't start or was stopped.
    """
    if config is None:
        known = {field.name for field in fields(TrainConfig)}
        if unknown := options.keys() - known:
            raise UserError(f"train_student has no option {min(unknown)!r}; it takes {', '.join(sorted(known))}")
        config = TrainConfig(**options)
    elif options:
        config = replace(config, **options)
    return Trainer(config).complete()


def _student_shape(config: TrainConfig, start: WarmStart | None) -> StudentConfig:
    """Return the shape of the student to train: that of the student it starts from, or the options' own."""
    fingerprint = require_vectors(config.shards).fingerprint
    shape: dict[str, Any] = dict(SIZES.get(config.size or "", {}))
    shape |= {name: getattr(config, name) for name in _SHAPE if getattr(config, name) is not None}
    if start is None:
        shape = {**SIZES["base"], **shape}
    else:
        given = {name: getattr(start.student.encoder.config, name) for name in _SHAPE}
        for name, value in shape.items():
            if value != given[name]:
                raise UserError(
                    f"--{name.replace('_', '-')} is {value}, but {start.name} has {given[name]}; leave out --size and "
                    "the options that override it, or start with --init pca"
                )
        shape = given
    layers = len(config.target_layers or fingerprint.layers)
    return StudentConfig(
        vocabulary=fingerprint.vocabulary,
        target_dims=(fingerprint.layer_dim,) * layers,
        # Only the squared error determines the length of the student's vectors; without it, they are normalized.
        normalize=fingerprint.normalize or not config.mse,
        **shape,
    )


class HeldOutSet:
    """Held-out sentences for validation, which are never trained on."""

    def __init__(self, stream: ShardStream, weights: Mapping[str, float]) -> None:
        self._tokens, self._targets = stream.held_out()
        self._corpora, self._names = stream.held_out_corpora(), stream.corpora
        self._rows = {each.name: each.rows for each in self._by_corpus(np.zeros(len(self)))}
        self.corpora = list(self._rows)
        """Names of the corpora with their own scores; empty if the shards have a single corpus."""
        self._trained = [name for name in self.corpora if weights.get(name, 1.0)]

    def __len__(self) -> int:
        return len(self._tokens)

    def _by_corpus(self, cosines: np.ndarray) -> list[CorpusCosine]:
        return by_corpus(cosines, self._corpora, self._names)

    def scores(self, encoder: StudentEncoder, group: ProcessGroup) -> dict[str, float]:
        """Measure the student's fidelity (see `fidelity`), its cosine on each of `corpora`, and their mean.

        The first process measures and broadcasts the scores, so that all processes make the same decisions: another
        machine might round differently.
        """
        names = [*SCORES, *map(cosine_on, self.corpora)]
        scores = torch.zeros(len(names), dtype=torch.float64, device=group.device)
        if group.main:
            dim, normalize = encoder.config.target_dims[-1], encoder.config.normalize
            targets = public_targets(self._targets, dim, normalize=normalize)
            vectors = encode_tokens(encoder, self._tokens)
            found = fidelity(vectors, targets)
            each = self._by_corpus(functional.cosine_similarity(vectors, targets).numpy())
            scores.copy_(torch.tensor([*(found[name] for name in SCORES), *(one.cosine for one in each)]))
        group.sum([scores])
        found = dict(zip(names, scores.tolist(), strict=True))
        if self._trained:
            found["mean_over_corpora"] = statistics.fmean(found[cosine_on(name)] for name in self._trained)
        return found

    def figures(self, scores: dict[str, float]) -> dict[str, Any]:
        """Convert scores to the format of a student's record."""
        each = [{"name": name, "rows": rows, "cosine": scores[cosine_on(name)]} for name, rows in self._rows.items()]
        return {**{name: scores[name] for name in SCORES}, "rows": len(self), "by_corpus": each}


class Trainer:
    """A training run, in one of its processes."""

    def __init__(self, config: TrainConfig) -> None:
        """Check options and folders, and build the student with its initial weights, without writing anything."""
        if ":/" in str(config.shards):
            raise UserError(
                f"{config.shards} is a URL, but shards have to be memory-mapped; copy them to a local folder first"
            )
        self._resuming = resumes(config.out, resume=config.resume, overwrite=config.overwrite)
        self._command = command_line("train-student", config)
        self.stop_requested = False
        """Set it to True, for example in a signal handler, to stop after the current step."""
        self.start = WarmStart.load(config.init)
        if self.start and config.out.exists() and config.out.samefile(self.start.folder):
            # A stopped run needs it to resume.
            raise UserError(f"{config.out} is the student to start from, and must be kept; name another --out")
        shape = _student_shape(config, self.start)
        if config.held_out is None:
            config = replace(config, held_out=default_held_out(require_vectors(config.shards).totals.rows))
        assert config.held_out is not None
        self.config, self.out = config, config.out
        self.group = ProcessGroup(config.device)
        if not self.group.main:
            progress.show_on(progress.Silent())
        self.precision = pick_precision(config.precision, self.group.device, TRAINING)
        self.stream = ShardStream(
            config.shards,
            held_out=config.held_out,
            layers=config.target_layers,
            train_fraction=config.train_fraction,
            weights=config.weights,
        )
        self.held_out = HeldOutSet(self.stream, config.weights)
        torch.manual_seed(config.seed)
        self.encoder = StudentEncoder(shape)
        self.tokenizer = TextTokenizer((config.shards / TOKENIZER).read_text(encoding="utf-8"))
        if self.start is None:
            words = load_file(config.shards / WORD_EMBEDDINGS)["weight"].float()
            generator, table = torch.Generator().manual_seed(config.seed), self.encoder.embedding.weight
            with torch.no_grad():
                table.copy_(initial_embeddings(config.init, words, table.shape[1], generator))
        else:
            for note in self.start.copy_into(self.encoder, self.tokenizer):
                progress.log(note)
        self.encoder.to(self.group.device)
        self.optimizer = Optimizer(self.encoder, config)
        self.stepper = Stepper(self.encoder, config, self.precision, self.group)
        self.checkpoints = Checkpoints(config.out, config.keep_checkpoints)
        self.state = TrainingState()
        self.history: list[dict[str, float]] = []
        per_epoch = (self.stream.steps(config.batch_size, config.seed, epoch) for epoch in range(config.epochs))
        self.steps = min(sum(per_epoch), config.max_steps or 1 << 62)
        if not self.steps:
            raise UserError(
                "no rows are left to train on; use a larger corpus, lower --held-out or raise --train-fraction"
            )
        self._loss = torch.zeros((), dtype=torch.float64, device=self.group.device)
        self._began = self._saved = time.monotonic()
        self._meter = Meter(0)

    def complete(self) -> Distillation | None:
        """Train to the end; in the first process, also write the student and return its record."""
        if not self.group.main:
            if self._resuming:
                self.resume()
            self.run()
            return None
        if self.config.tensorboard:
            # Fails before an earlier run is removed, if TensorBoard is not installed.
            summary_writer()
        with made_folder(self.out), lock_folder(self.out):
            try:
                self.checkpoints.remove_temporaries()
                if self._resuming:
                    self.resume()
                    progress.log(f"resuming from step {self.state.step:,}")
                else:
                    self.checkpoints.remove()
                    remove_earlier(self.out)
                parameters = sum(weight.numel() for weight in self.encoder.parameters())
                processes = counted(self.group.size, "process", "processes")
                progress.log(
                    f"student: {parameters:,} parameters; {counted(self.steps, 'step')} over "
                    f"{counted(self.stream.train_rows, 'sentence')}, {len(self.held_out):,} held out; {processes} on "
                    f"{self.group.device}"
                )
                if self.held_out.corpora:
                    counts = (f"{name} {count:,}" for name, count in self.stream.rows_of_corpora().items())
                    progress.log(f"sentences per epoch by corpus: {', '.join(counts)}")
                self.run()
                self.write_student()
                self.checkpoints.remove()
            except BaseException:
                remove_unused(self.out)
                raise
        return read_distillation(self.out)

    def run(self) -> None:
        """Train to the end."""
        config, log = self.config, None
        if self.group.main:
            validated = int(self.history[-1]["step"]) if self.history else 0
            log = TrainingLog(self.out, step=self.state.step, validated=validated, tensorboard=config.tensorboard)
        self._saved = time.monotonic()
        self._began = self._saved - self.state.seconds
        self._meter = Meter(self.state.sentences)
        self.encoder.train()
        # Total number of sentences for the progress bar, an upper bound with patience; unknown with a time limit.
        total = None
        if config.max_time is None:
            total = config.epochs * self.stream.train_rows
            total = total if config.max_steps is None else min(total, self.steps * config.batch_size)
        try:
            with progress.task("train", total, "sentences", self.state.sentences) as advance:
                self.group.share_first(list(self.encoder.parameters()))
                if self.start is not None and not self.state.step:
                    # The initial student counts as the best until a validation has a better score.
                    entry = {"step": 0, **self.held_out.scores(self.encoder, self.group)}
                    progress.log(f"{self.start.name}, before training: held-out cosine {entry['cosine']:.4f}")
                    self._keep_as_best(entry)
                self._validate_if_due(log)
                while not self._finished():
                    self._epoch(advance, log)
            # A last checkpoint, because writing the student may fail, for example on a full disk.
            self.save()
            self.checkpoints.wait()
        except (LostProcessError, LostShardError) as error:
            if not self.state.step:
                raise UserError(f"{error} before the first step") from error
            # All processes have completed the same last step, so any process that is left can save it.
            self._write_checkpoint()
            self.checkpoints.wait()
            raise UserError(
                f"{error}; stopped at step {self.state.step:,}; run the same command again to resume"
            ) from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"memory ran out at step {self.state.step:,} ({first_line(error)}); lower --size or --batch-size"
            ) from error
        finally:
            if log is not None:
                log.close()

    def _finished(self) -> bool:
        config, state = self.config, self.state
        return (
            state.step >= self.steps
            or (config.max_time is not None and state.seconds >= config.max_time)
            or (config.patience is not None and state.worse >= config.patience)
        )

    def _epoch(self, advance: Advance, log: TrainingLog | None) -> None:
        """Train on the rest of the current epoch."""
        config, state = self.config, self.state
        batches = self.stream.batches(
            batch_size=config.batch_size, seed=config.seed, epoch=state.epoch, skip=state.step_in_epoch
        )
        for batch in self._meter.waiting(batches):
            loss, norm = self._step(batch)
            advance(len(loss), self._report(loss, norm, log) if state.step % LOG_EVERY == 0 else "")
            stop = self._agree()
            self._validate_if_due(log)
            self.checkpoints.check()
            if stop:
                self.save()
                self.checkpoints.wait()
                raise UserError(
                    f"stopped at step {state.step:,} of {self.steps:,}; run the same command again to resume"
                )
            if time.monotonic() - self._saved >= config.checkpoint_every:
                self.save()
            if self._finished():
                return
        state.epoch, state.step_in_epoch = state.epoch + 1, 0
        if self._validate_if_due(log):
            self.save()

    def _step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Train on a batch; return the loss of each sentence and the norm of the gradient."""
        config, state = self.config, self.state
        pieces = self.stepper.pieces
        loss, words = self.stepper.gradient(batch, state.step)
        if self.stepper.pieces > pieces:
            progress.log(f"memory ran out; batches are computed in {self.stepper.pieces} pieces from now on")
        gradients = []
        for weight in (*self.optimizer.dense, words.rows):
            # A process without rows of a small batch contributes zeros.
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            gradients.append(weight.grad)
        self.group.sum(gradients)
        done = (state.step + 1) / (self.steps + 1)
        # The schedule follows whichever limit is closer, steps or time.
        if config.max_time is not None:
            done = max(done, min(1.0, state.seconds / config.max_time))
        norm = self.optimizer.step(learning_rate(done, config), words.words, words.rows)
        state.step += 1
        state.step_in_epoch += 1
        state.sentences += len(loss)
        # Summed on the device, because reading the loss would wait for it in every step.
        self._loss += loss.sum()
        return loss, norm

    def _agree(self) -> bool:
        """Agree with all processes on the time and on a request to stop; return True if one of them requests it.

        The time is that of the first process. Decisions that depend on it, such as the learning rate, must be the same
        everywhere.
        """
        if self.group.size > 1 and self.state.step % _AGREE_EVERY:
            return False
        seconds = time.monotonic() - self._began
        shared = torch.tensor([seconds if self.group.main else 0.0, float(self.stop_requested)])
        if self.group.size > 1:
            shared = shared.to(self.group.device)
            self.group.sum([shared])
        self.state.seconds, stops = shared.tolist()
        return stops > 0

    def _report(self, loss: torch.Tensor, norm: torch.Tensor, log: TrainingLog | None) -> str:
        """Log the last step; return a note for the progress bar."""
        self._require_finite(torch.stack([loss.mean(), norm]))
        values = {
            "epoch": self.state.sentences / self.stream.train_rows,
            "loss": loss.mean().item(),
            "learning_rate": self.optimizer.rate,
            "gradient_norm": norm.item(),
            "seconds": self.state.seconds,
            **self._meter.rates(self.state.sentences),
        }
        if log is not None:
            log.write("train", self.state.step, values)
        note = f"loss {values['loss']:.4f}, waits {values['wait_share']:.1%}"
        if self.config.max_time is not None:
            note += f", {max(0.0, self.config.max_time - self.state.seconds):,.0f} s left"
        return note

    def _require_finite(self, values: torch.Tensor) -> None:
        if not torch.isfinite(values).all():
            raise UserError(
                f"the loss or a weight is no longer finite at step {self.state.step:,} (learning rate "
                f"{self.optimizer.rate:.2g}); start over with a lower --learning-rate and --overwrite"
            )

    def _validate_if_due(self, log: TrainingLog | None) -> bool:
        """Validate if it is due, and keep the best weights; return True if it was due.

        It is due after each epoch, or every --validate-every steps, and at the end, but never twice at the same step. A
        run that is stopped before a validation that is due makes up for it when it resumes.
        """
        config, state = self.config, self.state
        regular = state.step % config.validate_every if config.validate_every else state.step_in_epoch
        if state.sentences == state.validated or (regular and not self._finished()):
            return False
        scores = self.held_out.scores(self.encoder, self.group)
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
        if self.held_out.corpora:
            cosines = (f"{name} {entry[cosine_on(name)]:.4f}" for name in self.held_out.corpora)
            progress.log(f"  cosine by corpus: {', '.join(cosines)}")
        if log is not None:
            log.write("validation", state.step, {name: value for name, value in entry.items() if name != "step"})
        state.worse += 1
        if quality(entry) > state.best:
            self._keep_as_best(entry)
        return True

    def _keep_as_best(self, entry: dict[str, float]) -> None:
        self.state.best, self.state.worse = quality(entry), 0
        if self.group.main:
            self.checkpoints.save_best({"model": self.encoder.state_dict(), "entry": entry})

    def best_student(self) -> tuple[Student, dict[str, float]]:
        """Return the student of the best validation, and its entry in the history; only in the first process."""
        best = self.checkpoints.best()
        self.encoder.load_state_dict(best["model"])
        return Student(self.encoder.cpu(), self.tokenizer), best["entry"]

    def write_student(self) -> None:
        """Write the best student to the run's folder, with its record and card."""
        student, best = self.best_student()
        fingerprint, start = as_dict(self.stream.fingerprint), self.start
        teacher = {name: fingerprint[name] for name in ("teacher", "teacher_weights", "pooling", "normalize")}
        teacher["layers"] = list(self.config.target_layers or fingerprint["layers"])
        save_student(
            self.out,
            student,
            {
                "command": self._command,
                "teacher": teacher,
                "corpus": {"rows": self.stream.manifest.totals.rows, "fingerprint": fingerprint},
                "shards": shards_place(self.config.shards, self.out),
                "training": self.config.recipe(),
                **({"start": {"student": start.name, "weights": start.weights}} if start else {}),
                "history": self.history,
                "metrics": {"held_out": self.held_out.figures(best)},
            },
        )

    def identity(self) -> dict[str, Any]:
        """Return everything that must be equal to resume a run; the number of processes may change."""
        shape = {name: getattr(self.encoder.config, name) for name in _SHAPE}
        precision = "bf16" if self.precision == torch.bfloat16 else "fp32"
        return {
            "options": {**self.config.recipe(), **shape, "precision": precision},
            "start": self.start.weights if self.start else [],
            "shards": as_dict(self.stream.fingerprint),
        }

    def save(self) -> None:
        """Write a checkpoint in the background, in the first process."""
        self._saved = time.monotonic()
        if self.group.main:
            self._write_checkpoint()

    def _write_checkpoint(self) -> None:
        # A gradient that is not finite ruins the weights for good, so such weights must not be saved.
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
        """Restore the newest checkpoint; refuse one of another run, and name the options that differ."""
        checkpoint = self.checkpoints.newest()
        if differing := _differing_options(checkpoint["identity"], self.identity()):
            raise UserError(
                f"{self.out} holds a stopped run with other options: {'; '.join(differing)}; resume it with its own "
                "options, or start over with --overwrite"
            )
        self.encoder.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizers"])
        self.state = TrainingState(**checkpoint["state"])
        self.history = checkpoint["history"]
        self._loss.fill_(self.state.loss)


def _differing_options(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Describe the options that differ between two runs; see `Trainer.identity`."""

    def shown(value: Any) -> str:
        if value is None:
            return "unset"
        return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

    differing = []
    for name in sorted(old["options"].keys() | new["options"].keys()):
        before, now = old["options"].get(name), new["options"].get(name)
        if before != now:
            differing.append(f"--{name.replace('_', '-')} was {shown(before)}, now {shown(now)}")
    if old["start"] != new["start"]:
        differing.append("--init names a student with other weights")
    return differing + [f"--shards: {each}" for each in differing_fields(old["shards"], new["shards"])]
