"""`sd eval`: fidelity to a teacher, STS-B, size and speed of several models."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import torch
from torch.nn import functional

from sentence_distill.data import progress
from sentence_distill.data.corpus import sentences_of
from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import load_sts
from sentence_distill.data.options import command_line, configured
from sentence_distill.data.progress import Advance, counted
from sentence_distill.data.sentences import SentenceRules
from sentence_distill.data.senteval import transfer_tasks
from sentence_distill.data.tokenization import Tokens
from sentence_distill.data.word_order import altered_pairs
from sentence_distill.pipeline.manifest import require_vectors
from sentence_distill.pipeline.records import Fingerprint
from sentence_distill.pipeline.shards import Shard
from sentence_distill.student import metrics
from sentence_distill.student.config import EvalConfig, default_held_out
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.figures import (
    OWN_TEXT,
    Environment,
    EvalRecord,
    Example,
    HeldOut,
    ModelFigures,
    Probes,
    Sentences,
    Size,
    eval_file,
    load_distillation,
    merged,
    models_of,
    read_figures,
    write_figures,
)
from sentence_distill.student.files import CARD, is_student
from sentence_distill.student.model import encode_tokens, update_distillation
from sentence_distill.student.models import (
    Encode,
    Model,
    find_model,
    free_name,
    is_own,
    megabytes,
    open_model,
    open_teacher,
    parameters,
    require_teacher,
    sentences_of_shards,
    shards_of,
    short_names,
    weights_hashes,
)
from sentence_distill.student.probes import fits, pair_cosines, transfer_scores, word_order

TIMED_SENTENCES = 2000
TEXT_SENTENCES = 2000
# Sentences to measure on are spread over this many, because files are often sorted.
_READ_SENTENCES = 100_000
_REPEATS = 3
_PAIRS_OF_RULE = 500


def evaluate(config: EvalConfig | None = None, /, **options: Any) -> EvalRecord:
    """Measure models as `sd eval` does, and add the figures to eval.json in the first student's folder.

    Args:
        config: all options; alternatively, pass fields as keyword arguments.
        **options: fields of `EvalConfig`.

    Returns:
        The figures of this run; the file also keeps those of earlier runs.

    Raises:
        UserError: a model can't be opened, nothing could be measured, or the figures can't be written anywhere.
    """
    config = configured(EvalConfig, config, options)
    named, file = models_of(config), eval_file(config)
    # Whatever is cheap to check is checked before the first model is loaded.
    pairs = load_sts(config.sts_file) if config.sts_file else None
    old = None if config.overwrite or file is None else read_figures(file, EvalRecord)
    texts = {location: _sentences_of_text(location) for location in config.texts}
    altered = _altered(config.word_order) if config.word_order else {}
    tasks = transfer_tasks(config.transfer) if config.transfer else {}
    located = [find_model(model) for model in named]
    models = []
    for given, name, found in zip(named, short_names(named), located, strict=True):
        progress.log(f"loading {given} …")
        models.append(open_model(found, name))

    new = EvalRecord(models={}, skipped={}, environment=Environment.here(), command=command_line("eval", config))
    teachers, teacher_of = _open_teachers(models, config.teacher, new.skipped)
    columns = [*models, *teachers]
    for model in columns:
        size = Size(parameters(model.folder), megabytes(model.folder))
        new.models[model.name] = ModelFigures(size=size, weights=weights_hashes(model.folder))
    try:
        shards = config.shards or shards_of(model.folder for model in models)
        _measure_fidelity(models, shards, new)
        _measure_speed(columns, shards, new)
    except UserError as error:
        new.skipped |= {"held-out fidelity": str(error), "speed": str(error)}
    if texts:
        for model in models:
            if recorded := _recorded_fidelity(model, new.models[model.name]):
                new.models[model.name].texts[OWN_TEXT] = recorded
        for location, sentences in texts.items():
            _measure_text(location, sentences, models, teachers, teacher_of, new)
    if altered:
        _measure_word_order(altered, models, teachers, teacher_of, new)
    for model in columns if tasks else ():
        total = sum(map(fits, tasks.values()))
        with progress.task(f"transfer tasks of {model.name}", total, "fits") as advance:
            for name, task in tasks.items():
                new.models[model.name].transfer[name] = transfer_scores(task, model.encode, advance)
    if pairs is None:
        new.skipped["STS-B"] = "no pairs; name them with --sts dev.tsv or --glue-dir DIR"
    else:
        for model in columns:
            progress.log(f"STS-B of {model.name}: {counted(len(pairs.labels), 'pair')}")
            new.models[model.name].sts_spearman = metrics.sts_spearman(model.encode, pairs.texts, pairs.labels)
    measures = ("held_out", "texts", "word_order", "transfer", "sts_spearman", "sentences_per_second")
    if not any(getattr(one, measure) for one in new.models.values() for measure in measures):
        reasons = "; ".join(f"{what}: {why}" for what, why in new.skipped.items())
        raise UserError(f"nothing could be measured, and nothing was written ({reasons})")

    if file is None:
        return new
    if own := next((model.name for model in models if model.folder.resolve() == file.resolve().parent), None):
        new.student, new.teacher = own, teacher_of.get(own)
    everything = merged(old, new) if old else new
    write_figures(file, everything)
    if len(named) == 1 and is_student(named[0]):
        # Last, because a student's folder may be read-only, and the figures are useful even then.
        (model,) = models
        _record(model.folder, everything.models[model.name], everything.models.get(teacher_of[model.name]))
    return new


def _open_teachers(
    models: Sequence[Model], given: str | None, skipped: dict[str, str]
) -> tuple[list[Model], dict[str, str]]:
    """Open each teacher of the students once; the first is named "teacher".

    Returns the teachers that could be opened, and the name of each student's teacher; the others go to `skipped`.
    """
    opened: list[Model] = []
    known: list[tuple[dict[str, Any], str]] = []
    teacher_of = {}
    for model in models:
        if model.distillation is None:
            continue
        recorded = model.distillation["teacher"]
        name = next((name for teacher, name in known if teacher == recorded), "")
        if not name:
            name = free_name(f"teacher of {model.name}" if known else "teacher", [other.name for other in models])
            known.append((recorded, name))
            progress.log(f"loading {name} {recorded['teacher']} …")
            try:
                opened.append(open_teacher(model.distillation, given, name))
            except UserError as error:
                skipped[name] = str(error)
        teacher_of[model.name] = name
    return opened, teacher_of


def _measure_fidelity(models: Sequence[Model], shards: Path, record: EvalRecord) -> None:
    """Measure each model on rows that no student was trained on.

    Whether a row is held out depends only on its sentence and the share, so the rows of the smallest share are held out
    for all students.
    """
    students = [model.distillation for model in models if model.distillation]
    shares = [student["training"]["held_out"] for student in students]
    share = min(shares) if shares else default_held_out(require_vectors(shards).totals.rows)
    read = cache(Reference.read)
    for number, model in enumerate(models):
        student = model.distillation or next(iter(students), None)
        layers = tuple(student["teacher"]["layers"]) if student else None
        trained = student["training"].get("train_fraction", 1.0) if student else 1.0
        what = f"held-out fidelity of {model.name}"
        try:
            reference = read(shards, share, layers, trained)
        except UserError as error:
            if number == 0:
                raise
            record.skipped[what] = str(error)
            continue
        progress.log(f"{what}: {counted(len(reference.tokens), 'sentence')}")
        figures = record.models[model.name]
        try:
            figures.held_out, figures.examples = held_out_fidelity(model, reference)
            record.reference = Sentences(reference.fingerprint.corpus_content, share)
        except UserError as error:
            record.skipped[what] = str(error)


def _recorded_fidelity(model: Model, figures: ModelFigures) -> HeldOut | None:
    """Return the figures on a student's own held-out sentences, from its record if its shards are missing."""
    if figures.held_out and not figures.held_out.other_corpus:
        return figures.held_out
    recorded = model.distillation["metrics"].get("held_out") if model.distillation else None
    return msgspec.convert(recorded, HeldOut) if recorded else None


