"""Distances between the student's vectors and the teacher's."""

from collections.abc import Sequence

import torch
from torch.nn import functional


def distillation_loss(vectors: Sequence[torch.Tensor], targets: torch.Tensor, kind: str) -> torch.Tensor:
    """Mean over target layers of the loss of each sentence.

    Args:
        vectors: for each target layer float32[b, dim], the student's projection.
        targets: float32[b, sum of dims], the teacher's layers side by side.
        kind: "cosine" is 1 - cos; "mse" the mean squared error of the components; "both" their sum.

    Returns:
        float32[b].
    """
    parts = targets.split([vector.shape[1] for vector in vectors], dim=1)
    losses = [_loss(vector, part, kind) for vector, part in zip(vectors, parts, strict=True)]
    return torch.stack(losses).mean(dim=0)


def _loss(vector: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    cosine = 1 - functional.cosine_similarity(vector, target, dim=1)
    if kind == "cosine":
        return cosine
    mse = (vector - target).square().mean(dim=1)
    return mse if kind == "mse" else cosine + mse
