"""Measure models side by side: fidelity to a teacher, STS-B, size, and speed."""

import statistics
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch.nn import functional

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import load_sts
from sentence_distill.data.options import command_line
from sentence_distill.data.progress import Advance
from sentence_distill.pipeline.manifest import require_vectors
from sentence_distill.student import metrics
from sentence_distill.student.config import EvalConfig, default_held_out
from sentence_distill.student.environment import environment
from sentence_distill.student.figures import (
    EVAL,
    Environment,
    EvalRecord,
    Example,
    HeldOut,
    ModelFigures,
    Sentences,
    Size,
    figures_file,
    merged,
    models_of,
    read_figures,
    sts_file,
    write_figures,
)
from sentence_distill.student.files import CARD, is_student, load_distillation
from sentence_distill.student.model import encode_tokens, update_distillation
from sentence_distill.student.models import (
    Encode,
    Model,
    find_model,
    megabytes,
    open_model,
    open_teacher,
    parameters,
    short_names,
    weights_hashes,
)
from sentence_distill.student.reference import Reference, is_own, own_shards, require_teacher, sentences_of_shards

TIMED_SENTENCES = 2000
_REPEATS = 3


def evaluate(config: EvalConfig | None = None, /, **options: Any) -> EvalRecord:
    """Measure models as `sd eval` does, and add the figures to eval.json in the first student's folder.

    Args:
        config: what to measure; instead of it, its fields may be given as keyword arguments.
        **options: fields of `EvalConfig`.

    Returns:
        The figures of this run; the file keeps those of earlier ones, too.

    Raises:
        UserError: a model can't be opened, nothing could be measured, or there is no place for the figures.
    """
    config = config or EvalConfig(**options)
    named, file = models_of(config), figures_file(config, EVAL)
    # All that is cheap to miss is missed before the first model is loaded.
    sts = sts_file(config)
    pairs = load_sts(sts) if sts else None
    old = None if config.overwrite else read_figures(file, EvalRecord)
    located = [find_model(model) for model in named]
    models = []
    for given, name, found in zip(named, short_names(named), located, strict=True):
        progress.log(f"loading {given} …")
        models.append(open_model(found, name))

    run = _Run(models)
    columns = [*models, *run.open_teachers(config.teacher)]
    for model in columns:
        size = Size(parameters(model.folder), megabytes(model.folder))
        run.figures[model.name] = ModelFigures(size=size, weights=weights_hashes(model.folder))
    try:
        shards = config.shards or _own_shards(models)
        run.measure_fidelity(shards)
        run.measure_speed(columns, shards)
    except UserError as error:
        run.skipped |= {"held-out fidelity": str(error), "speed": str(error)}
    if pairs is None or len(pairs.labels) < 2:
        run.skipped["STS-B"] = "no pairs; name them with --sts dev.tsv or --glue-dir DIR"
    else:
        for model in columns:
            progress.log(f"STS-B of {model.name}: {len(pairs.labels):,} pairs")
            score = metrics.sts_spearman(model.encode, pairs.texts, pairs.labels)
            run.figures[model.name].sts_spearman = score
    measured = [(one.held_out, one.sts_spearman, one.sentences_per_second) for one in run.figures.values()]
    if not any(any(figure is not None for figure in figures) for figures in measured):
        reasons = "; ".join(f"{what}: {why}" for what, why in run.skipped.items())
        raise UserError(f"nothing could be measured, and nothing was written ({reasons})")

    own = next((model for model in models if model.folder.resolve() == file.resolve().parent), None)
    new = EvalRecord(
        models=run.figures,
        skipped=run.skipped,
        student=own.name if own else None,
        teacher=run.teachers.get(own.name) if own else None,
        reference=run.reference,
        environment=msgspec.convert(environment(), Environment),
        command=command_line("eval", config),
    )
    everything = merged(old, new) if old else new
    write_figures(file, everything)
    if len(named) == 1 and is_student(named[0]):
        # Last: a student that others share may be one to read only, and its figures are worth having all the same.
        (model,) = models
        _record(model, run.teachers[model.name], everything)
    return new


