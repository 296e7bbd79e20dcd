"""`sd export`: a student or classifier as an ONNX file, or as a smaller student's folder."""

import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from msgspec import structs
from tokenizers import Tokenizer
from torch.nn import functional

from sentence_distill.data import progress
from sentence_distill.data.errors import UsageError, UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.files import (
    LOCK_NAME,
    TEMPORARY,
    lock_folder,
    made_folder,
    write_atomically,
    write_json,
)
from sentence_distill.student.classifier import TorchClassifier, is_classifier, load_classifier
from sentence_distill.student.config import ExportConfig
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.environment import versions
from sentence_distill.student.files import (
    CARD,
    DISTILLATION,
    FIGURES,
    HEAD,
    MAX_TOKENS,
    load_distillation,
    module_weights,
    moved_record,
    student_files,
)
from sentence_distill.student.hub import locate_student
from sentence_distill.student.model import Student, load_student
from sentence_distill.student.models import Encode
from sentence_distill.student.onnx_encoder import OUTPUT, PROBABILITIES, SCORES, inputs_of_column
from sentence_distill.student.onnx_graph import Head, build_graph
from sentence_distill.student.onnx_student import (
    EXPORT_FILES,
    EXPORT_FOLDER,
    EXPORT_README,
    EXPORT_RECORD,
    LABELS,
    MODEL,
    TOKENIZER,
    Agreement,
    ExportedStudent,
    ExportedTask,
    ExportRecord,
    Latency,
    OnnxClassifier,
    OnnxStudent,
    is_export,
)
from sentence_distill.student.reduce import (
    Fidelity,
    Reduced,
    copy_student,
    halve_weights,
    reduce,
    save_reduced,
)
from sentence_distill.student.reference import own_shards, sentences_of_file

_MEASURED_SENTENCES = 1000
_CALLS = 200
_PACKAGES = ("sentence-distill", "torch", "onnx", "onnxruntime", "tokenizers")
_NAMED_CLASSES = 10


@dataclass(frozen=True)
class Exported:
    """Result of `export`."""

    folder: Path | None
    """What was written; None if dimensions were only compared."""
    record: ExportRecord | None = None
    """Content of an ONNX export's record."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's classes."""
    skipped: str = ""
    """Why the ONNX export could not be measured."""
    fidelity: tuple[Fidelity, ...] = ()
    """What is left at each number of dimensions asked for, and at the full one."""


@dataclass(frozen=True)
class _Source:
    """A student to export, with its head if it was fine-tuned."""

    folder: Path
    distillation: dict[str, Any]
    student: Student
    classifier: TorchClassifier | None = None

    @classmethod
    def load(cls, folder: Path) -> "_Source":
        distillation = load_distillation(folder)
        if not is_classifier(folder):
            return cls(folder, distillation, load_student(folder))
        model, task = load_classifier(folder)
        return cls(folder, distillation, model.student, TorchClassifier(model, task))


def export(config: ExportConfig) -> Exported:
    """Write a student as an ONNX file, or with `format="folder"` as a smaller student; measure how close it is.

    With several numbers of dimensions they are compared and nothing is written.

    Raises:
        UserError: there is no student, the folder to write holds something else, or named text is not there.
    """
    folder = locate_student(config.student)
    _require_student(folder, config.student)
    if config.dim and is_classifier(folder):
        # Its head reads other states than these vectors, and its record's scores are of that head.
        raise UserError(
            f"{config.student} is fine-tuned on a task, for which its vectors are not used; reduce the student that "
            "it was made of, then fine-tune that (sd finetune), or halve its bytes: --format folder --float16"
        )
    if len(config.dim) > 1:
        return Exported(None, fidelity=_reduce(config, _Source.load(folder)).fidelity)
    out = config.out or _default_out(config, folder)
    with replacing_folder(out, config) as new:
        write = _write_onnx_folder if config.format == "onnx" else _write_student_folder
        return replace(write(config, folder, new), folder=out)


