"""A student on disk: a sentence-transformers folder that loads without this package."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sentence_distill.pipeline.files import system_errors, write_atomically, write_json
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.files import (
    CARD,
    DISTILLATION,
    MAX_TOKENS,
    StudentFiles,
    load_distillation,
    module_weights,
)
from sentence_distill.student.model import Student
from sentence_distill.student.sharing.card import model_card


def save_student(folder: Path, student: Student, distillation: dict[str, Any]) -> None:
    """Write a student with its model card.

    Args:
        folder: made where it is missing; a student in it is replaced.
        student: what to write. Of its projections only the last belongs to the folder.
        distillation: how it was made and what it scores; "student" and "weights" are added.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import LSTM, Pooling, WordEmbeddings
    from transformers import PreTrainedTokenizerFast

    config, encoder = student.encoder.config, student.encoder
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=student.tokenizer.backend, clean_up_tokenization_spaces=False, model_max_length=MAX_TOKENS
    )
    words = WordEmbeddings(tokenizer, encoder.embedding.weight.detach().cpu(), max_seq_length=MAX_TOKENS)
    lstm = LSTM(config.embedding_dim, config.hidden, num_layers=config.layers)
    lstm.encoder.load_state_dict(encoder.lstm.state_dict())
    modes = config.pooling.split("+")
    pooling = Pooling(2 * config.hidden, modes[0] if len(modes) == 1 else modes)
    dense = Dense(config.pooled_dim, config.target_dims[-1], activation_function=None)
    dense.linear.load_state_dict(encoder.projections[-1].state_dict())
    modules = [words, lstm, pooling, dense] + ([Normalize()] if config.normalize else [])
    model = SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")
    with system_errors(folder):
        model.save_pretrained(str(folder), create_model_card=False)
    share_as(folder / "modules.json", module_weights(folder))
    _write_record(folder, {**distillation, "student": asdict(config), "weights": "float32"})


def load_student(folder: Path, backend: str = "torch") -> Student:
    """Read a student without importing sentence-transformers.

    Args:
        folder: of the student.
        backend: see `Student`.

    Raises:
        UserError: the folder holds no student.
    """
    files = StudentFiles.read(folder)
    encoder = StudentEncoder(files.config)
    encoder.load_state_dict({name: torch.from_numpy(weight) for name, weight in files.weights.items()})
    return Student(encoder, files.tokenizer, backend)


def share_as(example: Path, files: Iterable[Path]) -> None:
    """Let whoever may read `example` read `files`: safetensors writes for its own user alone, whatever the umask."""
    for file in files:
        file.chmod(example.stat().st_mode)


def update_distillation(folder: Path, **fields: Any) -> bool:
    """Set fields of distillation.json, and write the model card anew unless somebody edited it.

    Returns:
        Whether the card was written; not where it is another than the one that the record before gives.
    """
    before, card = load_distillation(folder), folder / CARD
    edited = card.exists() and card.read_bytes() != model_card(before).encode()
    _write_record(folder, {**before, **fields}, with_card=not edited)
    return not edited


def _write_record(folder: Path, distillation: dict[str, Any], *, with_card: bool = True) -> None:
    write_json(folder / DISTILLATION, distillation)
    if with_card:
        write_atomically(folder / CARD, model_card(distillation).encode())
