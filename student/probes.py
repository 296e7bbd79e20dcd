"""Probes of frozen vectors: SentEval's tasks by logistic regression, and sensitivity to word order."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from sentence_distill.data.progress import Advance
from sentence_distill.data.senteval import Split, TransferTask
from sentence_distill.student.figures import WordOrder
from sentence_distill.student.metrics import correlation, task_metrics
from sentence_distill.student.models import Encode

# SentEval's grid of inverse regularization strengths, its seed, and its folds.
STRENGTHS = [2.0**power for power in range(-2, 4)]
_SEED, _FOLDS, _INNER_FOLDS = 1111, 10, 3


def transfer_scores(task: TransferTask, encode: Encode, advance: Advance) -> dict[str, float]:
    """Return the scores of frozen vectors on a SentEval task: accuracy, and F1 for pairs.

    A logistic regression reads the vector of a text, or |u - v| and u * v of a pair. A task without splits is
    cross-validated in ten folds; the strength of the penalty is chosen on dev, or by three folds of the training data
    (SentEval uses ten there, too). `advance` is called with 1 after each fit that is scored.
    """
    from sklearn.model_selection import StratifiedKFold

    names = ("f1", "accuracy") if len(task.train.texts) == 2 else ("accuracy",)
    vectors, labels = _features(task.train, encode), np.array(task.train.labels)
    if task.test is None:
        folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=_SEED)
        scores = []
        for train, test in folds.split(vectors, labels):
            predicted = _fitted(vectors[train], labels[train]).predict(vectors[test])
            scores.append(float(np.mean(predicted == labels[test])))
            advance(1)
        return {"accuracy": float(np.mean(scores))}
    dev = (_features(task.dev, encode), np.array(task.dev.labels)) if task.dev else None
    predicted = _fitted(vectors, labels, dev).predict(_features(task.test, encode))
    advance(1)
    numbers = {label: number for number, label in enumerate(sorted(set(labels)))}
    as_numbers = (np.array([numbers.get(label, -1) for label in of]) for of in (task.test.labels, predicted))
    return task_metrics(names, *as_numbers)


def fits(task: TransferTask) -> int:
    """Return the number of times that `transfer_scores` calls its `advance`."""
    return _FOLDS if task.test is None else 1


def _features(split: Split, encode: Encode) -> np.ndarray:
    columns = [np.asarray(encode(texts), dtype=np.float32) for texts in split.texts]
    if len(columns) == 1:
        return columns[0]
    left, right = columns
    return np.concatenate([np.abs(left - right), left * right], axis=1)


def _fitted(vectors: np.ndarray, labels: np.ndarray, dev: tuple[np.ndarray, np.ndarray] | None = None) -> Any:
    """Fit a logistic regression with the best of `STRENGTHS` on dev, or by cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    if dev is not None:
        fitted = [LogisticRegression(C=strength, max_iter=1000).fit(vectors, labels) for strength in STRENGTHS]
        return max(fitted, key=lambda each: each.score(*dev))
    folds = StratifiedKFold(_INNER_FOLDS, shuffle=True, random_state=_SEED)
    return GridSearchCV(LogisticRegression(max_iter=1000), {"C": STRENGTHS}, cv=folds).fit(vectors, labels)


def word_order(left: np.ndarray, right: np.ndarray, cosines: np.ndarray | None = None) -> WordOrder:
    """Measure the cosines of pairs of sentences, and their rank correlation with the teacher's.

    `left` and `right` are the vectors of the pairs, float32[n, dim]; `cosines` are the teacher's for the same pairs,
    float[n], or None for the teacher itself.
    """
    found = pair_cosines(left, right)
    agreement = None if cosines is None else correlation("spearman", found, cosines)
    return WordOrder(pairs=len(found), cosine=float(found.mean()), agreement=agreement)


def pair_cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return the cosines between the rows of `left` and `right`, float32[n, dim], as float32[n]."""
    return functional.cosine_similarity(torch.from_numpy(left), torch.from_numpy(right), dim=1).numpy()
