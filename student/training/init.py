"""Initial word embeddings of the student, from the teacher's."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sentence_distill.data.errors import UserError
from sentence_distill.pipeline.logits import require_vectors
from sentence_distill.pipeline.manifest import WORD_EMBEDDINGS
from sentence_distill.student.config import INITS
from sentence_distill.student.files import find_shards

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
    if require_vectors(shards)["fingerprint"]["teacher_weights"] != distillation["teacher"]["teacher_weights"]:
        raise UserError(f"{shards} holds the words of another teacher than the student's")
    words, dim = load_file(shards / WORD_EMBEDDINGS)["weight"].float(), distillation["student"]["embedding_dim"]
    return initial_embeddings("pca", words, dim, torch.Generator())
