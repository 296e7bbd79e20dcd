"""Measure students: fidelity, retrieval, STS-B."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Examples
from sentence_distill.data.progress import Advance
from sentence_distill.pipeline.manifest import require_vectors
from sentence_distill.student.config import default_held_out
from sentence_distill.student.metrics import (
    by_frequency,
    by_length,
    fidelity,
    paired_rank_agreement,
    public_targets,
    recall_figures,
    task_metrics,
)
from sentence_distill.student.model import encode_tokens
from sentence_distill.student.models import Encode, Model, free_name, open_teacher
from sentence_distill.student.reference import Reference, is_own, own_shards, sentences_of_shards

# Measures that a file about one student lists by model.
_BY_MODEL = ("weights", "sentences_per_second", "timed_as", "sts_spearman")
_SIZES = {"student": "size", "teacher": "teacher_size"}


def merge(
    old: dict[str, Any],
    new: dict[str, dict[str, Any]],
    *,
    skipped: dict[str, str],
    roles: dict[str, str],
    alone: bool,
    reference: dict[str, Any] | None,
    trusted: bool,
) -> dict[str, Any]:
    """Add the figures of a run to those of a file.

    What was measured before stays, unless it was measured again or its model has other weights now. Figures over other
    held-out sentences than this run's don't stay beside them.

    Args:
        old: content of the file; empty if there is none.
        new: figures by model and measure.
        skipped: what this run could not measure, with the reason.
        roles: which model is the "student" in whose folder the file lies, and which its "teacher".
        alone: whether this run is of one student, called "student".
        reference: the sentences of the run's held-out figures; None if it has none.
        trusted: whether figures that name no weights are of the student that is measured now: the file lies in its
            folder, which loses it when another is trained there.

    Returns:
        The new content.
    """
    before = _by_model(old)
    names: dict[str, str | None] = {}
    # Of two copies of one model the student of the file is the one that it knows.
    for name in sorted(new, key=lambda name: name != roles.get("student")):
        free = {known: figures for known, figures in before.items() if known not in names.values()}
        names[name] = _same_model(name, new[name], free, trusted)
    several = not alone or ("models" in old and names.get("student") is not None)
    if alone and names["student"] is None:
        # Another student's.
        before, names = {}, dict.fromkeys(names)
    if alone and several:
        # The file's names stay.
        final = {name: known or free_name(name, before) for name, known in names.items()}
        roles = {role: old[role] for role in ("student", "teacher") if role in old}
        models = before
    else:
        final = {name: name for name in new}
        again = {known: name for name, known in names.items() if known}
        models = {
            again.get(name, name): figures for name, figures in before.items() if name in again or name not in new
        }
    if reference is None:
        reference = old.get("reference")
    elif reference != old.get("reference"):
        models = {name: {**figures, "held_out": None} for name, figures in models.items()}
    for name, figures in new.items():
        models[final[name]] = {**models.get(final[name], {}), **figures}
    models = {
        name: {measure: value for measure, value in figures.items() if value is not None}
        for name, figures in models.items()
    }
    skipped = {final.get(what, what): why for what, why in {**old.get("skipped", {}), **skipped}.items()}
    left = {what: why for what, why in skipped.items() if not _is_measured(what, models)}
    tail = {**({"reference": reference} if reference else {}), "skipped": left}
    # In the order of the run, what stays from before behind it.
    ordered = {name: models[name] for name in (*final.values(), *models) if name in models}
    return {**roles, "models": ordered, **tail} if several else {**_of_one(ordered), **tail}


def is_nothing(models: dict[str, dict[str, Any]]) -> bool:
    """Whether a run measured nothing but sizes."""
    return all(figures.keys() <= {"size", "weights"} for figures in models.values())


def _same_model(name: str, figures: dict[str, Any], before: dict[str, dict[str, Any]], trusted: bool) -> str | None:
    """The name that a model has in the file; None if it is not there."""
    for known, earlier in before.items():
        if figures["weights"] and earlier.get("weights") == figures["weights"]:
            return known
    return name if trusted and name in before and "weights" not in before[name] else None


def _is_measured(what: str, models: dict[str, dict[str, Any]]) -> bool:
    """Whether the figures that were skipped in one run are there from another."""

    def known(measure: str) -> bool:
        return any(measure in figures for figures in models.values())

    if what == "STS-B":
        return known("sts_spearman")
    if what == "speed":
        return known("sentences_per_second")
    if what == "held-out fidelity and speed":
        return known("sentences_per_second") and known("held_out")
    if what.startswith("held-out fidelity of "):
        return "held_out" in models.get(what.removeprefix("held-out fidelity of "), {})
    return what in models


def _by_model(figures: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The figures of a file by model and measure."""
    if "models" in figures:
        return {name: dict(model) for name, model in figures["models"].items()}
    models: dict[str, dict[str, Any]] = {}
    for name, size in _SIZES.items():
        if size in figures:
            models.setdefault(name, {})["size"] = figures[size]
    if "held_out" in figures:
        models.setdefault("student", {})["held_out"] = figures["held_out"]
    for measure in _BY_MODEL:
        for name, value in figures.get(measure, {}).items():
            models.setdefault(name, {})[measure] = value
    return models


