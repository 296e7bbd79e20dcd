"""Peers to time."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sentence_distill.data import progress
from sentence_distill.data.errors import first_line
from sentence_distill.pipeline.teacher_folder import transformer_folder
from sentence_distill.student.contenders import Contender, Field
from sentence_distill.student.models import parameters

_TF_IDF = "tf-idf.json"


def make_peers(field: Field, sentences: Sequence[str]) -> None:
    """Make the models that some contenders run; one that can't be made is skipped."""
    for contender in list(field.contenders):
        if contender.folder.exists():
            continue
        progress.log(f"making {contender.name}")
        try:
            if contender.runner == "scikit-learn":
                make_tf_idf(sentences, contender.folder)
            elif field.teacher is not None:
                transformer = transformer_folder(field.teacher)
                (make_onnx if contender.runner == "ONNX Runtime" else make_static)(transformer, contender.folder)
        # Whatever a library of others raises, the measurement goes on without this one.
        except Exception as error:
            field.contenders.remove(contender)
            field.skipped[contender.name] = f"could not be made: {first_line(error)}"


def parameters_of(contender: Contender, field: Field) -> int:
    """Number of a contender's weights."""
    if contender.runner == "scikit-learn":
        return len(json.loads((contender.folder / _TF_IDF).read_text(encoding="utf-8"))["idf"])
    if contender.runner == "ONNX Runtime" and field.teacher is not None:
        return parameters(field.teacher)
    return parameters(contender.folder)


def make_static(teacher: Path, folder: Path) -> None:
    """model2vec's static model of a teacher, with its own defaults."""
    from model2vec.distill import distill_from_model
    from transformers import AutoModel, AutoTokenizer

    with _quiet():
        # Its own `distill` would read pickled weights too.
        model = AutoModel.from_pretrained(teacher, use_safetensors=True, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(teacher, local_files_only=True)
        static = distill_from_model(model, tokenizer, device="cpu")
    # Before 0.9 model2vec saves a table by columns, as PCA leaves it, as if it were by rows, and pads like the teacher.
    static.embedding = np.ascontiguousarray(static.embedding)
    static.tokenizer.no_padding()
    static.save_pretrained(str(folder))


def make_onnx(teacher: Path, folder: Path) -> None:
    """The teacher's transformer for ONNX Runtime, its matrices quantised to int8 as they come (dynamically)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel, AutoTokenizer

    folder.mkdir()
    with _quiet():
        model = AutoModel.from_pretrained(teacher, use_safetensors=True, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(teacher)
        sample = dict(tokenizer(["one two three four", "five"], padding=True, return_tensors="pt"))
        axes = {name: {0: "sentences", 1: "tokens"} for name in (*sample, "states")}
        torch.onnx.export(
            _States(model, list(sample)).eval(),
            tuple(sample.values()),
            str(folder / "float.onnx"),
            input_names=list(sample),
            output_names=["states"],
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
        quantize_dynamic(folder / "float.onnx", folder / "model.onnx", weight_type=QuantType.QInt8)
    (folder / "float.onnx").unlink()
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


class _States(nn.Module):
    """A transformer whose inputs have places instead of names, as the exporter wants them."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """float32[sentences, tokens, width]: the last hidden states."""
        return self.model(**dict(zip(self.names, inputs, strict=True))).last_hidden_state  # type: ignore[no-any-return]


def make_tf_idf(sentences: Sequence[str], folder: Path) -> None:
    """Vocabulary and weights of TF-IDF, fitted on sentences."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True).fit(sentences)
    words = {word: int(place) for word, place in vectorizer.vocabulary_.items()}
    folder.mkdir()
    fitted = {"vocabulary": words, "idf": vectorizer.idf_.tolist()}
    (folder / _TF_IDF).write_text(json.dumps(fitted, ensure_ascii=False), encoding="utf-8")


@contextlib.contextmanager
def _quiet() -> Iterator[Any]:
    """Drop what exporters say of themselves: progress bars and advice."""
    import logging
    import warnings

    with open(os.devnull, "w") as nowhere, warnings.catch_warnings(), contextlib.redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