def _write_student_folder(config: ExportConfig, folder: Path, new: Path) -> Exported:
    fidelity: tuple[Fidelity, ...] = ()
    if config.dim:
        source = _Source.load(folder)
        reduced = _reduce(config, source)
        fidelity = reduced.fidelity
        if config.shards and not reduced.sample.own:
            progress.log(f"{config.shards} is not what the student was trained on: its card shows none of the figures")
        save_reduced(new, reduced, moved_record(source.distillation, folder, new))
    else:
        copy_student(folder, new)
    if config.float16:
        halve_weights(new)
    return Exported(new, fidelity=fidelity)


def _write_onnx_folder(config: ExportConfig, folder: Path, new: Path) -> Exported:
    source, head = _Source.load(folder), None
    labels: tuple[str, ...] = ()
    fidelity: tuple[Fidelity, ...] = ()
    if classifier := source.classifier:
        labels = classifier.task.labels
        head = Head(classifier.model.head_arrays(), classifier.model.columns, classifier.task.regression)
    if config.dim:
        reduced = _reduce(config, source)
        source, fidelity = replace(source, student=reduced.student), reduced.fidelity
    write_onnx(source.student, new, int8=config.int8, head=head)
    if labels:
        write_json(new / LABELS, labels)
    record, skipped = _measured(_record(source, config.int8), source, new, config)
    record.write(new)
    write_atomically(new / EXPORT_README, readme(record, labels).encode())
    return Exported(new, record, labels, skipped, fidelity)


def _reduce(config: ExportConfig, source: _Source) -> Reduced:
    student, record, folder = source.student, source.distillation, source.folder
    return reduce(student, record, folder, config.dim, shards=config.shards, corpus=config.corpus)


def _require_student(folder: Path, name: str) -> None:
    if is_export(folder):
        raise UserError(f"{name} is an export already; name the folder of the student that it was made of")
    if not (folder / DISTILLATION).exists() and (folder / "config.json").exists():
        raise UserError(
            f"{name} is a transformer, and sd export takes students; distill it (sd embed, sd train-student), or "
            "export the transformer itself with Hugging Face's optimum"
        )
    load_distillation(folder)


def _default_out(config: ExportConfig, folder: Path) -> Path:
    """STUDENT/onnx; or STUDENT-64 next to a student's folder, and for one on the hub in the current folder."""
    name = config.student
    if config.format == "onnx":
        if folder != Path(name):
            raise UsageError(f"{name} is no folder of yours; name one for its export: --out FOLDER")
        return folder / EXPORT_FOLDER
    if not Path(name).exists():
        name = name.partition("@")[0].rpartition("/")[2]
    return Path(f"{name.rstrip('/')}-{config.dim[0] if config.dim else 'float16'}")