def _sentences_of_text(location: str) -> list[str]:
    """Read sentences to measure on, evenly spaced over the first 100,000 of a text, including short ones."""
    found = sentences_of([location], _READ_SENTENCES, SentenceRules(min_words=1))
    if len(found) < 3:
        sentences = counted(len(found), "different sentence")
        raise UserError(f"--text {location} holds {sentences}, too few to compare; name more text")
    places = np.unique(np.linspace(0, len(found) - 1, min(len(found), TEXT_SENTENCES)).astype(np.int64))
    return [found[place] for place in places]


def _measure_text(
    location: str,
    sentences: Sequence[str],
    models: Sequence[Model],
    teachers: Sequence[Model],
    teacher_of: dict[str, str],
    record: EvalRecord,
) -> None:
    """Measure each model on text, against its teacher; a model without one, against the first student's teacher."""
    progress.log(f"{location}: {counted(len(sentences), 'sentence')}")
    targets: dict[str, torch.Tensor] = {}
    for model, teacher in _with_teachers(models, teachers, teacher_of, location, record):
        if teacher.name not in targets:
            targets[teacher.name] = torch.from_numpy(teacher.encode(sentences))
        wanted = targets[teacher.name]
        if model.student is None:
            found = _across_widths(torch.from_numpy(model.encode(sentences)), wanted)
        else:
            tokens, encoder = model.student.tokenize(sentences), model.student.encoder
            same = metrics.public_targets(wanted, wanted.shape[1], normalize=encoder.config.normalize)
            found, _ = _agreement(encode_tokens(encoder, tokens), same, tokens.lengths)
        record.models[model.name].texts[location] = found


