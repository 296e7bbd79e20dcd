"""Whether the student finds the neighbours that the teacher finds."""

import torch
from torch.nn import functional

NEIGHBOURS = 10
# So many are what a first pass would hand to the teacher, for it to put in order.
CANDIDATES = 100
# So many rows are compared with all others at once: 20,000 rows take 40 MB of similarities.
_CHUNK_ROWS = 512


def recall_figures(vectors: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """How many of each row's nearest neighbours by `targets` are among its nearest, and its candidates, by `vectors`.

    Args:
        vectors: float32[n, dim of the student].
        targets: float32[n, dim of the teacher].
    """
    nearest, candidates = _recalls(vectors, targets, NEIGHBOURS, (NEIGHBOURS, CANDIDATES))
    return {f"recall_at_{NEIGHBOURS}": nearest, f"recall_at_{NEIGHBOURS}_among_{CANDIDATES}": candidates}


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
    return _recalls(vectors, targets, k, (among or k,))[0]


def _recalls(vectors: torch.Tensor, targets: torch.Tensor, k: int, among: tuple[int, ...]) -> list[float]:
    """For each number in `among` the recall; the similarities of all are computed once."""
    rows, k, most = len(targets), min(k, len(targets) - 1), min(max(among), len(targets) - 1)
    mine, theirs = functional.normalize(vectors, dim=1), functional.normalize(targets, dim=1)
    found = torch.zeros(most, dtype=torch.int64)
    for first in range(0, rows, _CHUNK_ROWS):
        chunk = slice(first, min(first + _CHUNK_ROWS, rows))
        wanted, got = _nearest(theirs, chunk, k), _nearest(mine, chunk, most)
        found += (wanted[:, :, None] == got[:, None, :]).sum(dim=(0, 1))
    return [int(found[:number].sum()) / (rows * k) for number in among]


def _nearest(unit: torch.Tensor, chunk: slice, k: int) -> torch.Tensor:
    """int64[rows of the chunk, k]: the nearest other rows of each, the nearest first."""
    cosines = unit[chunk] @ unit.T
    own = torch.arange(chunk.start, chunk.stop)
    cosines[own - chunk.start, own] = -torch.inf
    return cosines.topk(k, dim=1).indices
