"""Export a student or a classifier to ONNX."""

import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional

from sentence_distill.data.errors import UserError
from sentence_distill.data.glue import Task
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.files import write_atomically, write_json
from sentence_distill.student.classifier import TorchClassifier, is_classifier, load_classifier
from sentence_distill.student.dataset import ShardStream
from sentence_distill.student.environment import versions
from sentence_distill.student.export_folder import (
    CLASSIFIER,
    LABELS,
    MODEL,
    README,
    REGRESSION,
    TOKENIZER,
    Agreement,
    ExportedTask,
    ExportRecord,
    replacing_export,
)
from sentence_distill.student.files import HEAD, MAX_TOKENS, load_distillation, module_weights
from sentence_distill.student.model import Student, load_student
from sentence_distill.student.models import Encode
from sentence_distill.student.onnx_encoder import PROBABILITIES, SCORES, inputs_of_column
from sentence_distill.student.onnx_graph import Head, build_graph
from sentence_distill.student.onnx_student import OnnxClassifier, OnnxStudent, open_export
from sentence_distill.student.reference import held_out_texts, own_shards, sentences_of_file

_CALLS = 200


def agreement(texts: str, output: str, exported: Encode, student: Encode, sentences: Sequence[str]) -> Agreement:
    """Compare what an export computes with its student.

    Args:
        texts: origin of the sentences.
        output: the name of what both compute, see `OnnxEncoder.output`.
        exported: the export.
        student: the student in PyTorch.
        sentences: what to compare on.
    """
    found, expected = exported(sentences), student(sentences)
    compared = Agreement(
        texts=texts, sentences=len(sentences), largest_difference=float(np.abs(found - expected).max())
    )
    if output == PROBABILITIES:
        return replace(compared, same_label=float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()))
    if output == SCORES:
        return replace(compared, range=(float(expected.min()), float(expected.max())))
    cosines = functional.cosine_similarity(torch.from_numpy(found), torch.from_numpy(expected))
    return replace(compared, cosine=float(cosines.mean()), lowest_cosine=float(cosines.min()))