def _with_teachers(
    models: Sequence[Model], teachers: Sequence[Model], teacher_of: dict[str, str], what: str, record: EvalRecord
) -> Iterator[tuple[Model, Model]]:
    """Yield each model with its teacher, or with the first student's if it has none.

    For a model whose teacher is not on this machine, `what` is added to the skipped measures.
    """
    opened = {teacher.name: teacher for teacher in teachers}
    for model in models:
        wanted = teacher_of.get(model.name) or next(iter(teacher_of.values()), "")
        if wanted in opened:
            yield model, opened[wanted]
        else:
            record.skipped[f"{what} of {model.name}"] = "its teacher is not on this machine; see --teacher"


def _altered(location: str) -> dict[str, list[tuple[str, str]]]:
    """Make pairs of sentences that differ in word order or by one word, from randomly chosen sentences of a text."""
    sentences = sentences_of([location], _READ_SENTENCES, SentenceRules())
    Random(0).shuffle(sentences)
    found = {rule: pairs for rule, pairs in altered_pairs(sentences, _PAIRS_OF_RULE).items() if len(pairs) > 2}
    if not found:
        raise UserError(
            f"--word-order {location} holds too few sentences that a rule fits; name more text, in whole sentences"
        )
    return found


def _measure_word_order(
    altered: dict[str, list[tuple[str, str]]],
    models: Sequence[Model],
    teachers: Sequence[Model],
    teacher_of: dict[str, str],
    record: EvalRecord,
) -> None:
    for rule, pairs in altered.items():
        progress.log(f"word order, {rule}: {counted(len(pairs), 'pair')}")
        columns = [list(column) for column in zip(*pairs, strict=True)]
        cosines = {}
        for teacher in teachers:
            left, right = map(teacher.encode, columns)
            cosines[teacher.name] = pair_cosines(left, right)
            record.models[teacher.name].word_order[rule] = word_order(left, right)
        for model, teacher in _with_teachers(models, teachers, teacher_of, "word order", record):
            left, right = map(model.encode, columns)
            record.models[model.name].word_order[rule] = word_order(left, right, cosines[teacher.name])


def _measure_speed(models: Sequence[Model], shards: Path, record: EvalRecord) -> None:
    """Time each model on sentences of the shards."""
    try:
        sentences = sentences_of_shards(shards, TIMED_SENTENCES)
    except UserError as error:
        record.skipped["speed"] = str(error)
        return
    with progress.task("speed", _REPEATS * len(models) * len(sentences), "sentences") as advance:
        rates = speed({model.name: model.timed for model in models}, sentences, advance)
    for model in models:
        figures = record.models[model.name]
        figures.sentences_per_second, figures.timed_as = rates[model.name], model.timed_as
        figures.timed_on = record.environment.machine if record.environment else None


@dataclass(frozen=True)
class Reference:
    """Held-out rows of shards with the teacher's vectors, at most 20,000."""

    shards: Path
    fingerprint: Fingerprint
    """Fingerprint of the run that wrote the shards."""
    tokens: Tokens
    targets: torch.Tensor
    """float32[n, sum of dims], the vectors of the teacher's layers, concatenated."""
    corpora: np.ndarray
    """uint16[n], index of each sentence's corpus."""
    names: Sequence[str]
    """Names of the corpora."""
    rarest: np.ndarray
    """int64[n], count of each sentence's rarest token in the training rows."""
    texts: list[str] | None
    """The n sentences; None if the shards have no text."""

    @classmethod
    def read(
        cls, shards: Path, held_out: float, layers: Sequence[int] | None, train_fraction: float = 1.0
    ) -> "Reference":
        """Read the rows that a share holds out; `layers` of the teacher, or all in the shards if None."""
        stream = ShardStream(shards, held_out=held_out, layers=layers, train_fraction=train_fraction)
        tokens, targets = stream.held_out()
        # Only one shard is in memory at a time.
        vocabulary = stream.fingerprint.vocabulary
        counts = np.zeros(vocabulary, dtype=np.int64)
        for path, train, _ in stream.split():
            counts += np.bincount(Shard.open(path).tokens.take(train).ids, minlength=vocabulary)
        rarest = metrics.rarest_counts(tokens, counts)
        corpora = stream.held_out_corpora()
        return cls(
            shards, stream.fingerprint, tokens, targets, corpora, stream.corpora, rarest, stream.held_out_texts()
        )


