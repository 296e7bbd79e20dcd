"""Initial weights of a training run: new ones, or those of a student."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sentence_distill.data.errors import UserError
from sentence_distill.data.progress import counted
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.manifest import require_vectors
from sentence_distill.pipeline.records import WORD_EMBEDDINGS
from sentence_distill.student.config import INITS
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.files import find_shards, locate_student, weights_hashes
from sentence_distill.student.model import Student, load_student

SCALE = 0.3
"""Standard deviation of initial embeddings of any kind, which keeps the LSTM's gates in their linear range."""


def initial_embeddings(kind: str, teacher: torch.Tensor, dim: int, generator: torch.Generator) -> torch.Tensor:
    """Return initial word embeddings, float32[vocabulary, dim].

    "pca" projects the teacher's table, float[vocabulary, width], to its first `dim` principal components; "random" is
    Gaussian.
    """
    if kind not in INITS:
        raise UserError(f"init {kind!r} is not one of {', '.join(INITS)}, and no student was given to start from")
    if kind == "random":
        return torch.randn(len(teacher), dim, generator=generator) * SCALE
    if dim > teacher.shape[1]:
        raise UserError(
            f"--embedding-dim {dim} is wider than the teacher's word embeddings ({teacher.shape[1]}); "
            "lower it, or add --init random"
        )
    centered = teacher.double() - teacher.double().mean(dim=0)
    # The table has many more rows than columns, so the eigenvectors of its covariance are cheaper than its SVD.
    _, directions = torch.linalg.eigh(centered.T @ centered)
    reduced = centered @ directions.flip(1)[:, :dim]
    return (reduced * (SCALE / reduced.std())).float()


def initial_words(distillation: dict[str, Any], folder: Path) -> torch.Tensor:
    """Return the default initial word embeddings for the training of the student in `folder`."""
    shards = find_shards(distillation, folder)
    if require_vectors(shards).fingerprint.teacher_weights != distillation["teacher"]["teacher_weights"]:
        raise UserError(f"{shards} has the word embeddings of another teacher than the student's")
    words, dim = load_file(shards / WORD_EMBEDDINGS)["weight"].float(), distillation["student"]["embedding_dim"]
    return initial_embeddings("pca", words, dim, torch.Generator())


class OtherVocabulary(UserError):
    """Two tokenizers share too few tokens for one student to start from the other."""


@dataclass(frozen=True)
class WarmStart:
    """A student whose weights a training run starts from."""

    name: str
    """Name of its folder, name of a packaged student, or name on the hub."""
    folder: Path
    student: Student
    weights: list[str]
    """Hashes of its weight files."""

    @classmethod
    def load(cls, init: str) -> "WarmStart | None":
        """Open the student that `--init` names; None if it names a kind of new weights."""
        if init in INITS:
            return None
        try:
            folder = locate_student(init)
            # Only the name of a folder goes into the record, because paths mean nothing on other machines.
            name = folder.name if Path(init).exists() else init
            return cls(name, folder, load_student(folder), weights_hashes(folder))
        except UserError as error:
            raise UserError(f"--init {init} is neither {' nor '.join(INITS)} nor a student: {error}") from error

    def copy_into(self, encoder: StudentEncoder, tokenizer: TextTokenizer) -> list[str]:
        """Copy its weights into an encoder of the same shape; return a line for each kind that could not be copied.

        A token gets the vector of the same token in this student, or of its lower-case form; a token that this student
        lacks gets the mean of its vectors. The projection is copied only if the width of the vectors is the same.
        """
        last = f"projections.{len(encoder.projections) - 1}."
        own, notes = encoder.state_dict(), []
        weights = {
            name.replace("projections.0.", last): value for name, value in self.student.encoder.state_dict().items()
        }
        weights["embedding.weight"], unknown = self._words(tokenizer, encoder.config.vocabulary)
        if unknown:
            notes.append(
                f"{self.name} lacks {counted(unknown, 'token')} of these shards: set to its mean word embedding"
            )
        fitting = {name: value for name, value in weights.items() if value.shape == own[name].shape}
        if other := sorted(own.keys() - fitting.keys()):
            notes.append(f"{self.name} has no {', '.join(other)} of the shape for these shards: initialized randomly")
        encoder.load_state_dict({**own, **fitting})
        return notes

    def _words(self, tokenizer: TextTokenizer, rows: int) -> tuple[torch.Tensor, int]:
        """Return word embeddings for the tokens of the shards, float32[rows, width], and how many are unknown."""
        table = self.student.encoder.embedding.weight.detach()
        known, tokens = self.student.tokenizer.vocabulary(), tokenizer.vocabulary()
        if tokens == known and rows == len(table):
            return table, 0
        places = {number: known.get(token, known.get(token.lower())) for token, number in tokens.items()}
        shared = {number: place for number, place in places.items() if place is not None}
        if len(shared) < len(tokens) / 2:
            raise OtherVocabulary(
                f"{self.name} has {len(shared):,} of the {len(tokens):,} tokens of the shards, too few to start from: "
                "their teachers' tokenizers differ; start with --init pca"
            )
        words = table.mean(dim=0).repeat(rows, 1)
        words[list(shared)] = table[list(shared.values())]
        return words, len(tokens) - len(shared)
