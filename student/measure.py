"""Intrinsic measures of a student: fidelity, STS-B, size, and speed beside its teacher's."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Examples
from sentence_distill.pipeline.fingerprint import differing_fields
from sentence_distill.pipeline.locate import locate_local, locate_teacher
from sentence_distill.pipeline.precision import pick_precision
from sentence_distill.pipeline.teacher import Teacher
from sentence_distill.student.fidelity import fidelity, public_targets
from sentence_distill.student.folder import load_distillation, load_student
from sentence_distill.student.model import Student, encode_tokens
from sentence_distill.student.stream import ShardStream

Encode = Callable[[Sequence[str]], np.ndarray]
TIMED_SENTENCES = 2000
_REPEATS = 3


def measure_student(
    folder: Path, *, shards: Path | None, pairs: Examples | None, teacher_name: str | None
) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure all that can be measured here.

    Args:
        folder: of the student.
        shards: for held-out rows and sentences to time; None takes those of the training.
        pairs: sentence pairs with human scores, for STS.
        teacher_name: see `load_teacher_of`.

    Returns:
        figures: by measure; student and teacher are timed in the same type, `precision`.
        skipped: what could not be measured, with the reason.
    """
    distillation, student = load_distillation(folder), load_student(folder)
    precision = pick_precision("auto", torch.device("cpu"))
    figures: dict[str, Any] = {"size": size(folder, student), "precision": str(precision).removeprefix("torch.")}
    skipped: dict[str, str] = {}
    timed: dict[str, Encode] = {"student": partial(student.encode, precision=precision)}
    exact: dict[str, Encode] = {"student": student.encode}
    try:
        timed["teacher"] = exact["teacher"] = load_teacher_of(distillation, teacher_name)
    except UserError as error:
        skipped["teacher"] = str(error)
    shards = shards or Path(distillation["shards"])
    try:
        figures["held_out"] = held_out_fidelity(student, shards, distillation)
        if sentences := sample_sentences(shards):
            figures["sentences_per_second"] = speed(timed, sentences)
        else:
            skipped["speed"] = "the shards keep no text (--no-text)"
    except UserError as error:
        skipped["held-out fidelity and speed"] = str(error)
    if pairs is None or len(pairs.labels) < 2:
        skipped["STS-B"] = "no pairs; name them with --sts dev.tsv or --glue-dir DIR"
    else:
        figures["sts_spearman"] = {name: sts_spearman(encode, pairs) for name, encode in exact.items()}
    return figures, skipped


def load_teacher_of(distillation: dict[str, Any], name: str | None) -> Encode:
    """The teacher of a student, as a function from sentences to vectors of its last target layer.

    Args:
        distillation: of the student.
        name: where the teacher is; None looks for the recorded one on this machine, and asks no hub.

    Raises:
        UserError: it is not here, or has other weights than the student's teacher.
    """
    recorded = distillation["teacher"]
    located = locate_teacher(name) if name else locate_local(recorded["teacher"])
    if located is None:
        raise UserError(f"{recorded['teacher']} is not on this machine; name its folder with --teacher DIR")
    cpu = torch.device("cpu")
    teacher = Teacher.load(
        located, pooling=recorded["pooling"], layers=recorded["layers"], device=cpu, dtype=pick_precision("auto", cpu)
    )
    if teacher.weights_hashes() != recorded["teacher_weights"]:
        raise UserError(f"{located.name} has other weights than the student's teacher; name that one with --teacher")
    token_budget = distillation["corpus"]["fingerprint"]["token_budget"]

    def encode(sentences: Sequence[str]) -> np.ndarray:
        tokens = teacher.tokenize(sentences).take(np.arange(len(sentences)), most=teacher.max_tokens)
        return teacher.embed(tokens, token_budget)[:, -teacher.layer_dim :]

    return encode


_SAME_TEACHER = ("teacher_weights", "tokenizer", "pooling", "layers", "normalize")


def held_out_fidelity(student: Student, shards: Path, distillation: dict[str, Any]) -> dict[str, float]:
    """`fidelity` on the rows of `shards` that training held out.

    Raises:
        UserError: the shards are not there or damaged, or of another teacher than the student's.
    """
    training = distillation["training"]
    stream = ShardStream(shards, held_out=training["held_out"], layers=training.get("target_layers"))
    trained = distillation["corpus"]["fingerprint"]
    old, new = ({field: of[field] for field in _SAME_TEACHER} for of in (trained, stream.fingerprint))
    if differing := differing_fields(old, new):
        raise UserError(f"{shards} holds vectors of another teacher: {'; '.join(differing)}; name others with --shards")
    input_ids, targets = stream.held_out()
    return fidelity(encode_tokens(student.encoder, input_ids), public_targets(targets, student.encoder.config))


def sts_spearman(encode: Encode, examples: Examples) -> float:
    """Spearman correlation of human scores with the cosines of `encode`'s vectors of each pair."""
    first, second = (torch.from_numpy(encode(column)) for column in examples.texts)
    cosines = functional.cosine_similarity(first, second, dim=1).numpy()
    return float(spearmanr(cosines, examples.labels).statistic)


def size(folder: Path, student: Student) -> dict[str, float]:
    """Parameters, and megabytes of all that is needed to load the student: neither checkpoints nor logs are."""
    modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    files = [f for module in modules if module["path"] for f in (folder / module["path"]).iterdir()]
    files += [f for f in folder.iterdir() if f.suffix in (".json", ".safetensors")]
    return {
        "parameters": sum(p.numel() for p in student.encoder.parameters()),
        "megabytes": sum(f.stat().st_size for f in files) / 1e6,
    }


def sample_sentences(shards: Path, count: int = TIMED_SENTENCES) -> list[str]:
    """The first sentences of the first shard, for timing; none where the shards keep no text."""
    table = pa.ipc.open_file(pa.memory_map(str(shards / "shard-00000.arrow"))).read_all()
    return table["text"][:count].to_pylist() if "text" in table.column_names else []


def speed(encoders: dict[str, Encode], sentences: Sequence[str]) -> dict[str, float]:
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
    return {name: statistics.median(values) for name, values in rates.items()}
