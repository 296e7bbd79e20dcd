"""Whether the student finds the neighbours that the teacher finds."""

import torch
from torch.nn import functional

NEIGHBOURS = 10
# So many are what a first pass would hand to the teacher, for it to put in order.
CANDIDATES = 100
# So many rows are compared with all others at once: 20,000 rows take 40 MB of similarities.
_CHUNK_ROWS = 512


def recall_of_neighbours(
    vectors: torch.Tensor, targets: torch.Tensor, k: int = NEIGHBOURS, *, among: int | None = None
) -> float:
    """Share of each row's k nearest neighbours by `targets` that are among its k, or `among`, nearest by `vectors`.

    Nearest by cosine, among all other rows; the mean over rows. The two may have different widths.

    Args:
        vectors: float32[n, dim of the student].
        targets: float32[n, dim of the teacher].
        k: neighbours; fewer where there are not so many other rows.
        among: how many of `vectors` count as found, the same number by default.
    """
    rows, k, among = len(targets), min(k, len(targets) - 1), min(among or k, len(targets) - 1)
    mine, theirs = functional.normalize(vectors, dim=1), functional.normalize(targets, dim=1)
    found = 0
    for first in range(0, rows, _CHUNK_ROWS):
        chunk = slice(first, min(first + _CHUNK_ROWS, rows))
        wanted, got = _nearest(theirs, chunk, k), _nearest(mine, chunk, among)
        found += int((wanted[:, :, None] == got[:, None, :]).sum())
    return found / (rows * k)


def _nearest(unit: torch.Tensor, chunk: slice, k: int) -> torch.Tensor:
    """int64[rows of the chunk, k]: the nearest other rows of each."""
    cosines = unit[chunk] @ unit.T
    own = torch.arange(chunk.start, chunk.stop)
    cosines[own - chunk.start, own] = -torch.inf
    return cosines.topk(k, dim=1).indices
