"""`sd export`: write a student or classifier as an ONNX file, or as the folder of a smaller student."""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec import structs, to_builtins
from tokenizers import Tokenizer
from torch.nn import functional

from sentence_distill.data import progress
from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.lines import sentences_of_file
from sentence_distill.data.progress import counted
from sentence_distill.pipeline.files import write_atomically, write_json
from sentence_distill.student.classifier import TorchClassifier, load_classifier
from sentence_distill.student.config import ExportConfig
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.export_folder import check_export, replacing_export
from sentence_distill.student.figures import load_distillation, versions
from sentence_distill.student.files import EXPORT_RECORD, HEAD, MAX_TOKENS, is_classifier, module_weights, moved_record
from sentence_distill.student.model import Student, load_student, write_card
from sentence_distill.student.models import Encode, own_shards
from sentence_distill.student.onnx_graph import Head, build_graph
from sentence_distill.student.onnx_student import (
    EXPORT_README,
    LABELS,
    MODEL,
    OUTPUT,
    PROBABILITIES,
    SCORES,
    TOKENIZER,
    Agreement,
    ExportedStudent,
    ExportedTask,
    ExportRecord,
    Latency,
    OnnxClassifier,
    OnnxStudent,
    inputs_of_column,
)
from sentence_distill.student.reduce import Fidelity, copy_student, halve_weights, reduce, save_reduced
from sentence_distill.student.tables import render

_MEASURED_SENTENCES = 1000
_CALLS = 200
_PACKAGES = ("sentence-distill", "torch", "onnx", "onnxruntime", "tokenizers")
_NAMED_CLASSES = 10


@dataclass(frozen=True)
class Exported:
    """Result of `export`."""

    folder: Path | None
    """Folder that was written; None if dimensions were only compared."""
    record: ExportRecord | None = None
    """Record of an ONNX export."""
    labels: tuple[str, ...] = ()
    """Names of a classifier's classes."""
    skipped: str = ""
    """Reason why the ONNX export was not measured."""
    fidelity: tuple[Fidelity, ...] = ()
    """Fidelity at each requested number of dimensions, and at the full one."""


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

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.task.labels if self.classifier else ()


def export(config: ExportConfig) -> Exported:
    """Write a student as an ONNX file, or with `format="folder"` as a smaller student, and measure its fidelity.

    Several numbers of dimensions are only compared, and nothing is written.
    """
    folder, out = check_export(config)
    if out is None:
        return Exported(None, fidelity=_reduced(config, _Source.load(folder), None)[1])
    with replacing_export(out, config) as new:
        exported = replace(_write(config, folder, new), folder=out)
        if config.format == "folder":
            # A card is titled after its folder, and this one is renamed when the block ends.
            write_card(new, out.resolve().name)
        return exported


def _write(config: ExportConfig, folder: Path, new: Path) -> Exported:
    if config.format == "folder" and not config.dim:
        copy_student(folder, new)
        halve_weights(new)
        return Exported(new)
    source = _Source.load(folder)
    fidelity: tuple[Fidelity, ...] = ()
    if config.dim:
        source, fidelity = _reduced(config, source, new if config.format == "folder" else None)
    if config.format == "folder":
        if config.float16:
            halve_weights(new)
        return Exported(new, fidelity=fidelity)
    head = None
    if source.classifier:
        model, task = source.classifier.model, source.classifier.task
        head = Head(model.head_arrays(), model.columns, task.regression)
    write_onnx(source.student, new, int8=config.int8, head=head)
    if source.labels:
        write_json(new / LABELS, source.labels)
    record, skipped = _measured(_record(source, config.int8), source, new, config)
    write_json(new / EXPORT_RECORD, to_builtins(record))
    write_atomically(new / EXPORT_README, readme(record, source.labels).encode())
    return Exported(new, record, source.labels, skipped, fidelity)


