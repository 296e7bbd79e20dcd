"""Metrics: fidelity to a teacher, nearest neighbors, and scores of tasks."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import spearmanr
from torch.nn import functional

from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.figures import Example, Neighbor, Range

SCORES = ("cosine", "mse", "rank_agreement", "mean_vector_cosine")
_PAIRED_ROWS = 1000

# Fidelity of the student's vectors to the teacher's.


def public_targets(targets: torch.Tensor, dim: int, *, normalize: bool) -> torch.Tensor:
    """Return what the student's public embedding approximates, float32[n, dim].

    That is the teacher's last layer, `dim` wide, among float32[n, sum of dims] `targets`, brought to length 1 if the
    student's vectors are.
    """
    last = targets[:, -dim:]
    return functional.normalize(last, dim=-1) if normalize else last


def fidelity(vectors: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Compare float32[n, dim] vectors of the student with the teacher's.

    Returns:
        cosine: mean cosine between the two vectors of a sentence.
        mse: mean squared error of the components.
        rank_agreement: see `paired_rank_agreement`.
        mean_vector_cosine: the cosine that one constant, the mean of the targets, would have; the floor to beat.
    """
    mean = targets.mean(dim=0, keepdim=True)
    return {
        "cosine": functional.cosine_similarity(vectors, targets).mean().item(),
        "mse": functional.mse_loss(vectors, targets).item(),
        "rank_agreement": paired_rank_agreement(vectors, targets),
        "mean_vector_cosine": functional.cosine_similarity(mean, targets).mean().item(),
    }


def paired_rank_agreement(vectors: torch.Tensor, targets: torch.Tensor) -> float:
    """Return `rank_agreement` of the first 1,000 rows; all pairs of many more would not fit into memory."""
    return rank_agreement(vectors[:_PAIRED_ROWS], targets[:_PAIRED_ROWS])


def rank_agreement(vectors: torch.Tensor, targets: torch.Tensor) -> float:
    """Spearman correlation of the pairwise cosines in float32[n, dim] `vectors` with those in `targets`.

    It is 0 if the cosines of either are all the same.

    Raises:
        ValueError: there are fewer than three rows, and so a single pair at most.
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


_LENGTHS = (1, 9, 17, 25, 33, 49)
_FREQUENCY_PARTS = 5


def by_length(cosines: np.ndarray, lengths: np.ndarray) -> list[Range]:
    """Mean cosine of sentences of 1-8, 9-16, 17-24, 25-32, 33-48 and 49 or more tokens; empty ranges are left out."""
    # A sentence without tokens belongs to the shortest.
    place = np.searchsorted(_LENGTHS, np.maximum(lengths, 1), side="right") - 1
    ends = [*(start - 1 for start in _LENGTHS[1:]), None]
    return [
        Range(least, most, int(inside.sum()), float(cosines[inside].mean()))
        for number, (least, most) in enumerate(zip(_LENGTHS, ends, strict=True))
        if (inside := place == number).any()
    ]


def by_frequency(cosines: np.ndarray, rarest: np.ndarray) -> list[Range]:
    """Mean cosine of five equal parts of the sentences, those with the rarest token first; see `rarest_counts`."""
    parts = np.array_split(np.argsort(rarest, kind="stable"), _FREQUENCY_PARTS)
    return [
        Range(int(rarest[part[0]]), int(rarest[part[-1]]), len(part), float(cosines[part].mean()))
        for part in parts
        if len(part)
    ]


def rarest_counts(tokens: Tokens, counts: np.ndarray) -> np.ndarray:
    """Return int64[n], the count of the rarest token of each sentence, by int64[vocabulary] `counts`."""
    if not len(tokens):
        return np.empty(0, dtype=np.int64)
    # One more count, which is nobody's least: a last sentence without tokens needs a place to begin at.
    found = np.append(counts[tokens.ids], np.iinfo(np.int64).max)
    return np.where(tokens.lengths > 0, np.minimum.reduceat(found, tokens.offsets[:-1]), 0)


# Nearest neighbors by cosine.

NEIGHBORS = 10
CANDIDATES = 100
"""Rows that a first pass would hand to the teacher to rank."""
FEWEST_ROWS = 200
"""Rows below which recall is not measured: among few sentences ten neighbors are found by chance."""
# Rows that are compared with all others at once: over 20,000 rows this takes 40 MB of similarities.
_CHUNK_ROWS = 512
_QUERIES, _SHOWN = 6, 3


def recall_figures(vectors: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Share of each row's ten nearest rows by `targets` that are among its 10, and its 100, nearest by `vectors`.

    Args:
        vectors: float32[n, dim of the student].
        targets: float32[n, dim of the teacher].

    Returns:
        "recall_at_10" and "recall_at_10_among_100", means over the rows; nothing for fewer than `FEWEST_ROWS` rows.
    """
    rows = len(targets)
    if rows < FEWEST_ROWS:
        return {}
    wanted, most = min(NEIGHBORS, rows - 1), min(CANDIDATES, rows - 1)
    # By the place that each found neighbor has among the nearest by `vectors`.
    found = torch.zeros(most, dtype=torch.int64)
    for chunk in torch.arange(rows).split(_CHUNK_ROWS):
        sought, got = nearest(targets, chunk, wanted).indices, nearest(vectors, chunk, most).indices
        found += (sought[:, :, None] == got[:, None, :]).sum(dim=(0, 1))
    at_10, among = (int(found[:places].sum()) / (rows * wanted) for places in (wanted, most))
    return {f"recall_at_{NEIGHBORS}": at_10, f"recall_at_{NEIGHBORS}_among_{CANDIDATES}": among}


