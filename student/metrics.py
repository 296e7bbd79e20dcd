"""Metrics: fidelity to a teacher, retrieval, and scores of tasks."""

import warnings
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from sentence_distill.data.tokenization import Tokens

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


# Metrics of tasks, those of GLUE and for classes of one's own, from scikit-learn and SciPy.


def task_metrics(names: tuple[str, ...], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Score predictions.

    Args:
        names: of "accuracy", "f1" (of class 1), "macro_f1" (the mean over classes), "matthews", "pearson", "spearman".
        labels: float[n], class numbers or scores.
        predictions: float[n], likewise.

    Returns:
        For each name a value between 0 and 1, or between -1 and 1; 0 where it is not defined, as for predictions
        that are all the same.
    """
    labels, predictions = (np.asarray(values, dtype=np.float64) for values in (labels, predictions))
    return {name: _metric(name, labels, predictions) for name in names}


def _metric(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if name in ("pearson", "spearman"):
        if len(labels) < 2:
            return 0.0
        with warnings.catch_warnings():
            # One value for all examples correlates with nothing; SciPy says so with a warning and NaN.
            warnings.simplefilter("ignore")
            value = (pearsonr if name == "pearson" else spearmanr)(labels, predictions).statistic
        return 0.0 if np.isnan(value) else float(value)
    if name in ("f1", "macro_f1"):
        average = "binary" if name == "f1" else "macro"
        return float(f1_score(labels, predictions, average=average, zero_division=0.0))
    return float((accuracy_score if name == "accuracy" else matthews_corrcoef)(labels, predictions))


# Below so many examples a figure is shown with what it counts.
_FEW = 200


def shown_score(metric: str, value: float, examples: int | None) -> str:
    """A score with four decimals, and an accuracy over few examples with its counts: 0.9333 (14/15)."""
    if metric == "accuracy" and examples and examples < _FEW:
        return f"{value:.4f} ({round(value * examples)}/{examples})"
    return f"{value:.4f}"


# Whether the student finds the neighbours that the teacher finds.

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


# Fidelity by the length of sentences, and by how often training saw their rarest word.

_LENGTHS = (1, 9, 17, 25, 33, 49)
_FREQUENCY_BUCKETS = 5


def by_length(cosines: np.ndarray, lengths: np.ndarray) -> list[dict[str, Any]]:
    """Mean cosine of sentences of 1-8, 9-16, 17-24, 25-32, 33-48 and 49 or more tokens; none for empty ranges.

    Args:
        cosines: float32[n], of each sentence.
        lengths: int[n], its tokens.

    Returns:
        Ranges with "least" and "most" tokens (None: no end), "rows" and "cosine".
    """
    # A sentence without tokens belongs to the shortest.
    place = np.searchsorted(_LENGTHS, np.maximum(lengths, 1), side="right") - 1
    ends = [start - 1 for start in _LENGTHS[1:]]
    return [
        {"least": least, "most": most, "rows": int(inside.sum()), "cosine": float(cosines[inside].mean())}
        for number, (least, most) in enumerate(zip(_LENGTHS, [*ends, None], strict=True))
        if (inside := place == number).any()
    ]


def by_frequency(cosines: np.ndarray, rarest: np.ndarray) -> list[dict[str, Any]]:
    """Mean cosine of five equal parts of the sentences, ordered by the frequency of their rarest token.

    Args:
        cosines: float32[n], of each sentence.
        rarest: int[n], see `rarest_counts`.

    Returns:
        Parts, rarest first, with "least" and "most" occurrences of the rarest token, "rows" and "cosine".
    """
    parts = np.array_split(np.argsort(rarest, kind="stable"), _FREQUENCY_BUCKETS)
    return [
        {
            "least": int(rarest[part[0]]),
            "most": int(rarest[part[-1]]),
            "rows": len(part),
            "cosine": float(cosines[part].mean()),
        }
        for part in parts
        if len(part)
    ]


def rarest_counts(tokens: Tokens, counts: np.ndarray) -> np.ndarray:
    """int64[n]: how often the rarest token of each sentence occurs, after int64[vocabulary] `counts`."""
    if not len(tokens):
        return np.empty(0, dtype=np.int64)
    # One more count, which is nobody's least: a last sentence without tokens needs a place to begin at.
    found = np.append(counts[tokens.ids], np.iinfo(np.int64).max)
    return np.where(tokens.lengths > 0, np.minimum.reduceat(found, tokens.offsets[:-1]), 0)
