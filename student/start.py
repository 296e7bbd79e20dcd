"""What a training run starts from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.pipeline.manifest import require_vectors
from sentence_distill.pipeline.records import WORD_EMBEDDINGS
from sentence_distill.student.config import INITS
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.files import find_shards, module_weights
from sentence_distill.student.hub import locate_student
from sentence_distill.student.model import Student, load_student

# Standard deviation of the initial embeddings, whichever way they are made: the LSTM's gates stay in their
# linear range.
SCALE = 0.3


def initial_embeddings(kind: str, teacher: torch.Tensor, dim: int, generator: torch.Generator) -> torch.Tensor:
    """Word embeddings to start from.

    Args:
        kind: "pca" projects the teacher's table to its `dim` principal components; "random" is Gaussian.
        teacher: float[vocabulary, width], the teacher's word embeddings.
        dim: width of the student's.
        generator: of the random ones.

    Returns:
        float32[vocabulary, dim], with standard deviation `SCALE`.

    Raises:
        UserError: "pca" with more components than the teacher's table is wide, or an unknown kind.
    """
    if kind not in INITS:
        raise UserError(f"init {kind!r} is none of {', '.join(INITS)}, and no student was given to begin with")
    if kind == "random":
        return torch.randn(len(teacher), dim, generator=generator) * SCALE
    if dim > teacher.shape[1]:
        raise UserError(
            f"--embedding-dim {dim} is wider than the teacher's word embeddings ({teacher.shape[1]}); "
            "lower it, or add --init random"
        )
    centred = teacher.double() - teacher.double().mean(dim=0)
    # The table has full column rank, so the eigenvectors of its covariance are cheaper than its SVD.
    _, directions = torch.linalg.eigh(centred.T @ centred)
    reduced = centred @ directions.flip(1)[:, :dim]
    return (reduced * (SCALE / reduced.std())).float()


def initial_words(distillation: dict[str, Any], folder: Path) -> torch.Tensor:
    """The teacher's word embeddings, reduced to a student's width: what its training begins with by default.

    Args:
        distillation: of the student, whose shards hold them.
        folder: of the student.

    Returns:
        float32[vocabulary, embedding_dim].

    Raises:
        UserError: the shards are not there, are now another teacher's, or its embeddings are narrower.
    """
    shards = find_shards(distillation, folder)
    if require_vectors(shards).fingerprint.teacher_weights != distillation["teacher"]["teacher_weights"]:
        raise UserError(f"{shards} holds the words of another teacher than the student's")
    words, dim = load_file(shards / WORD_EMBEDDINGS)["weight"].float(), distillation["student"]["embedding_dim"]
    return initial_embeddings("pca", words, dim, torch.Generator())


# A student at whose weights training begins, instead of at new ones.


@dataclass(frozen=True)
class WarmStart:
    """A student to begin with.

    Attributes:
        name: of its folder, of a packaged student, or on the hub.
        folder: where it lies.
        student: tokenizer and weights.
        weights: hashes of its files of weights.
    """

    name: str
    folder: Path
    student: Student
    weights: list[str]

    @classmethod
    def load(cls, init: str) -> "WarmStart | None":
        """The student that `--init` names; None where it names a way to draw new weights.

        Raises:
            UserError: there is no such student.
        """
        if init in INITS:
            return None
        try:
            folder = locate_student(init)
            # A path says nothing on another machine.
            name = folder.name if Path(init).exists() else init
            return cls(name, folder, load_student(folder), [file_hash(file) for file in module_weights(folder)])
        except UserError as error:
            raise UserError(f"--init {init} is neither {' nor '.join(INITS)} nor a student: {error}") from error

    @property
    def shape(self) -> dict[str, Any]:
        """Options of the shape, which a student that begins here has too."""
        config = self.student.encoder.config
        return {name: getattr(config, name) for name in ("embedding_dim", "hidden", "layers", "pooling")}

    def copy_into(self, encoder: StudentEncoder, tokenizer: TextTokenizer) -> list[str]:
        """Give its weights to an encoder of the same shape.

        A word begins with the vector of the start's token of that name, in lower case where there is no other; a token
        that the start lacks, with the mean of its vectors. The projection goes to vectors of the same width only.

        Args:
            encoder: changed in place.
            tokenizer: of the shards.

        Returns:
            A line for each kind of weights that did not come from the start.

        Raises:
            UserError: the start lacks more than half of the tokens of the shards.
        """
        last = f"projections.{len(encoder.projections) - 1}."
        own, notes = encoder.state_dict(), []
        weights = {
            name.replace("projections.0.", last): value for name, value in self.student.encoder.state_dict().items()
        }
        weights["embedding.weight"], anew = self._words(tokenizer, encoder.config.vocabulary)
        if anew:
            notes.append(f"{self.name} lacks {anew:,} of the tokens of these shards: they begin as its mean word")
        fitting = {name: value for name, value in weights.items() if value.shape == own[name].shape}
        if other := sorted(own.keys() - fitting.keys()):
            notes.append(f"{self.name} has no {', '.join(other)} of the shape of these shards: begun anew")
        encoder.load_state_dict({**own, **fitting})
        return notes

    def _words(self, tokenizer: TextTokenizer, rows: int) -> tuple[torch.Tensor, int]:
        """Word embeddings, float32[rows, width], for the tokens of the shards, and how many of those are not known."""
        table = self.student.encoder.embedding.weight.detach()
        known, tokens = self.student.tokenizer.vocabulary(), tokenizer.vocabulary()
        if tokens == known and rows == len(table):
            return table, 0
        places = {number: known.get(token, known.get(token.lower())) for token, number in tokens.items()}
        shared = {number: place for number, place in places.items() if place is not None}
        if len(shared) < len(tokens) / 2:
            raise UserError(
                f"{self.name} has {len(shared):,} of the {len(tokens):,} tokens of the shards, too few to begin with: "
                "their teachers' tokenizers differ; begin with --init pca"
            )
        words = table.mean(dim=0).repeat(rows, 1)
        words[list(shared)] = table[list(shared.values())]
        return words, len(tokens) - len(shared)