def _own_shards(models: Sequence[Model]) -> Path:
    """Find the shards that the first student was trained on."""
    for model in models:
        if model.distillation:
            return own_shards(model.distillation, model.folder)
    raise UserError("no student that names its shards; name some with --shards")


@dataclass
class _Run:
    """Figures so far, all over the same sentences."""

    models: Sequence[Model]
    figures: dict[str, ModelFigures] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    teachers: dict[str, str] = field(default_factory=dict)
    """Name of each student's teacher; it is skipped if it is not here."""
    reference: Sentences | None = None

    def open_teachers(self, given: str | None) -> list[Model]:
        """Open the students' teachers, each once; the first is the "teacher"."""
        opened: list[Model] = []
        known: list[tuple[dict[str, Any], str]] = []
        for model in self.models:
            if model.distillation is None:
                continue
            recorded = model.distillation["teacher"]
            name = next((name for teacher, name in known if teacher == recorded), "")
            if not name:
                name = f"teacher of {model.name}" if known else "teacher"
                name = free_name(name, [other.name for other in self.models])
                known.append((recorded, name))
                progress.log(f"loading {name} {recorded['teacher']} …")
                try:
                    opened.append(open_teacher(model.distillation, given, name))
                except UserError as error:
                    self.skipped[name] = str(error)
            self.teachers[model.name] = name
        return opened

    def measure_fidelity(self, shards: Path) -> None:
        """Measure each model on rows that no student was trained on.

        Which rows are held out is decided by the sentence alone, so those of the smallest share are held out for all.
        """
        records = [model.distillation for model in self.models if model.distillation]
        shares = [record["training"]["held_out"] for record in records]
        share = min(shares) if shares else default_held_out(require_vectors(shards).totals.rows)
        read = cache(partial(Reference.read, shards, share))
        for number, model in enumerate(self.models):
            record = model.distillation or next(iter(records), None)
            try:
                if record:
                    reference = read(tuple(record["teacher"]["layers"]), record["training"].get("train_fraction", 1.0))
                else:
                    reference = read(None)
            except UserError as error:
                if number == 0:
                    raise
                self.skipped[f"held-out fidelity of {model.name}"] = str(error)
                continue
            progress.log(f"held-out fidelity of {model.name}: {len(reference.tokens):,} sentences")
            try:
                figures = self.figures[model.name]
                figures.held_out, figures.examples = held_out_fidelity(model, reference)
                self.reference = Sentences(reference.fingerprint.corpus_content, share)
            except UserError as error:
                self.skipped[f"held-out fidelity of {model.name}"] = str(error)

    def measure_speed(self, columns: Sequence[Model], shards: Path) -> None:
        """Time each model on sentences of the shards."""
        try:
            sentences = sentences_of_shards(shards, TIMED_SENTENCES)
        except UserError as error:
            self.skipped["speed"] = str(error)
            return
        total = _REPEATS * len(columns) * len(sentences)
        with progress.task("speed", total, "sentences") as advance:
            rates = speed({model.name: model.timed for model in columns}, sentences, advance)
        for model in columns:
            figures = self.figures[model.name]
            figures.sentences_per_second, figures.timed_as = rates[model.name], model.timed_as


def free_name(name: str, taken: Collection[str]) -> str:
    """Return `name`, or with a number if a user's model is called that, too."""
    numbered = (f"{name} {number}" for number in range(2, len(taken) + 3))
    return next(free for free in (name, *numbered) if free not in taken)


