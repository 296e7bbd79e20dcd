"""Metrics: fidelity to a teacher, nearest neighbors, and scores of tasks."""

import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from torch.nn import functional

from sentence_distill.data.tokenization import Tokens
from sentence_distill.student.figures import CorpusCosine, Example, Neighbor, Range, too_few

SCORES = ("cosine", "mse", "rank_agreement", "mean_vector_cosine")
_PAIRED_ROWS = 1000

# Fidelity of a student's vectors to its teacher's.


def public_targets(targets: torch.Tensor, dim: int, *, normalize: bool) -> torch.Tensor:
    """Return the target of the student's public embedding, float32[n, dim].

    It is the teacher's last layer, the last `dim` columns of float32[n, sum of dims] `targets`, normalized if the
    student's vectors are.
    """
    last = targets[:, -dim:]
    return functional.normalize(last, dim=-1) if normalize else last


def fidelity(vectors: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Compare a student's vectors with its teacher's, both float32[n, dim]; return `SCORES` by name.

    `mean_vector_cosine` is the cosine of a constant vector, the mean of the targets: the baseline to beat.
    """
    mean = targets.mean(dim=0, keepdim=True)
    return {
        "cosine": functional.cosine_similarity(vectors, targets).mean().item(),
        "mse": functional.mse_loss(vectors, targets).item(),
        "rank_agreement": paired_rank_agreement(vectors, targets),
        "mean_vector_cosine": functional.cosine_similarity(mean, targets).mean().item(),
    }


def paired_rank_agreement(vectors: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the `rank_agreement` of the first 1,000 rows: all pairs of many more would not fit into memory."""
    return rank_agreement(vectors[:_PAIRED_ROWS], targets[:_PAIRED_ROWS])


def rank_agreement(vectors: torch.Tensor, targets: torch.Tensor) -> float:
    """Return the Spearman correlation between the pairwise cosines of float32[n, dim] `vectors` and of `targets`.

    It is 0 if all cosines of one of them are equal.
    """
    if len(vectors) < 3:
        raise ValueError(f"a rank correlation needs at least 3 rows, not {len(vectors)}")
    above = np.triu_indices(len(vectors), k=1)
    unit = (functional.normalize(of, dim=1) for of in (vectors, targets))
    return correlation("spearman", *((of @ of.T).numpy()[above] for of in unit))


# Minimum number of held-out rows for the mean of a corpus.
_FEWEST_OF_CORPUS = 20


def by_corpus(cosines: np.ndarray, corpora: np.ndarray, names: Sequence[str]) -> list[CorpusCosine]:
    """Return the mean cosine of each corpus; `corpora`, int[n], has indices of `names`.

    The result is empty for a single corpus, and corpora with fewer than 20 rows are left out.
    """
    counts = np.bincount(corpora, minlength=len(names))
    sums = np.bincount(corpora, weights=cosines, minlength=len(names))
    found = [
        CorpusCosine(name, int(count), float(total / count))
        for name, count, total in zip(names, counts, sums, strict=True)
        if count >= _FEWEST_OF_CORPUS
    ]
    return found if len(names) > 1 else []


_LENGTHS = (1, 9, 17, 25, 33, 49)
_FREQUENCY_PARTS = 5


def by_length(cosines: np.ndarray, lengths: np.ndarray) -> list[Range]:
    """Return the mean cosine by length: 1-8, 9-16, 17-24, 25-32, 33-48 and 49 or more tokens, without empty ranges."""
    # Sentences without tokens count as the shortest.
    place = np.searchsorted(_LENGTHS, np.maximum(lengths, 1), side="right") - 1
    ends = [*(start - 1 for start in _LENGTHS[1:]), None]
    return [
        Range(least, most, int(inside.sum()), float(cosines[inside].mean()))
        for number, (least, most) in enumerate(zip(_LENGTHS, ends, strict=True))
        if (inside := place == number).any()
    ]


def by_frequency(cosines: np.ndarray, rarest: np.ndarray) -> list[Range]:
    """Return the mean cosine of five equal parts of the sentences, ordered by their `rarest_counts`, rarest first."""
    parts = np.array_split(np.argsort(rarest, kind="stable"), _FREQUENCY_PARTS)
    return [
        Range(int(rarest[part[0]]), int(rarest[part[-1]]), len(part), float(cosines[part].mean()))
        for part in parts
        if len(part)
    ]


def rarest_counts(tokens: Tokens, counts: np.ndarray) -> np.ndarray:
    """Return int64[n], the count of each sentence's rarest token, from int64[vocabulary] `counts`."""
    if not len(tokens):
        return np.empty(0, dtype=np.int64)
    # `reduceat` needs a valid start even for a last sentence without tokens, so a large count is appended.
    found = np.append(counts[tokens.ids], np.iinfo(np.int64).max)
    return np.where(tokens.lengths > 0, np.minimum.reduceat(found, tokens.offsets[:-1]), 0)


# Nearest neighbors by cosine.

NEIGHBORS = 10
CANDIDATES = 100
"""Number of candidates that a first pass would give to the teacher to rerank."""
# Number of queries at a time: with 20,000 rows, their similarities take 40 MB.
_CHUNK_ROWS = 512
_QUERIES, _SHOWN = 6, 3


def recall_figures(vectors: torch.Tensor, targets: torch.Tensor, *, same_space: bool = False) -> dict[str, float]:
    """Return the recall of each row's ten nearest rows by `targets`, as means over the rows.

    "recall_at_10" is their share among the 10 nearest by `vectors`, and "recall_at_10_among_100" among the 100 nearest.
    The widths of float32[n, dim] `vectors` and `targets` may differ. If both are in the `same_space`,
    "recall_at_10_in_teachers_index" is their share among the 10 `targets` nearest to a row of `vectors`, for a
    student's queries in its teacher's index. The result is empty for too few rows.
    """
    rows = len(targets)
    if too_few(rows):
        return {}
    wanted, most = min(NEIGHBORS, rows - 1), min(CANDIDATES, rows - 1)
    # Counts of found neighbors by their rank among the nearest by `vectors`.
    found = torch.zeros(most, dtype=torch.int64)
    found_in_index = 0
    for chunk in torch.arange(rows).split(_CHUNK_ROWS):
        sought, got = nearest(targets, chunk, wanted).indices, nearest(vectors, chunk, most).indices
        found += (sought[:, :, None] == got[:, None, :]).sum(dim=(0, 1))
        if same_space:
            got = nearest(vectors, chunk, wanted, index=targets).indices
            found_in_index += int((sought[:, :, None] == got[:, None, :]).sum())
    counts = {
        f"recall_at_{NEIGHBORS}": int(found[:wanted].sum()),
        f"recall_at_{NEIGHBORS}_among_{CANDIDATES}": int(found.sum()),
        **({f"recall_at_{NEIGHBORS}_in_teachers_index": found_in_index} if same_space else {}),
    }
    return {name: count / (rows * wanted) for name, count in counts.items()}


def nearest(
    vectors: torch.Tensor, queries: torch.Tensor, k: int, index: torch.Tensor | None = None
) -> torch.return_types.topk:
    """Return cosines and int64 row numbers, both [queries, k], of the k nearest rows to the rows `queries`.

    Rows are searched in `index`, which has as many as `vectors`, by default in `vectors` itself; a row is never its own
    neighbor.
    """
    unit = functional.normalize(vectors, dim=1)
    cosines = unit[queries] @ (unit if index is None else functional.normalize(index, dim=1)).T
    cosines[torch.arange(len(queries)), queries] = -torch.inf
    return cosines.topk(k, dim=1)


def nearest_examples(texts: Sequence[str], vectors: torch.Tensor, targets: torch.Tensor) -> list[Example]:
    """Return the nearest sentences, by student and by teacher, of six evenly spaced sentences."""
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


# Scores of tasks, of GLUE and of users.


def sts_spearman(
    encode: Callable[[Sequence[str]], np.ndarray], pairs: Sequence[Sequence[str]], scores: Sequence[float]
) -> float:
    """Return the Spearman correlation between human scores and the cosines of pairs; 0 if either are all equal."""
    # Many sentences occur in several pairs, and are encoded once.
    texts = list(dict.fromkeys(text for column in pairs for text in column))
    places = {text: place for place, text in enumerate(texts)}
    vectors = torch.from_numpy(np.asarray(encode(texts), dtype=np.float32))
    first, second = (vectors[[places[text] for text in column]] for column in pairs)
    return correlation("spearman", np.array(scores), functional.cosine_similarity(first, second, dim=1).numpy())


def task_metrics(names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Return the metrics of a `Task` for float[n] predictions, which are class numbers or scores.

    "f1" is for class 1, "macro_f1" is the mean over classes. Undefined values, as for predictions that are all equal,
    are 0.
    """
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    labels, predictions = (np.asarray(values, dtype=np.float64) for values in (labels, predictions))

    def metric(name: str) -> float:
        match name:
            case "accuracy":
                return accuracy_score(labels, predictions)  # type: ignore[no-any-return]
            case "matthews":
                return matthews_corrcoef(labels, predictions)  # type: ignore[no-any-return]
            case "f1" | "macro_f1":
                average = "binary" if name == "f1" else "macro"
                return f1_score(labels, predictions, average=average, zero_division=0.0)  # type: ignore[no-any-return]
        return correlation(name, labels, predictions)

    return {name: float(metric(name)) for name in names}


def correlation(name: str, left: np.ndarray, right: np.ndarray) -> float:
    """Return the "pearson" or "spearman" correlation of float[n] values; 0 for fewer than two, or if all are equal."""
    if len(left) < 2:
        return 0.0
    with warnings.catch_warnings():
        # SciPy warns about constant values, and returns NaN.
        warnings.simplefilter("ignore")
        value = (pearsonr if name == "pearson" else spearmanr)(left, right).statistic
    return 0.0 if np.isnan(value) else float(value)