def held_out_fidelity(model: Model, reference: Reference) -> tuple[HeldOut, list[Example]]:
    """Measure fidelity on held-out rows: all measures for a student, for others those that compare any two widths."""
    dim = reference.fingerprint.layer_dim
    if model.student is None or model.distillation is None:
        if reference.texts is None:
            raise UserError("the shards have no text (--no-text)")
        return _across_widths(torch.from_numpy(model.encode(reference.texts)), reference.targets[:, -dim:]), []
    require_teacher(reference.shards, reference.fingerprint, model.distillation)
    encoder, own = model.student.encoder, is_own(reference.fingerprint, model.distillation)
    vectors = encode_tokens(encoder, reference.tokens)
    targets = metrics.public_targets(reference.targets, dim, normalize=encoder.config.normalize)
    examples = metrics.nearest_examples(reference.texts, vectors, targets) if reference.texts else []
    found, cosines = _agreement(vectors, targets, reference.tokens.lengths)
    found.other_corpus = None if own else str(reference.shards)
    if cosines is not None:
        found.by_corpus = metrics.by_corpus(cosines, reference.corpora, reference.names)
        # Token frequencies of another corpus would not be those of training.
        found.by_frequency = metrics.by_frequency(cosines, reference.rarest) if own else []
    return found, examples


def _agreement(vectors: torch.Tensor, targets: torch.Tensor, lengths: np.ndarray) -> tuple[HeldOut, np.ndarray | None]:
    """Compare a student's vectors of sentences, `lengths` tokens long, with its teacher's; also return the cosines.

    A reduced student's vectors have another width than its teacher's, so there are no cosines.
    """
    if vectors.shape[1] != targets.shape[1]:
        return _across_widths(vectors, targets), None
    cosines = functional.cosine_similarity(vectors, targets).numpy()
    found = _across_widths(vectors, targets, same_space=True)
    found = msgspec.structs.replace(found, **metrics.fidelity(vectors, targets))
    found.by_length = metrics.by_length(cosines, lengths)
    return found, cosines


def _across_widths(vectors: torch.Tensor, targets: torch.Tensor, *, same_space: bool = False) -> HeldOut:
    agreement = metrics.paired_rank_agreement(vectors, targets)
    found = HeldOut(rows=len(vectors), rank_agreement=agreement)
    return msgspec.structs.replace(found, **metrics.recall_figures(vectors, targets, same_space=same_space))


def speed(encoders: dict[str, Encode], sentences: Sequence[str], advance: Advance) -> dict[str, float]:
    """Return the sentences per second of each encoder, including tokenization: the median of three rounds.

    The encoders take turns in each round, so that a slow phase of the machine affects all of them.
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


def _record(folder: Path, student: ModelFigures, teacher: ModelFigures | None) -> None:
    """Write the figures of a student and its teacher to the student's record and card."""
    found = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    figures: dict[str, Any] = {"size": msgspec.to_builtins(student.size)}
    if teacher:
        figures["teacher_size"] = msgspec.to_builtins(teacher.size)
    # Without folders, which mean nothing to readers of the card.
    texts = {Path(name).name: of for name, of in student.texts.items() if name != OWN_TEXT}
    probes = Probes(texts=texts, word_order=student.word_order, transfer=student.transfer)
    if probes != Probes():
        figures["probes"] = msgspec.to_builtins(probes)
    for measure in ("sentences_per_second", "timed_as", "timed_on", "sts_spearman"):
        if values := {name: value for name, one in found.items() if (value := getattr(one, measure)) is not None}:
            figures[measure] = values
    if student.held_out and student.held_out.other_corpus:
        # The card shows the fidelity on the student's own corpus.
        progress.log(
            f"measured on {student.held_out.other_corpus}, not the shards that the student was trained on: its card "
            "keeps the figures on those"
        )
    elif student.held_out:
        figures["held_out"] = msgspec.to_builtins(student.held_out)
    try:
        before = load_distillation(folder)["metrics"]
        if not update_distillation(folder, metrics={**before, **figures}):
            progress.log(
                f"{folder / CARD} was edited, or is from another version, and is left unchanged; remove it to have it "
                "generated again"
            )
    except OSError as error:
        progress.log(f"{folder} can't be written ({error.strerror}): its record and card are left unchanged")