def held_out_fidelity(model: Model, reference: Reference) -> tuple[HeldOut, list[Example]]:
    """Measure fidelity on held-out rows: all of it for a student, and for others what works across widths.

    Raises:
        UserError: the rows' vectors are of another teacher than the student's, or their sentences were not kept.
    """
    if model.student is None or model.distillation is None:
        if reference.texts is None:
            raise UserError("the shards keep no text (--no-text)")
        vectors, targets = torch.from_numpy(model.encode(reference.texts)), reference.targets[:, -reference.dim :]
        return _across_widths(vectors, targets), []
    require_teacher(reference.shards, reference.fingerprint, model.distillation)
    encoder, own = model.student.encoder, is_own(reference.fingerprint, model.distillation)
    vectors = encode_tokens(encoder, reference.tokens)
    targets = metrics.public_targets(reference.targets, reference.dim, normalize=encoder.config.normalize)
    examples = metrics.nearest_examples(reference.texts, vectors, targets) if reference.texts else []
    found = _across_widths(vectors, targets)
    found.other_corpus = None if own else str(reference.shards)
    # Between vectors of two widths, those of a reduced student, there is no cosine.
    if vectors.shape[1] == targets.shape[1]:
        for name, value in metrics.fidelity(vectors, targets).items():
            setattr(found, name, value)
        cosines = functional.cosine_similarity(vectors, targets).numpy()
        found.by_length = metrics.by_length(cosines, reference.tokens.lengths)
        # Counted in another corpus it would not be what training saw.
        found.by_frequency = metrics.by_frequency(cosines, reference.rarest) if own else []
    return found, examples


def _across_widths(vectors: torch.Tensor, targets: torch.Tensor) -> HeldOut:
    agreement = metrics.paired_rank_agreement(vectors, targets)
    recall = metrics.recall_figures(vectors, targets)
    return msgspec.convert({"rows": len(vectors), "rank_agreement": agreement, **recall}, HeldOut)


def speed(
    encoders: dict[str, Encode], sentences: Sequence[str], advance: Advance = lambda count, note="": None
) -> dict[str, float]:
    """Sentences per second of each encoder, tokenizing included: the median of three rounds.

    In each round the encoders take turns, so that a slow minute of the machine meets them all.
    """
    rates: dict[str, list[float]] = {name: [] for name in encoders}
    for encode in encoders.values():
        encode(sentences[:64])
    for _ in range(_REPEATS):
        for name, encode in encoders.items():
            started = time.perf_counter()
            encode(sentences)
            rates[name].append(len(sentences) / (time.perf_counter() - started))
            advance(len(sentences), name)
    return {name: statistics.median(values) for name, values in rates.items()}


def _record(model: Model, teacher: str, record: EvalRecord) -> None:
    """Write the figures of a single student and its teacher into its record and card."""
    pair = {"student": record.models[model.name]}
    if teacher in record.models:
        pair["teacher"] = record.models[teacher]
    found = {name: msgspec.to_builtins(figures) for name, figures in pair.items()}
    figures: dict[str, Any] = {"size": found["student"]["size"]}
    if "teacher" in found:
        figures["teacher_size"] = found["teacher"]["size"]
    for measure in ("sentences_per_second", "timed_as", "sts_spearman"):
        if values := {name: one[measure] for name, one in found.items() if measure in one}:
            figures[measure] = values
    held_out = pair["student"].held_out
    if held_out and held_out.other_corpus:
        # The card says how it does on sentences of its own corpus.
        progress.log(
            f"held-out sentences of {held_out.other_corpus}, not what the student was trained on: "
            "its card keeps its own"
        )
    elif held_out:
        figures["held_out"] = found["student"]["held_out"]
    folder = model.folder
    try:
        before = load_distillation(folder)["metrics"]
        if not update_distillation(folder, metrics={**before, **figures}):
            progress.log(
                f"{folder / CARD} was edited, or is of another version, and stays as it is; without it "
                "a new one is made"
            )
    except OSError as error:
        progress.log(f"{folder} can't be written ({error.strerror}): its record and card stay as they were")
