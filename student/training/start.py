"""A student at whose weights training begins, instead of at new ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from sentence_distill.data.errors import UserError
from sentence_distill.data.hashing import file_hash
from sentence_distill.student.config import INITS
from sentence_distill.student.encoder import StudentEncoder
from sentence_distill.student.folder import load_student, module_weights
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

    def copy_into(self, encoder: StudentEncoder, tokenizer: Tokenizer) -> list[str]:
        """Give its weights to an encoder of the same shape; its projection only to vectors of the same width.

        Args:
            encoder: changed in place.
            tokenizer: of the shards.

        Returns:
            Names of the weights that stay as they were.

        Raises:
            UserError: the tokens of the shards are others than the student's.
        """
        if tokenizer.get_vocab() != self.student.tokenizer.get_vocab():
            raise UserError(
                f"the tokens of the shards are not those of {self.name}: their teachers' tokenizers differ; begin with "
                "--init pca"
            )
        last = f"projections.{len(encoder.projections) - 1}."
        weights = {
            name.replace("projections.0.", last): value for name, value in self.student.encoder.state_dict().items()
        }
        own = encoder.state_dict()
        fitting = {name: value for name, value in weights.items() if value.shape == own[name].shape}
        encoder.load_state_dict({**own, **fitting})
        return sorted(own.keys() - fitting.keys())