def _reduced(config: ExportConfig, source: _Source, new: Path | None) -> tuple[_Source, tuple[Fidelity, ...]]:
    """Project a student's vectors to fewer dimensions, measure their fidelity, and write the student to `new`."""
    reduced = reduce(
        source.student, source.distillation, source.folder, config.dim, shards=config.shards, corpus=config.corpus
    )
    if new is not None:
        if config.shards and not reduced.sample.own:
            progress.log(f"the student was not trained on {config.shards}, so its card omits the figures")
        save_reduced(new, reduced, moved_record(source.distillation, source.folder, new))
    return replace(source, student=reduced.student), reduced.fidelity


def write_onnx(student: Student, folder: Path, *, int8: bool, head: Head | None = None) -> None:
    """Write the graph of a student, or of a classifier with a head, and the tokenizer."""
    graph = build_graph(student.encoder.config, student.encoder.arrays(), head=head, int8=int8)
    write_atomically(folder / MODEL, graph.SerializeToString())
    # The tokenizer file contains all settings, since other programs load nothing else: no special tokens, truncation,
    # padding at the end.
    settings = json.loads(student.tokenizer.to_str())
    settings["post_processor"] = None
    tokenizer = Tokenizer.from_str(json.dumps(settings))
    tokenizer.enable_truncation(MAX_TOKENS)
    # Padding is masked, so any id will do.
    tokenizer.enable_padding(pad_id=0, pad_token=tokenizer.id_to_token(0))
    write_atomically(folder / TOKENIZER, tokenizer.to_str().encode())


def _record(source: _Source, int8: bool) -> ExportRecord:
    encoder, weights = source.student.encoder, module_weights(source.folder)
    used: list[torch.nn.Module] = [encoder]
    kind, output, task = "encoder", OUTPUT, None
    if source.classifier:
        task = source.classifier.task
        kind, output = ("regression", SCORES) if task.regression else ("classifier", PROBABILITIES)
        used = [encoder.embedding, encoder.lstm, source.classifier.model.head]
        weights.append(source.folder / HEAD)
    return ExportRecord(
        format="onnx",
        kind=kind,  # type: ignore[arg-type]
        inputs=tuple(name for column in range(len(task.columns) if task else 1) for name in inputs_of_column(column)),
        outputs=(output,),
        dim=None if task else source.student.dim,
        normalize=None if task else encoder.config.normalize,
        max_tokens=MAX_TOKENS,
        # Only of the modules in the graph.
        parameters=sum(weight.numel() for module in used for weight in module.parameters()),
        int8=int8,
        vocabulary=encoder.config.vocabulary,
        task=ExportedTask(name=task.name, columns=task.columns, label=task.label, metrics=task.metrics)
        if task
        else None,
        student=ExportedStudent(
            teacher=source.distillation["teacher"]["teacher"], weights=tuple(map(file_hash, weights))
        ),
        versions=versions(_PACKAGES),
    )


# Agreement of an export with its student in PyTorch, and the latency of both.


def _measured(record: ExportRecord, source: _Source, new: Path, config: ExportConfig) -> tuple[ExportRecord, str]:
    """Return the record with figures and "", or without figures and the reason."""
    if record.task and len(record.task.columns) == 2:
        return record, "the classifier reads pairs, which neither shards nor --sentences hold"
    if config.sentences:
        texts, origin = sentences_of_file(config.sentences, _MEASURED_SENTENCES), config.sentences.name
    else:
        try:
            texts, origin = _held_out(source, config.shards), "held-out sentences of the shards"
        except UserError as error:
            # Missing shards are an error only if the user has named them.
            if config.shards:
                raise
            return record, f"{error}; name sentences with --sentences FILE"
    if not texts:
        return record, "the shards have no text (--no-text); name sentences with --sentences FILE"
    exported: Encode
    original: Encode = source.student.encode
    if classifier := source.classifier:
        opened = OnnxClassifier.open(new, threads=1)
        exported, original = (lambda texts: opened.outputs([texts])), lambda texts: classifier.outputs([texts])
    else:
        exported = OnnxStudent.of_export(new, threads=1).encode
    return structs.replace(
        record,
        agreement=_agreement(origin, record.outputs[0], exported(texts), original(texts)),
        latency_ms=_latencies({"onnxruntime": exported, "pytorch": original}, texts),
    ), ""


