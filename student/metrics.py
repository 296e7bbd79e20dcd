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

# Fidelity of the student's vectors to the teacher's.


def public_targets(targets: torch.Tensor, dim: int, *, normalize: bool) -> torch.Tensor:
    """Return what the student's public embedding approximates, float32[n, dim].

    That is the teacher's last layer, `dim` wide, among float32[n, sum of dims] `targets`, brought to length 1 if the
    student's vectors are.
    """
    last = targets[:, -dim:]
    return functional.normalize(last, dim=-1) if normalize else last


def fidelity(vectors: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Compare float32[n, dim] vectors of the student with the teacher's: return `SCORES`.

    `mean_vector_cosine` is the cosine that one constant, the mean of the targets, would have: the floor to beat.
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
    """Return the Spearman correlation of the pairwise cosines in float32[n, dim] `vectors` with those in `targets`.

    It is 0 if the cosines of either are all the same.
    """
    if len(vectors) < 3:
        raise ValueError(f"{len(vectors)} rows have no ranks to compare")
    above = np.triu_indices(len(vectors), k=1)
    unit = (functional.normalize(of, dim=1) for of in (vectors, targets))
    return correlation("spearman", *((of @ of.T).numpy()[above] for of in unit))


# Held-out rows of a corpus below which its mean says nothing.
_FEWEST_OF_CORPUS = 20


def by_corpus(cosines: np.ndarray, corpora: np.ndarray, names: Sequence[str]) -> list[CorpusCosine]:
    """Mean cosine of the sentences of each corpus, by int[n] numbers of `names`; nothing for a single corpus.

    Corpora with fewer than 20 rows are left out.
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
# Rows that are compared with all others at once: over 20,000 rows this takes 40 MB of similarities.
_CHUNK_ROWS = 512
_QUERIES, _SHOWN = 6, 3


def recall_figures(vectors: torch.Tensor, targets: torch.Tensor, *, same_space: bool = False) -> dict[str, float]:
    """Return the share of each row's ten nearest rows by `targets` among its 10, and its 100, nearest by `vectors`.

    These are means over the rows, "recall_at_10" and "recall_at_10_among_100"; nothing for too few rows. The widths of
    float32[n, dim] `vectors` and `targets` may differ. In the `same_space`, "recall_at_10_in_teachers_index" is what a
    row of `vectors` finds among the `targets` of the others, as a student's query does in its teacher's index.
    """
    rows = len(targets)
    if too_few(rows):
        return {}
    wanted, most = min(NEIGHBORS, rows - 1), min(CANDIDATES, rows - 1)
    # By the place that each found neighbor has among the nearest by `vectors`.
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
    """Return cosines and int64 row numbers, both [queries, k], of the other rows nearest to some rows.

    The others are rows of `index`, of as many as `vectors` has, or of `vectors` themselves.
    """
    unit = functional.normalize(vectors, dim=1)
    cosines = unit[queries] @ (unit if index is None else functional.normalize(index, dim=1)).T
    cosines[torch.arange(len(queries)), queries] = -torch.inf
    return cosines.topk(k, dim=1)


def nearest_examples(texts: Sequence[str], vectors: torch.Tensor, targets: torch.Tensor) -> list[Example]:
    """Return the nearest sentences of six that lie equally far apart among all, by student and by teacher."""
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


# Scores of tasks: those of GLUE, and of classes of one's own.


def sts_spearman(
    encode: Callable[[Sequence[str]], np.ndarray], pairs: Sequence[Sequence[str]], scores: Sequence[float]
) -> float:
    """Return the Spearman correlation of human scores with the cosines of each pair's vectors; 0 if all are equal."""
    # Many sentences stand in several pairs.
    texts = list(dict.fromkeys(text for column in pairs for text in column))
    places = {text: place for place, text in enumerate(texts)}
    vectors = torch.from_numpy(np.asarray(encode(texts), dtype=np.float32))
    first, second = (vectors[[places[text] for text in column]] for column in pairs)
    return correlation("spearman", np.array(scores), functional.cosine_similarity(first, second, dim=1).numpy())


def task_metrics(names: Sequence[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Score float[n] predictions, class numbers or scores, by metrics that a `Task` names.

    "f1" is of class 1, "macro_f1" the mean over classes. A value that is not defined, as for predictions that are all
    the same, is 0.
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
    """Return the "pearson" or "spearman" correlation of float[n] values; 0 for less than two, or if all are equal."""
    if len(left) < 2:
        return 0.0
    with warnings.catch_warnings():
        # One value for all correlates with nothing; SciPy says so with a warning and NaN.
        warnings.simplefilter("ignore")
        value = (pearsonr if name == "pearson" else spearmanr)(left, right).statistic
    return 0.0 if np.isnan(value) else float(value)
