"""Initial word embeddings of the student, from the teacher's."""

import torch

from sentence_distill.data.errors import UserError

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
        UserError: "pca" with more components than the teacher's table is wide.
    """
    if kind == "random":
        return torch.randn(len(teacher), dim, generator=generator) * SCALE
    if dim > teacher.shape[1]:
        raise UserError(
            f"--embedding-dim {dim} is wider than the teacher's word embeddings ({teacher.shape[1]}); "
            "lower it, or add --init random"
        )
    return teacher_words(teacher, dim)


def teacher_words(teacher: torch.Tensor, dim: int) -> torch.Tensor:
    """The `dim` principal components of the teacher's word embeddings.

    Args:
        teacher: float[vocabulary, width].
        dim: at most the width.

    Returns:
        float32[vocabulary, dim], with standard deviation `SCALE`.
    """
    centred = teacher.double() - teacher.double().mean(dim=0)
    # The table has full column rank, so the eigenvectors of its covariance are cheaper than its SVD.
    _, directions = torch.linalg.eigh(centred.T @ centred)
    reduced = centred @ directions.flip(1)[:, :dim]
    return (reduced * (SCALE / reduced.std())).float()
