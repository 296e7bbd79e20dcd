"""Product quantisation of word embeddings: a byte for four numbers (Jégou et al. 2011, doi:10.1109/TPAMI.2010.57)."""

import numpy as np
import torch

from sentence_distill.data.errors import UserError

PART = 4
_CODES = 256
_ITERATIONS = 20


def product_quantize(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Replace each run of four components by the nearest of 256 centres, found by k-means for that run.

    Args:
        weight: float32[vocabulary, embedding_dim].

    Returns:
        uint8[vocabulary, embedding_dim / 4]: numbers of the centres; float32[embedding_dim / 4, at most 256, 4]: the
        centres.

    Raises:
        UserError: the width is no multiple of four.
    """
    from sklearn.cluster import KMeans

    vocabulary, width = weight.shape
    if width % PART:
        raise UserError(f"--tables pq packs four numbers into a byte, and the word embeddings have {width}; take int8")
    codes, centres = [], []
    for part in weight.detach().numpy().reshape(vocabulary, -1, PART).swapaxes(0, 1):
        # One start from random rows: better starts gain two percent of the error for three times the time.
        means = KMeans(min(_CODES, vocabulary), init="random", n_init=1, max_iter=_ITERATIONS, random_state=0)
        codes.append(means.fit_predict(np.ascontiguousarray(part)).astype(np.uint8))
        centres.append(means.cluster_centers_)
    return np.stack(codes, axis=1), np.stack(centres)
