"""Metrics of tasks, those of GLUE and for classes of one's own, from scikit-learn and SciPy."""

import warnings

import numpy as np


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
