"""From a student's folder to an ONNX file that runs without PyTorch and without this package."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.files import write_atomically
from sentence_distill.student.encoding.export_folder import MODEL, RECORD, TOKENIZER, replacing_export
from sentence_distill.student.encoding.onnx_student import OnnxStudent
from sentence_distill.student.environment import versions
from sentence_distill.student.evaluation.reference import held_out_texts, own_shards
from sentence_distill.student.evaluation.texts import sentences_of_file
from sentence_distill.student.export.onnx_measure import agreement, latencies
from sentence_distill.student.files import MAX_TOKENS, load_distillation, module_weights
from sentence_distill.student.folder import load_student
from sentence_distill.student.model import Student
from sentence_distill.student.onnx_encoder import INPUTS, OUTPUT
from sentence_distill.student.onnx_graph import build_graph
from sentence_distill.student.training.stream import ShardStream

_MEASURED_SENTENCES = 1000
_PACKAGES = ("sentence-distill", "torch", "onnx", "onnxruntime", "tokenizers")


@dataclass
class Exported:
    """What `export_onnx` made.

    Args:
        folder: where it is.
        record: what its export.json holds.
        skipped: why it could not be measured; "" if it was.
    """

    folder: Path
    record: dict[str, Any]
    skipped: str = ""


def export_onnx(
    source: Path, out: Path, *, int8: bool, shards: Path | None = None, sentences: Path | None = None
) -> Exported:
    """Export a student and measure how close the export is.

    Args:
        source: the student's folder.
        out: an export in it is replaced.
        int8: see `build_graph`.
        shards: a folder of shards to take held-out sentences from; None is the one that the student was trained on.
        sentences: file of sentences to measure with instead; an export without any is made all the same.

    Raises:
        UserError: there is no student, `out` holds something else, or text that is named is not there.
    """
    student, distillation = load_student(source), load_distillation(source)
    with replacing_export(out) as folder:
        write_onnx(student, folder, int8=int8)
        measured, skipped = _measure(student, folder, distillation, source, shards, sentences)
        record = _record(student, int8, distillation, module_weights(source)) | measured
        write_atomically(folder / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return Exported(out, record, skipped)


def write_onnx(student: Student, folder: Path, *, int8: bool) -> None:
    """Write a student's graph and its tokenizer."""
    model = build_graph(student.encoder.config, student.encoder.arrays(), int8=int8)
    write_atomically(folder / MODEL, model.SerializeToString())
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


def _measure(
    student: Student,
    folder: Path,
    distillation: dict[str, Any],
    source: Path,
    shards: Path | None,
    file: Path | None,
) -> tuple[dict[str, Any], str]:
    """Figures of an export beside its student in PyTorch, or why there are none."""
    if file:
        sentences, origin = sentences_of_file(file, _MEASURED_SENTENCES), file.name
    else:
        try:
            sentences, origin = _held_out(distillation, source, shards), "held-out sentences of the shards"
        except UserError as error:
            # Shards that the user named must be there, others be the student's own.
            if shards:
                raise
            return {}, f"{error}; name sentences with --sentences FILE"
    if not sentences:
        return {}, "the shards keep no text (--no-text); name sentences with --sentences FILE"
    exported = OnnxStudent.of_export(folder, threads=1)
    return {
        "agreement": {
            "with": origin,
            "sentences": len(sentences),
            **agreement(exported.encode(sentences), student.encode(sentences)),
        },
        "latency_ms": latencies({"onnxruntime": exported.encode, "pytorch": student.encode}, sentences),
    }, ""


def _held_out(distillation: dict[str, Any], source: Path, shards: Path | None) -> list[str]:
    recorded, training = distillation["corpus"]["fingerprint"], distillation["training"]
    folder = shards or own_shards(distillation, source)
    stream = ShardStream(folder, held_out=training["held_out"], train_fraction=training.get("train_fraction", 1.0))
    if stream.fingerprint["tokenizer"] != recorded["tokenizer"]:
        raise UserError(f"{folder} holds tokens of another tokenizer than the student's")
    return held_out_texts(stream, _MEASURED_SENTENCES) or []


def _record(student: Student, int8: bool, distillation: dict[str, Any], weights: Sequence[Path]) -> dict[str, Any]:
    """What a user of the files should know, and what they were made from."""
    shape = student.encoder.config
    return {
        "format": "onnx",
        "inputs": list(INPUTS),
        "output": OUTPUT,
        "dim": student.dim,
        "max_tokens": MAX_TOKENS,
        "normalize": shape.normalize,
        "parameters": sum(weight.numel() for weight in student.encoder.parameters()),
        "int8": int8,
        "vocabulary": shape.vocabulary,
        "student": {"teacher": distillation["teacher"]["teacher"], "weights": [file_hash(file) for file in weights]},
        "versions": versions(_PACKAGES),
    }
