"""From a student's folder to an ONNX file that runs without PyTorch and without this package."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tokenizers import Tokenizer

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.pipeline.files import write_atomically
from sentence_distill.student.encoding.export_folder import INPUTS, MODEL, OUTPUT, RECORD, TOKENIZER, replacing_export
from sentence_distill.student.encoding.onnx_student import OnnxStudent
from sentence_distill.student.environment import versions
from sentence_distill.student.evaluation.reference import held_out_texts, own_shards, token_counts
from sentence_distill.student.evaluation.texts import sentences_of_file
from sentence_distill.student.export.onnx_graph import build_graph
from sentence_distill.student.export.onnx_measure import agreement, latencies
from sentence_distill.student.export.vocabulary import count_tokens, frequent_tokens, prune_student
from sentence_distill.student.folder import load_distillation, load_student, module_weights
from sentence_distill.student.model import MAX_TOKENS, Student
from sentence_distill.student.training.stream import ShardStream

_MEASURED_SENTENCES = 1000
_PACKAGES = ("sentence-distill", "torch", "onnx", "onnxruntime", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class OnnxConfig:
    """What an export is made of."""

    int8: bool = False
    """Whether the LSTM and the projection multiply 8-bit numbers, their inputs quantised as they come."""
    tables: str = "float32"
    """Type of the word embeddings, of `TABLES`."""
    vocabulary: int | None = None
    """How many tokens stay; None is all."""


@dataclass(frozen=True, kw_only=True)
class ExportText:
    """Text that an export needs: to count tokens in, and to measure with."""

    shards: Path | None = None
    """A folder of shards; None is the one that the student was trained on."""
    corpus: Sequence[str] = ()
    """Files to count tokens in instead."""
    sentences: Path | None = None
    """File of sentences to measure with, instead of held-out ones of the shards."""


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


def export_onnx(source: Path, out: Path, config: OnnxConfig, text: ExportText) -> Exported:
    """Export a student and measure how close the export is.

    Args:
        source: the student's folder.
        out: an export in it is replaced.
        config: see there.
        text: see there; an export without sentences to measure with is made all the same.

    Raises:
        UserError: there is no student, `out` holds something else, or text that is needed is not there.
    """
    student, distillation = load_student(source), load_distillation(source)
    with replacing_export(out) as folder:
        stream, missing = _open_shards(distillation, text)
        small = student
        if config.vocabulary is not None:
            small = prune_student(student, _kept_tokens(student, config.vocabulary, text.corpus, stream, missing))
        write_onnx(small, folder, config)
        measured, skipped = _measure(student, folder, text, stream, missing)
        record = _record(small, config, distillation, module_weights(source)) | measured
        write_atomically(folder / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return Exported(out, record, skipped)


def write_onnx(student: Student, folder: Path, config: OnnxConfig) -> None:
    """Write a student's graph, in the types that `config` names, and its tokenizer."""
    model = build_graph(student.encoder, config.tables)
    write_atomically(folder / MODEL, _quantized(model) if config.int8 else model.SerializeToString())
    write_atomically(folder / TOKENIZER, _tokenizer(student.tokenizer).to_str().encode())


def _quantized(model: onnx.ModelProto) -> bytes:
    """The same graph, serialised, with int8 weights in LSTM and projection, a scale for each of their rows."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    # It advises to fold constants and merge nodes first; there is nothing of that here.
    add_pre_process_metadata(model)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / MODEL
        # 7 bits of the 8: on processors without VNNI sums of two products overflow otherwise.
        quantize_dynamic(model, file, op_types_to_quantize=["LSTM", "MatMul"], per_channel=True, reduce_range=True)
        return file.read_bytes()


def _tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer that does as it is told by its file alone: no special tokens, truncation, padding at the end."""
    settings = json.loads(tokenizer.to_str())
    settings["post_processor"] = None
    copy = Tokenizer.from_str(json.dumps(settings))
    copy.enable_truncation(MAX_TOKENS)
    # What stands behind a sentence's end is never read: any id does.
    copy.enable_padding(pad_id=0, pad_token=copy.id_to_token(0))
    return copy


def _open_shards(distillation: dict[str, Any], text: ExportText) -> tuple[ShardStream | None, str]:
    """The shards, or why there are none; those that the user named must be there, others be the student's own."""
    recorded, training = distillation["corpus"]["fingerprint"], distillation["training"]
    try:
        shards = text.shards or own_shards(distillation)
        train_fraction = training.get("train_fraction", 1.0)
        stream = ShardStream(shards, held_out=training["held_out"], train_fraction=train_fraction)
        if stream.fingerprint["tokenizer"] != recorded["tokenizer"]:
            raise UserError(f"{shards} holds tokens of another tokenizer than the student's")
    except UserError as error:
        if text.shards:
            raise
        return None, str(error)
    return stream, ""


def _kept_tokens(
    student: Student, size: int, corpus: Sequence[str], stream: ShardStream | None, missing: str
) -> np.ndarray:
    """int64[at most size]: the tokens that stay."""
    if not corpus and stream is None:
        raise UserError(f"--vocabulary counts tokens, and {missing}; name text with --corpus or shards with --shards")
    counts = count_tokens(student, corpus) if corpus or stream is None else token_counts(stream)
    return frequent_tokens(student.tokenizer, counts, size)


def _measure(
    student: Student, folder: Path, text: ExportText, stream: ShardStream | None, missing: str
) -> tuple[dict[str, Any], str]:
    """Figures of an export beside its student in PyTorch, or why there are none."""
    if text.sentences:
        sentences, origin = sentences_of_file(text.sentences, _MEASURED_SENTENCES), text.sentences.name
    elif stream is None:
        return {}, f"{missing}; name sentences with --sentences FILE"
    elif not (found := held_out_texts(stream, _MEASURED_SENTENCES)):
        return {}, "the shards keep no text (--no-text); name sentences with --sentences FILE"
    else:
        sentences, origin = found, "held-out sentences of the shards"
    exported = OnnxStudent(folder, threads=1)
    return {
        "agreement": {
            "with": origin,
            "sentences": len(sentences),
            **agreement(exported.encode(sentences), student.encode(sentences)),
        },
        "latency_ms": latencies({"onnxruntime": exported.encode, "pytorch": student.encode}, sentences),
    }, ""


def _record(
    student: Student, config: OnnxConfig, distillation: dict[str, Any], weights: Sequence[Path]
) -> dict[str, Any]:
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
        **asdict(config),
        "vocabulary": shape.vocabulary,
        "student": {"teacher": distillation["teacher"]["teacher"], "weights": [file_hash(file) for file in weights]},
        "versions": versions(_PACKAGES),
    }