def latencies(
    encoders: dict[str, Encode], sentences: Sequence[str], calls: int = _CALLS
) -> dict[str, dict[str, float]]:
    """Milliseconds of a call with one sentence, text to vector: the 50th and 99th percentile of each encoder.

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
    return {name: {f"p{part}": float(np.percentile(times, part)) for part in (50, 99)} for name, times in taken.items()}


# The README.md of an export: what it is and how to use it.

_TEMPLATE = "export-readme.md.j2"
_NAMED_CLASSES = 10


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
    """The command that runs an export."""
    folder = shlex.quote(folder)
    if record.task:
        return f"sd predict {folder} --input FILE --out predictions.jsonl"
    return f"sd encode --student {folder} --input FILE --out vectors.parquet"


def readme(record: ExportRecord, labels: Sequence[str]) -> str:
    """Write the README of an export.

    Args:
        record: content of its export.json.
        labels: names of a classifier's classes.
    """
    environment = Environment(
        loader=PackageLoader("sentence_distill.student"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(
        title=f"{record.task.name}: {record.kind}" if record.task else "Sentence encoder",
        what=_sentence(describe(record, labels)),
        record=record,
        labels=labels,
        pairs=bool(record.task) and len(record.inputs) == 4,
        command=next_command(record, "FOLDER"),
        shape=_shape(record, labels),
        agreement=_sentence(describe_agreement(record.agreement)) if record.agreement else "",
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def _shape(record: ExportRecord, labels: Sequence[str]) -> str:
    if labels:
        return f"float32[texts, {len(labels)}]: of each class of `labels.json`, in its order"
    if record.task:
        return "float32[texts, 1]"
    return f"float32[texts, {record.dim}]" + (", each of length 1" if record.normalize else "")


# From a student's folder to an ONNX file that runs without PyTorch and without this package.

_MEASURED_SENTENCES = 1000
_PACKAGES = ("sentence-distill", "torch", "onnx", "onnxruntime", "tokenizers")


@dataclass
class Exported:
    """The result of `export_onnx`.

    Args:
        folder: where it is.
        record: what its export.json holds.
        labels: names of a classifier's classes; () for the others.
        skipped: why it could not be measured; "" if it was.
    """

    folder: Path
    record: ExportRecord
    labels: tuple[str, ...] = ()
    skipped: str = ""


@dataclass(frozen=True)
class _Source:
    """A student to export.

    Args:
        folder: where it lies.
        student: the student itself.
        classifier: the classifier that it was fine-tuned to, or None.
        weights: files of all their weights.
    """

    folder: Path
    student: Student
    classifier: TorchClassifier | None
    weights: Sequence[Path]

    @classmethod
    def load(cls, folder: Path) -> "_Source":
        if not is_classifier(folder):
            return cls(folder, load_student(folder), None, module_weights(folder))
        model, task = load_classifier(folder)
        return cls(folder, model.student, TorchClassifier(model, task), [*module_weights(folder), folder / HEAD])

    @property
    def task(self) -> Task | None:
        return self.classifier.task if self.classifier else None

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.labels if self.task else ()

    @property
    def head(self) -> Head | None:
        if self.classifier is None:
            return None
        model, task = self.classifier.model, self.classifier.task
        return Head(model.head_arrays(), model.columns, task.regression)

    @property
    def parameters(self) -> int:
        """Number of the weights that the graph has."""
        encoder = self.student.encoder
        if self.classifier is None:
            return _count(encoder)
        return _count(encoder.embedding, encoder.lstm, self.classifier.model.head)


def _count(*modules: nn.Module) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def export_onnx(
    source: Path, out: Path, *, int8: bool, shards: Path | None = None, sentences: Path | None = None
) -> Exported:
    """Export a student, with its head if it was fine-tuned, and measure how close the export is.

    Args:
        source: the student's folder.
        out: an export in it is replaced.
        int8: see `build_graph`.
        shards: a folder of shards to take held-out sentences from; None is the one that the student was trained on.
        sentences: file of sentences to measure with instead; an export without any is made all the same.

    Raises:
        UserError: there is no student, `out` holds something else, or text that is named is not there.
    """
    distillation, loaded = load_distillation(source), _Source.load(source)
    with replacing_export(out) as folder:
        write_onnx(loaded.student, folder, int8=int8, head=loaded.head)
        if loaded.labels:
            write_json(folder / LABELS, loaded.labels)
        record = _record(loaded, int8, distillation)
        record, skipped = _measured(record, loaded, folder, distillation, shards, sentences)
        record.write(folder)
        write_atomically(folder / README, readme(record, loaded.labels).encode())
    return Exported(out, record, loaded.labels, skipped)


def write_onnx(student: Student, folder: Path, *, int8: bool, head: Head | None = None) -> None:
    """Write the graph of a student, or of the classifier with that head, and the tokenizer."""
    graph = build_graph(student.encoder.config, student.encoder.arrays(), head=head, int8=int8)
    write_atomically(folder / MODEL, graph.SerializeToString())
    write_atomically(folder / TOKENIZER, _tokenizer(student.tokenizer).to_str().encode())


def _tokenizer(tokenizer: TextTokenizer) -> Tokenizer:
    """A tokenizer that does as it is told by its file alone: no special tokens, truncation, padding at the end."""
    settings = json.loads(tokenizer.to_str())
    settings["post_processor"] = None
    copy = Tokenizer.from_str(json.dumps(settings))
    copy.enable_truncation(MAX_TOKENS)
    # What stands behind a sentence's end is never read: any id does.
    copy.enable_padding(pad_id=0, pad_token=copy.id_to_token(0))
    return copy


def _record(source: _Source, int8: bool, distillation: dict[str, Any]) -> ExportRecord:
    """Describe the files for their user, with what they were made from."""
    shape, task = source.student.encoder.config, source.task
    record = ExportRecord(
        max_tokens=MAX_TOKENS,
        parameters=source.parameters,
        int8=int8,
        vocabulary=shape.vocabulary,
        student={
            "teacher": distillation["teacher"]["teacher"],
            "weights": [file_hash(file) for file in source.weights],
        },
        versions=versions(_PACKAGES),
    )
    if task is None:
        return replace(record, dim=source.student.dim, normalize=shape.normalize)
    return replace(
        record,
        kind=REGRESSION if task.regression else CLASSIFIER,
        inputs=tuple(name for column in range(len(task.columns)) for name in inputs_of_column(column)),
        outputs=(SCORES if task.regression else PROBABILITIES,),
        task=ExportedTask(name=task.name, columns=task.columns, label=task.label, metrics=task.metrics),
    )


def _measured(
    record: ExportRecord,
    source: _Source,
    folder: Path,
    distillation: dict[str, Any],
    shards: Path | None,
    file: Path | None,
) -> tuple[ExportRecord, str]:
    """The record with figures of the export beside its student in PyTorch, or with the reason why there are none."""
    if record.task and len(record.task.columns) == 2:
        return record, "the classifier reads pairs, and neither shards nor --sentences hold any"
    if file:
        sentences, origin = sentences_of_file(file, _MEASURED_SENTENCES), file.name
    else:
        try:
            sentences, origin = _held_out(distillation, source.folder, shards), "held-out sentences of the shards"
        except UserError as error:
            # Shards that the user named must be there, others be the student's own.
            if shards:
                raise
            return record, f"{error}; name sentences with --sentences FILE"
    if not sentences:
        return record, "the shards keep no text (--no-text); name sentences with --sentences FILE"
    exported, student = _runners(source, folder)
    return replace(
        record,
        agreement=agreement(origin, record.outputs[0], exported, student, sentences),
        latency_ms=latencies({"onnxruntime": exported, "pytorch": student}, sentences),
    ), ""


def _runners(source: _Source, folder: Path) -> tuple[Encode, Encode]:
    """The export, on one thread, and the model that it was made of, each as a function of sentences."""
    classifier = source.classifier
    if classifier is None:
        return OnnxStudent.of_export(folder, threads=1).encode, source.student.encode
    exported = open_export(
        folder, lambda model, tokenizer: OnnxClassifier(model, tokenizer, classifier.task, threads=1)
    )
    return lambda sentences: exported.outputs([sentences]), lambda sentences: classifier.outputs([sentences])


def _held_out(distillation: dict[str, Any], student: Path, shards: Path | None) -> list[str]:
    recorded, training = distillation["corpus"]["fingerprint"], distillation["training"]
    folder = shards or own_shards(distillation, student)
    stream = ShardStream(folder, held_out=training["held_out"], train_fraction=training.get("train_fraction", 1.0))
    if stream.fingerprint["tokenizer"] != recorded["tokenizer"]:
        raise UserError(f"{folder} holds tokens of another tokenizer than the student's")
    return held_out_texts(stream, _MEASURED_SENTENCES) or []
