"""Product quantisation of word embeddings: a byte for four numbers (Jégou et al. 2011, doi:10.1109/TPAMI.2010.57)."""

import copy

import numpy as np
import torch

from sentence_distill.data.errors import UserError
from sentence_distill.student.encoder import StudentEncoder

PART = 4
_CODES = 256
_ITERATIONS = 20


def balance_parts(encoder: StudentEncoder) -> StudentEncoder:
    """The same network over rotated word embeddings, each four of whose components are as hard to quantise as the next.

    Principal directions are dealt out so that the variances of every part have the same product (Ge et al. 2013,
    "Optimized Product Quantization", section 3.2.2); the first layer's weights are rotated with them, so that the
    vectors stay what they are.

    Args:
        encoder: on the CPU; it is not changed.

    Raises:
        UserError: the width of the word embeddings is no multiple of four.
    """
    weight = encoder.embedding.weight.detach()
    if weight.shape[1] % PART:
        raise UserError(f"--tables pq packs four numbers into a byte, and words have {weight.shape[1]}; take int8")
    variances, directions = torch.linalg.eigh(torch.cov(weight.T))
    rotation = directions[:, _deal(variances.clamp(min=1e-12).log().tolist())]
    balanced = copy.deepcopy(encoder)
    weights = dict(balanced.named_parameters())
    with torch.no_grad():
        for name in ("embedding.weight", "lstm.weight_ih_l0", "lstm.weight_ih_l0_reverse"):
            weights[name].copy_(weights[name] @ rotation)
    return balanced


def product_quantize(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Replace each run of four components by the nearest of 256 centres, found by k-means for that run.

    Args:
        weight: float32[vocabulary, embedding_dim]; four divides the width.

    Returns:
        uint8[vocabulary, embedding_dim / 4]: numbers of the centres; float32[embedding_dim / 4, at most 256, 4]: the
        centres.
    """
    from sklearn.cluster import KMeans

    codes, centres = [], []
    for part in weight.detach().numpy().reshape(len(weight), -1, PART).swapaxes(0, 1):
        # One start from random rows: better starts gain two percent of the error for three times the time.
        means = KMeans(min(_CODES, len(weight)), init="random", n_init=1, max_iter=_ITERATIONS, random_state=0)
        codes.append(means.fit_predict(np.ascontiguousarray(part)).astype(np.uint8))
        centres.append(means.cluster_centers_)
    return np.stack(codes, axis=1), np.stack(centres)


def _deal(logarithms: list[float]) -> list[int]:
    """Numbers of the variances whose logarithms these are, part by part.

    From the largest on, each goes to the part whose product is the smallest yet and which has room.
    """
    parts: list[list[int]] = [[] for _ in range(len(logarithms) // PART)]
    sizes = [0.0] * len(parts)
    for number in sorted(range(len(logarithms)), key=lambda number: -logarithms[number]):
        part = min((part for part in range(len(parts)) if len(parts[part]) < PART), key=lambda part: sizes[part])
        parts[part].append(number)
        # Counted from the smallest variance: a product must not shrink as it gets more factors.
        sizes[part] += logarithms[number] - min(logarithms)
    return [number for part in parts for number in part]
