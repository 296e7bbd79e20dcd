"""Linear probes: what a task can read off fixed sentence vectors."""

from collections.abc import Callable, Sequence

import numpy as np

from sentence_distill.data.errors import UserError
from sentence_distill.student.finetuning.finetune import Labelled, main_score
from sentence_distill.student.metrics import task_metrics

# Inverse strengths of the L2 penalty that are tried; the best on dev counts, as the best step of fine-tuning does.
STRENGTHS = (0.01, 0.1, 1.0)


def probe(
    encode: Callable[[Sequence[str]], np.ndarray],
    train: Labelled,
    dev: dict[str, Labelled],
    *,
    classes: int,
    metrics: tuple[str, ...],
) -> tuple[dict[str, dict[str, float]], Callable[[Sequence[Sequence[str]]], np.ndarray]]:
    """Fit logistic regression, or ridge regression for scores, on standardised vectors.

    Args:
        encode: n sentences to float32[n, dim].
        train: examples.
        dev: examples by dev set; the first set picks among `STRENGTHS`.
        classes: number of classes, 0 for a regression.
        metrics: see `task_metrics`.

    Returns:
        The scores of each dev set, and a function from columns of texts to float[n] predictions.

    Raises:
        UserError: the examples are all of one class.
    """
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if classes and len(np.unique(train.targets)) < 2:
        raise UserError("all training examples are of one class, which no probe can learn from")
    vectors = features(encode, train.texts)
    dev_vectors = {name: features(encode, part.texts) for name, part in dev.items()}
    best, best_scores = None, {}
    for strength in STRENGTHS:
        penalised = LogisticRegression(C=strength, max_iter=1000) if classes else Ridge(alpha=1 / strength)
        model = make_pipeline(StandardScaler(), penalised).fit(vectors, train.targets)
        scores = {
            name: task_metrics(metrics, part.targets, model.predict(dev_vectors[name])) for name, part in dev.items()
        }
        if best is None or main_score(scores) > main_score(best_scores):
            best, best_scores = model, scores
    assert best is not None
    chosen = best
    return best_scores, lambda texts: chosen.predict(features(encode, texts))


def features(encode: Callable[[Sequence[str]], np.ndarray], texts: Sequence[Sequence[str]]) -> np.ndarray:
    """float32[n, dim] vectors u of single sentences; [u, v, |u - v|, u * v] of pairs."""
    columns = [encode(column) for column in texts]
    if len(columns) == 1:
        return columns[0]
    u, v = columns
    return np.concatenate([u, v, np.abs(u - v), u * v], axis=1)