@contextmanager
def replacing_folder(folder: Path, config: ExportConfig) -> Iterator[Path]:
    """Yield a new folder to write into, which takes the place of `folder` when the block ends well.

    Raises:
        UserError: it holds something that no such export wrote, or another run is about to write it.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; name a folder")
    place = folder.resolve()
    with made_folder(place), lock_folder(place):
        _require_replaceable(folder, config)
        # Only the holder of the lock writes these, so whatever is there is of an export that was killed.
        new, old = (place.with_name(f".{place.name}.{name}{TEMPORARY}") for name in ("new", "old"))
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            shutil.rmtree(old, ignore_errors=True)
            # Two names can't be swapped in one step: between these two lines there is no export, never half of one.
            os.rename(place, old)
            os.rename(new, place)
            shutil.rmtree(old)
        except BaseException:
            if old.exists() and not place.exists():
                os.rename(old, place)
            raise
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _require_replaceable(folder: Path, config: ExportConfig) -> None:
    names = {path.name for path in folder.iterdir()} - {LOCK_NAME}
    known: set[str] = set()
    if config.format == "onnx":
        known = EXPORT_FILES if EXPORT_RECORD in names else known
    elif DISTILLATION in names:
        record = load_distillation(folder)
        if record.get("weights") == "float16" or ("reduction" in record and not is_classifier(folder)):
            known = {CARD, DISTILLATION, *FIGURES, "glue", *(Path(file).parts[0] for file in student_files(folder))}
            known |= {EXPORT_FOLDER} if is_export(folder / EXPORT_FOLDER) else set()
    if other := names - known:
        raise UserError(f"{folder} holds {min(other)}, which sd export did not write; name another folder with --out")
    if names and config.format == "folder" and not config.overwrite:
        raise UserError(f"{folder} is there already; name another folder with --out, or --overwrite replaces it")


# The ONNX file and its tokenizer, which run without PyTorch and without this package.


def write_onnx(student: Student, folder: Path, *, int8: bool, head: Head | None = None) -> None:
    """Write the graph of a student, or of the classifier with that head, and the tokenizer."""
    graph = build_graph(student.encoder.config, student.encoder.arrays(), head=head, int8=int8)
    write_atomically(folder / MODEL, graph.SerializeToString())
    write_atomically(folder / TOKENIZER, _plain_tokenizer(student.tokenizer).to_str().encode())


def _plain_tokenizer(tokenizer: TextTokenizer) -> Tokenizer:
    """Return a tokenizer whose file alone sets what it does: no special tokens, truncation, padding at the end."""
    settings = json.loads(tokenizer.to_str())
    settings["post_processor"] = None
    plain = Tokenizer.from_str(json.dumps(settings))
    plain.enable_truncation(MAX_TOKENS)
    # What stands after a sentence's end is never read: any id does.
    plain.enable_padding(pad_id=0, pad_token=plain.id_to_token(0))
    return plain


def _record(source: _Source, int8: bool) -> ExportRecord:
    encoder, weights = source.student.encoder, module_weights(source.folder)
    record = ExportRecord(
        format="onnx",
        kind="encoder",
        inputs=inputs_of_column(0),
        outputs=(OUTPUT,),
        dim=source.student.dim,
        normalize=encoder.config.normalize,
        max_tokens=MAX_TOKENS,
        parameters=_count(encoder),
        int8=int8,
        vocabulary=encoder.config.vocabulary,
        student=ExportedStudent(
            teacher=source.distillation["teacher"]["teacher"], weights=tuple(map(file_hash, weights))
        ),
        versions=versions(_PACKAGES),
    )
    if source.classifier is None:
        return record
    model, task = source.classifier.model, source.classifier.task
    return structs.replace(
        record,
        kind="regression" if task.regression else "classifier",
        inputs=tuple(name for column in range(len(task.columns)) for name in inputs_of_column(column)),
        outputs=(SCORES if task.regression else PROBABILITIES,),
        dim=None,
        normalize=None,
        # The head takes the place of the projection.
        parameters=_count(encoder.embedding, encoder.lstm, model.head),
        task=ExportedTask(name=task.name, columns=task.columns, label=task.label, metrics=task.metrics),
        student=structs.replace(record.student, weights=(*record.student.weights, file_hash(source.folder / HEAD))),
    )


def _count(*modules: torch.nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


# How close an export comes to its student in PyTorch, and how fast both are.


def _measured(record: ExportRecord, source: _Source, new: Path, config: ExportConfig) -> tuple[ExportRecord, str]:
    """Return the record with figures, or with the reason why there are none."""
    if record.task and len(record.task.columns) == 2:
        return record, "the classifier reads pairs, and neither shards nor --sentences hold any"
    if config.sentences:
        texts, origin = sentences_of_file(config.sentences, _MEASURED_SENTENCES), config.sentences.name
    else:
        try:
            texts, origin = _held_out(source, config.shards), "held-out sentences of the shards"
        except UserError as error:
            # Shards that the user named must be there, but the student's own need not.
            if config.shards:
                raise
            return record, f"{error}; name sentences with --sentences FILE"
    if not texts:
        return record, "the shards keep no text (--no-text); name sentences with --sentences FILE"
    exported: Encode
    original: Encode = source.student.encode
    if classifier := source.classifier:
        opened = OnnxClassifier.open(new, classifier.task, threads=1)
        exported, original = (lambda texts: opened.outputs([texts])), lambda texts: classifier.outputs([texts])
    else:
        exported = OnnxStudent.open(new, threads=1).encode
    return structs.replace(
        record,
        agreement=agreement(origin, record.outputs[0], exported(texts), original(texts)),
        latency_ms=latencies({"onnxruntime": exported, "pytorch": original}, texts),
    ), ""


def _held_out(source: _Source, shards: Path | None) -> list[str]:
    recorded, training = source.distillation["corpus"]["fingerprint"], source.distillation["training"]
    folder = shards or own_shards(source.distillation, source.folder)
    stream = ShardStream(folder, held_out=training["held_out"], train_fraction=training.get("train_fraction", 1.0))
    if stream.fingerprint.tokenizer != recorded["tokenizer"]:
        raise UserError(f"{folder} holds tokens of another tokenizer than the student's")
    return stream.held_out_texts(_MEASURED_SENTENCES) or []


def agreement(origin: str, output: str, found: np.ndarray, expected: np.ndarray) -> Agreement:
    """Compare what an export computes with what its student does, both float32[n, width] of the output's name."""
    difference = float(np.abs(found - expected).max())
    compared = Agreement(texts=origin, sentences=len(found), largest_difference=difference)
    if output == PROBABILITIES:
        same = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        return structs.replace(compared, same_label=same)
    if output == SCORES:
        return structs.replace(compared, range=(float(expected.min()), float(expected.max())))
    cosines = functional.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected))
    return structs.replace(compared, cosine=float(cosines.mean()), lowest_cosine=float(cosines.min()))