def _of_one(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The figures of a student and its teacher, by measure."""
    figures: dict[str, Any] = {size: models[name]["size"] for name, size in _SIZES.items() if name in models}
    if "held_out" in models["student"]:
        figures["held_out"] = models["student"]["held_out"]
    for measure in _BY_MODEL:
        if values := {name: model[measure] for name, model in models.items() if measure in model}:
            figures[measure] = values
    return figures


# Intrinsic measures of models, side by side: fidelity to a teacher, STS-B, size, and speed.

TIMED_SENTENCES = 2000
_REPEATS = 3


@dataclass
class Measured:
    """What was measured.

    Args:
        models: figures by model and measure.
        skipped: what could not be measured, with the reason.
        teachers: which column is a student's teacher; it is skipped where that is not here.
        reference: which sentences held-out figures are over; None if there are none.
    """

    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    teachers: dict[str, str] = field(default_factory=dict)
    reference: dict[str, Any] | None = None


def measure_models(
    models: Sequence[Model],
    *,
    shards: Path | None,
    pairs: Examples | None,
    teacher_name: str | None,
) -> Measured:
    """Measure all that can be measured here, on the same sentences for all models.

    Args:
        models: of different names; the teachers of students join them.
        shards: for held-out rows and sentences to time; None takes those that the first student was trained on.
        pairs: sentence pairs with human scores, for STS.
        teacher_name: where the teacher is, see `open_teacher`.
    """
    measured = Measured()
    columns = [*models, *_teachers(models, teacher_name, measured)]
    for model in columns:
        size = {"parameters": model.parameters, "megabytes": model.megabytes}
        measured.models[model.name] = {"size": size, "weights": model.weights}
    try:
        shards = shards or _own_shards(models)
        _measure_fidelity(models, shards, measured)
        _measure_speed(columns, shards, measured)
    except UserError as error:
        measured.skipped["held-out fidelity and speed"] = str(error)
    if pairs is None or len(pairs.labels) < 2:
        measured.skipped["STS-B"] = "no pairs; name them with --sts dev.tsv or --glue-dir DIR"
    else:
        for model in columns:
            progress.log(f"STS-B of {model.name}: {len(pairs.labels):,} pairs")
            measured.models[model.name]["sts_spearman"] = sts_spearman(model.encode, pairs)
    return measured


def _teachers(models: Sequence[Model], given: str | None, measured: Measured) -> list[Model]:
    """The students' teachers, each once; the first is the "teacher"."""
    teachers: list[Model] = []
    known: list[tuple[dict[str, Any], str]] = []
    for model in models:
        if model.distillation is None:
            continue
        recorded = model.distillation["teacher"]
        name = next((name for teacher, name in known if teacher == recorded), "")
        if not name:
            name = f"teacher of {model.name}" if known else "teacher"
            name = free_name(name, [other.name for other in models])
            known.append((recorded, name))
            progress.log(f"loading {name} {recorded['teacher']} …")
            try:
                teachers.append(open_teacher(model.distillation, given, name))
            except UserError as error:
                measured.skipped[name] = str(error)
        measured.teachers[model.name] = name
    return teachers


def _own_shards(models: Sequence[Model]) -> Path:
    """Those that the first student was trained on."""
    for model in models:
        if model.distillation and model.folder:
            return own_shards(model.distillation, model.folder)
    raise UserError("no student that names its shards; name some with --shards")


def _measure_fidelity(models: Sequence[Model], shards: Path, measured: Measured) -> None:
    """Fidelity of each model on rows that no student was trained on.

    Which rows are held out is decided by the sentence alone, so those of the smallest share are held out for all.
    """
    records = [model.distillation for model in models if model.distillation]
    shares = [record["training"]["held_out"] for record in records]
    share = min(shares) if shares else default_held_out(require_vectors(shards).totals.rows)
    read = cache(partial(Reference.read, shards, share))
    for number, model in enumerate(models):
        record = model.distillation or next(iter(records), None)
        try:
            if record:
                reference = read(tuple(record["teacher"]["layers"]), record["training"].get("train_fraction", 1.0))
            else:
                reference = read(None)
        except UserError as error:
            if number == 0:
                raise
            measured.skipped[f"held-out fidelity of {model.name}"] = str(error)
            continue
        progress.log(f"held-out fidelity of {model.name}: {len(reference.tokens):,} sentences")
        try:
            measured.models[model.name]["held_out"] = held_out_fidelity(model, reference)
            measured.reference = {"corpus": reference.fingerprint.corpus_content, "held_out": share}
        except UserError as error:
            measured.skipped[f"held-out fidelity of {model.name}"] = str(error)


def held_out_fidelity(model: Model, reference: Reference) -> dict[str, Any]:
    """Fidelity on held-out rows: all of it for a student, and for others what works across widths.

    Of a student, `other_corpus` names the shards where they are not those that it was trained on.

    Raises:
        UserError: the rows' vectors are of another teacher than the student's, or their sentences were not kept.
    """
    if model.student is None or model.distillation is None:
        if reference.texts is None:
            raise UserError("the shards keep no text (--no-text)")
        vectors, targets = torch.from_numpy(model.encode(reference.texts)), reference.targets[:, -reference.dim :]
        return _across_widths(vectors, targets)
    reference.require_teacher_of(model.distillation)
    own = is_own(reference.fingerprint, model.distillation)
    origin = {} if own else {"other_corpus": str(reference.shards)}
    encoder = model.student.encoder
    vectors = encode_tokens(encoder, reference.tokens)
    targets = public_targets(reference.targets, reference.dim, normalize=encoder.config.normalize)
    if vectors.shape[1] != targets.shape[1]:
        # Of a reduced student: between vectors of two widths there is no cosine.
        return {**_across_widths(vectors, targets), **origin}
    cosines = functional.cosine_similarity(vectors, targets).numpy()
    return {
        **fidelity(vectors, targets),
        **recall_figures(vectors, targets),
        "rows": len(vectors),
        "by_length": by_length(cosines, reference.tokens.lengths),
        # Counted in another corpus it would not be what training saw.
        **({"by_frequency": by_frequency(cosines, reference.rarest)} if own else {}),
        **origin,
    }


def _across_widths(vectors: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    agreement = paired_rank_agreement(vectors, targets)
    return {"rank_agreement": agreement, **recall_figures(vectors, targets), "rows": len(vectors)}


def _measure_speed(columns: Sequence[Model], shards: Path, measured: Measured) -> None:
    try:
        sentences = sentences_of_shards(shards, TIMED_SENTENCES)
    except UserError as error:
        measured.skipped["speed"] = str(error)
        return
    total = _REPEATS * len(columns) * len(sentences)
    with progress.task("speed", total, "sentences") as advance:
        rates = speed({model.name: model.timed for model in columns}, sentences, advance)
    for name, rate in rates.items():
        measured.models[name]["sentences_per_second"] = rate
    for model in columns:
        measured.models[model.name]["timed_as"] = model.timed_as


def sts_spearman(encode: Encode, examples: Examples) -> float:
    """Spearman correlation of human scores with the cosines of `encode`'s vectors of each pair; 0 of equal ones."""
    first, second = (torch.from_numpy(encode(column)) for column in examples.texts)
    cosines = functional.cosine_similarity(first, second, dim=1).numpy()
    return task_metrics(("spearman",), np.array(examples.labels), cosines)["spearman"]


def speed(
    encoders: dict[str, Encode], sentences: Sequence[str], advance: Advance = lambda count, note="": None
) -> dict[str, float]:
    """Sentences a second of each encoder, tokenising included: the median of three rounds.

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
