"""A student at whose weights training begins, instead of at new ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.data.tokenization import TextTokenizer
from sentence_distill.student.config import INITS
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.files import module_weights
from sentence_distill.student.folder import load_student
from sentence_distill.student.hub import locate_student
from sentence_distill.student.model import Student


@dataclass(frozen=True)
class Start:
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
    def load(cls, init: str) -> "Start | None":
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