def latencies(encoders: dict[str, Encode], sentences: Sequence[str], calls: int = _CALLS) -> dict[str, Latency]:
    """Time calls with one sentence, text to output.

    The encoders take turns with every sentence, and PyTorch has one thread meanwhile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    try:
        # The first calls allocate.
        for encode in encoders.values():
            encode(sentences[:1])
        for number in range(calls):
            for name, encode in encoders.items():
                started = time.perf_counter()
                encode([sentences[number % len(sentences)]])
                taken[name].append(1000 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(threads)
    return {name: Latency(*map(float, np.percentile(times, (50, 99)))) for name, times in taken.items()}


# An export in words, for its README.md and the command line.


def describe(record: ExportRecord, labels: Sequence[str]) -> str:
    """Describe an export in a few words: "classifier of 3 classes: neg, neu, pos"."""
    pairs = " for pairs of texts" if record.task and len(record.task.columns) == 2 else ""
    if record.task is None:
        return f"sentence encoder with vectors of {record.dim} dimensions"
    if not labels:
        return f"regression{pairs}"
    others = f" and {len(labels) - _NAMED_CLASSES} others" if len(labels) > _NAMED_CLASSES else ""
    return f"classifier of {len(labels)} classes{pairs}: {', '.join(labels[:_NAMED_CLASSES])}{others}"


def describe_agreement(found: Agreement) -> str:
    """Say in one line how close an export comes to its student in PyTorch."""
    on = f"{found.sentences:,} sentences ({found.texts})"
    if found.same_label is not None:
        return (
            f"same label as the student in PyTorch for {found.same_label:.2%} of {on}; largest difference of a "
            f"probability {found.largest_difference:.2g}"
        )
    if found.range is not None:
        low, high = found.range
        return (
            f"largest difference to the score of the student in PyTorch, {on}: {found.largest_difference:.2g}, of "
            f"scores from {low:.4g} to {high:.4g}"
        )
    return f"cosine to the student, {on}: mean {found.cosine:.4f}, lowest {found.lowest_cosine:.4f}"


def next_command(record: ExportRecord, folder: str) -> str:
    """Return the command that runs an export."""
    if record.task:
        return f"sd predict {shlex.quote(folder)} --input FILE --out predictions.jsonl"
    return f"sd encode --student {shlex.quote(folder)} --input FILE --out vectors.parquet"


def readme(record: ExportRecord, labels: Sequence[str]) -> str:
    """Return the README of an export, with a script that runs it."""
    environment = Environment(
        loader=PackageLoader("sentence_distill.student"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("export-readme.md.j2").render(
        record=record,
        labels=labels,
        what=describe(record, labels),
        agreement=describe_agreement(record.agreement) if record.agreement else "",
        command=next_command(record, "FOLDER"),
    )