def nearest(vectors: torch.Tensor, queries: torch.Tensor, k: int) -> torch.return_types.topk:
    """Return cosines and int64 row numbers, both [queries, k], of the other rows nearest to some rows."""
    unit = functional.normalize(vectors, dim=1)
    cosines = unit[queries] @ unit.T
    cosines[torch.arange(len(queries)), queries] = -torch.inf
    return cosines.topk(k, dim=1)


def nearest_examples(texts: Sequence[str], vectors: torch.Tensor, targets: torch.Tensor) -> list[Example]:
    """Nearest sentences of six that lie equally far apart among all, by student and by teacher."""
    count = min(len(texts), _QUERIES)
    queries = torch.tensor([len(texts) * (2 * number + 1) // (2 * count) for number in range(count)])

    def found(of: torch.Tensor) -> list[dict[int, float]]:
        cosines, rows = nearest(of, queries, min(_SHOWN, len(texts) - 1))
        return [dict(zip(r, c, strict=True)) for r, c in zip(rows.tolist(), cosines.tolist(), strict=True)]

    def shown(mine: dict[int, float], others: dict[int, float]) -> list[Neighbor]:
        return [Neighbor(texts[row], cosine, row in others) for row, cosine in mine.items()]

    return [
        Example(texts[query], shown(theirs, mine), shown(mine, theirs))
        for query, mine, theirs in zip(queries.tolist(), found(vectors), found(targets), strict=True)
    ]


def too_few(rows: int | None) -> str:
    """Explain why there is no recall over so many rows; "" if they are enough, or not known."""
    if rows is None or rows >= FEWEST_ROWS:
        return ""
    return f"not measured ({rows:,} held-out sentences; {FEWEST_ROWS} are needed)"


# Scores of tasks: those of GLUE, and of classes of one's own.


def sts_spearman(
    encode: Callable[[Sequence[str]], np.ndarray], pairs: Sequence[Sequence[str]], scores: Sequence[float]
) -> float:
    """Spearman correlation of human scores with the cosines of the vectors of each pair; 0 if all are equal."""
    # Many sentences stand in several pairs.
    texts = list(dict.fromkeys(text for column in pairs for text in column))
    places = {text: place for place, text in enumerate(texts)}
    vectors = torch.from_numpy(np.asarray(encode(texts), dtype=np.float32))
    first, second = (vectors[[places[text] for text in column]] for column in pairs)
    cosines = functional.cosine_similarity(first, second, dim=1).numpy()
    return task_metrics(("spearman",), np.array(scores), cosines)["spearman"]


def task_metrics(names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Score predictions.

    Args:
        names: "accuracy", "f1" (of class 1), "macro_f1" (mean over classes), "matthews", "pearson", "spearman".
        labels: float[n], class numbers or scores.
        predictions: float[n], likewise.

    Returns:
        For each name a value between 0 and 1, or between -1 and 1; 0 if it is not defined, as for predictions that
        are all the same.
    """
    labels, predictions = (np.asarray(values, dtype=np.float64) for values in (labels, predictions))
    return {name: _metric(name, labels, predictions) for name in names}


def _metric(name: str, labels: np.ndarray, predictions: np.ndarray) -> float:
    from scipy.stats import pearsonr
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


def shown_score(metric: str, value: float, examples: int | None) -> str:
    """Write a score with four decimals, and an accuracy over few examples with its counts: 0.9333 (14/15)."""
    if metric == "accuracy" and examples and examples < 200:
        return f"{value:.4f} ({round(value * examples)}/{examples})"
    return f"{value:.4f}"