def _held_out(source: _Source, shards: Path | None) -> list[str]:
    recorded, training = source.distillation["corpus"]["fingerprint"], source.distillation["training"]
    folder = shards or own_shards(source.distillation, source.folder)
    stream = ShardStream(folder, held_out=training["held_out"])
    if stream.fingerprint.tokenizer != recorded["tokenizer"]:
        raise UserError(f"{folder} holds tokens of another tokenizer than the student's")
    return stream.held_out_texts(_MEASURED_SENTENCES) or []


def _agreement(origin: str, output: str, found: np.ndarray, expected: np.ndarray) -> Agreement:
    """Compare the outputs of an export and of its student, float32[n, width]; `output` is the name of the output."""
    difference = float(np.abs(found - expected).max())
    compared = Agreement(texts=origin, sentences=len(found), largest_difference=difference)
    if output == PROBABILITIES:
        same = float((found.argmax(axis=1) == expected.argmax(axis=1)).mean())
        return structs.replace(compared, same_label=same)
    if output == SCORES:
        return structs.replace(compared, range=(float(expected.min()), float(expected.max())))
    cosines = functional.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected))
    return structs.replace(compared, cosine=float(cosines.mean()), lowest_cosine=float(cosines.min()))


def _latencies(encoders: dict[str, Encode], sentences: Sequence[str]) -> dict[str, Latency]:
    """Time calls with one sentence, from text to output; the encoders take turns, and PyTorch uses one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    try:
        # The first calls allocate.
        for encode in encoders.values():
            encode(sentences[:1])
        for number in range(_CALLS):
            for name, encode in encoders.items():
                started = time.perf_counter()
                encode([sentences[number % len(sentences)]])
                taken[name].append(1000 * (time.perf_counter() - started))
    finally:
        torch.set_num_threads(threads)
    return {name: Latency(*map(float, np.percentile(times, (50, 99)))) for name, times in taken.items()}


# Descriptions of an export, for its README.md and the command line.


def describe(record: ExportRecord, labels: Sequence[str]) -> str:
    """Describe an export in a few words: "classifier of 3 classes: neg, neu, pos"."""
    pairs = " for pairs of texts" if record.task and len(record.task.columns) == 2 else ""
    if record.task is None:
        return f"sentence encoder with vectors of {record.dim} dimensions"
    if not labels:
        return f"regression{pairs}"
    unnamed = len(labels) - _NAMED_CLASSES
    others = f" and {counted(unnamed, 'other')}" if unnamed > 0 else ""
    classes = counted(len(labels), "class", "classes")
    return f"classifier of {classes}{pairs}: {', '.join(labels[:_NAMED_CLASSES])}{others}"


def describe_agreement(found: Agreement) -> str:
    """Describe the agreement of an export with its student in PyTorch in one line."""
    on = f"{counted(found.sentences, 'sentence')} ({found.texts})"
    if found.same_label is not None:
        return (
            f"same label as the student in PyTorch for {found.same_label:.2%} of {on}; largest difference of a "
            f"probability {found.largest_difference:.2g}"
        )
    if found.range is not None:
        low, high = found.range
        return (
            f"largest difference from the score of the student in PyTorch, {on}: {found.largest_difference:.2g}, with "
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
    return render(
        "export-readme.md.j2",
        record=record,
        labels=labels,
        what=describe(record, labels),
        agreement=describe_agreement(record.agreement) if record.agreement else "",
        command=next_command(record, "FOLDER"),
    )
