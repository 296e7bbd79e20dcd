"""How close the student's vectors are to the teacher's."""

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn import functional

SCORES = ("cosine", "mse", "rank_agreement", "mean_vector_cosine")
_PAIRED_ROWS = 1000


def public_targets(targets: torch.Tensor, dim: int, *, normalize: bool) -> torch.Tensor:
    """What the student's public embedding approximates, float32[n, dim].

    That is the teacher's last layer, `dim` wide, among float32[n, sum of dims] `targets`, brought to length 1 where the
    student's vectors have it.
    """
    last = targets[:, -dim:]
    return functional.normalize(last, dim=-1) if normalize else last


def fidelity(vectors: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Agreement of float32[n, dim] student vectors with the teacher's.

    Returns:
        cosine: mean cosine between the two vectors of a sentence.
        mse: mean squared error of the components.
        rank_agreement: Spearman correlation between the two models' cosines of all pairs among the first
            1,000 rows: whether the student finds the same sentences close.
        mean_vector_cosine: what one constant, the mean of the targets, scores as cosine; the floor to beat.
    """
    mean = targets.mean(dim=0, keepdim=True)
    return {
        "cosine": functional.cosine_similarity(vectors, targets).mean().item(),
        "mse": functional.mse_loss(vectors, targets).item(),
        "rank_agreement": paired_rank_agreement(vectors, targets),
        "mean_vector_cosine": functional.cosine_similarity(mean, targets).mean().item(),
    }


def paired_rank_agreement(vectors: torch.Tensor, targets: torch.Tensor) -> float:
    """`rank_agreement` of the first 1,000 rows; all pairs of many more would not fit into memory."""
    return rank_agreement(vectors[:_PAIRED_ROWS], targets[:_PAIRED_ROWS])


def rank_agreement(vectors: torch.Tensor, targets: torch.Tensor) -> float:
    """Spearman correlation of the pairwise cosines in float32[n, dim] `vectors` with those in `targets`.

    Of equal cosines there are no ranks: 0 where those of either are all the same.

    Raises:
        ValueError: fewer than three rows, which have a single pair at most.
    """
    if len(vectors) < 3:
        raise ValueError(f"{len(vectors)} rows have no ranks to compare")
    mine, theirs = _pair_cosines(vectors), _pair_cosines(targets)
    if np.ptp(mine) == 0 or np.ptp(theirs) == 0:
        return 0.0
    return float(spearmanr(mine, theirs).statistic)


def _pair_cosines(vectors: torch.Tensor) -> np.ndarray:
    unit = functional.normalize(vectors, dim=1)
    above = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit @ unit.T)[above[0], above[1]].numpy()
