"""Whether the student finds the neighbours that the teacher finds."""

import torch
from torch.nn import functional

NEIGHBOURS = 10
# So many are what a first pass would hand to the teacher, for it to put in order.
CANDIDATES = 100
FEWEST_ROWS = 200
"""Rows below which recall is not measured: among few sentences ten neighbors are found by chance."""
# So many rows are compared with all others at once: 20,000 rows take 40 MB of similarities.
_CHUNK_ROWS = 512


def recall_figures(vectors: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """How many of each row's nearest neighbours by `targets` are among its nearest, and its candidates, by `vectors`.

    Nearest by cosine, among all other rows; the mean over rows.

    Args:
        vectors: float32[n, dim of the student].
        targets: float32[n, dim of the teacher].

    Returns:
        "recall_at_10" and "recall_at_10_among_100"; nothing of fewer than `FEWEST_ROWS` rows.
    """
    rows = len(targets)
    if rows < FEWEST_ROWS:
        return {}
    wanted, most = min(NEIGHBOURS, rows - 1), min(CANDIDATES, rows - 1)
    mine, theirs = functional.normalize(vectors, dim=1), functional.normalize(targets, dim=1)
    # By the place that each found neighbour has among the nearest by `vectors`.
    found = torch.zeros(most, dtype=torch.int64)
    for first in range(0, rows, _CHUNK_ROWS):
        chunk = slice(first, min(first + _CHUNK_ROWS, rows))
        sought, got = _nearest(theirs, chunk, wanted), _nearest(mine, chunk, most)
        found += (sought[:, :, None] == got[:, None, :]).sum(dim=(0, 1))
    nearest, candidates = (int(found[:places].sum()) / (rows * wanted) for places in (wanted, most))
    return {f"recall_at_{NEIGHBOURS}": nearest, f"recall_at_{NEIGHBOURS}_among_{CANDIDATES}": candidates}


def _nearest(unit: torch.Tensor, chunk: slice, k: int) -> torch.Tensor:
    """int64[rows of the chunk, k]: the nearest other rows of each, the nearest first."""
    cosines = unit[chunk] @ unit.T
    own = torch.arange(chunk.start, chunk.stop)
    cosines[own - chunk.start, own] = -torch.inf
    return cosines.topk(k, dim=1).indices


def too_few(rows: int | None) -> str:
    """Why there is no recall over so many rows; "" if they are enough, or not known."""
    if rows is None or rows >= FEWEST_ROWS:
        return ""
    return f"not measured ({rows:,} held-out sentences; {FEWEST_ROWS} are needed)"
