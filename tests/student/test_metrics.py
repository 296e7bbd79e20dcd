import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from sentence_distill.data.glue import TASKS
from sentence_distill.student.metrics import task_metrics


def test_metrics_worked_by_hand():
    labels, predictions = np.array([1, 1, 1, 0, 0, 0.0]), np.array([1, 1, 0, 1, 0, 0.0])
    scores = task_metrics(("accuracy", "f1", "matthews"), labels, predictions)
    # 2 true and 1 false positive, 2 true and 1 false negative.
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["matthews"] == pytest.approx((2 * 2 - 1 * 1) / (3 * 3))
    scores = task_metrics(("pearson", "spearman"), np.array([1, 2, 3, 4.0]), np.array([1, 2, 4, 3.0]))
    assert scores["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert scores["pearson"] == pytest.approx(0.8)


def test_f1_is_of_class_one_and_not_of_both():
    labels, predictions = np.array([1, 0, 0, 0, 0.0]), np.array([0, 0, 0, 0, 1.0])
    assert task_metrics(("f1", "accuracy"), labels, predictions) == {"f1": 0.0, "accuracy": 0.6}
    assert task_metrics(("f1",), np.array([1, 1, 0.0]), np.ones(3))["f1"] == pytest.approx(0.8)


def test_ties_share_their_ranks():
    # ProcessGroup 1, 2.5, 2.5, 4 against 1, 2, 3, 4: the covariance is 4.5, the variances 4.5 and 5.
    scores = task_metrics(("spearman",), np.array([0, 2, 2, 5.0]), np.array([1, 2, 3, 4.0]))
    assert scores["spearman"] == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_predictions_that_are_reversed_score_minus_one():
    labels = np.array([0, 1, 0, 1.0])
    assert task_metrics(("matthews", "accuracy"), labels, 1 - labels) == {"matthews": -1.0, "accuracy": 0.0}
    assert task_metrics(("pearson", "spearman"), labels, -labels) == {
        "pearson": pytest.approx(-1.0),
        "spearman": pytest.approx(-1.0),
    }


def test_one_prediction_for_all_scores_nothing():
    constant = task_metrics(("matthews", "spearman", "pearson", "f1"), np.array([0, 1, 0.0, 1]), np.zeros(4))
    assert constant == {"matthews": 0.0, "spearman": 0.0, "pearson": 0.0, "f1": 0.0}


def test_a_single_example_correlates_with_nothing():
    assert task_metrics(("pearson", "spearman"), np.ones(1), np.ones(1)) == {"pearson": 0.0, "spearman": 0.0}


REFERENCE = {
    "accuracy": sklearn_metrics.accuracy_score,
    "f1": sklearn_metrics.f1_score,
    "matthews": sklearn_metrics.matthews_corrcoef,
    "pearson": lambda labels, predictions: stats.pearsonr(labels, predictions)[0],
    "spearman": lambda labels, predictions: stats.spearmanr(labels, predictions)[0],
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", TASKS)
def test_every_task_is_scored_as_scikit_learn_and_scipy_do(name, dtype):
    task, rng = TASKS[name], np.random.default_rng(0)
    for _ in range(5):
        if task.regression:
            labels = rng.integers(0, 26, 200) / 5
            predictions = labels + rng.normal(0, 1.5, 200)
        else:
            labels = rng.integers(0, len(task.labels), 200)
            predictions = np.where(rng.random(200) < 0.6, labels, rng.integers(0, len(task.labels), 200))
        scores = task_metrics(task.metrics, labels.astype(dtype), predictions.astype(dtype))
        assert scores == {
            metric: pytest.approx(REFERENCE[metric](labels, predictions), abs=1e-6) for metric in task.metrics
        }


@pytest.mark.parametrize("name", TASKS)
def test_every_task_can_be_scored_where_all_predictions_are_the_same(name):
    task = TASKS[name]
    classes = len(task.labels) or 5
    labels = np.arange(60) % classes
    for value in range(classes):
        scores = task_metrics(task.metrics, labels.astype(float), np.full(60, float(value)))
        share = float(np.mean(labels == value))
        f1 = 2 * share / (1 + share) if value == 1 else 0.0
        expected = {"accuracy": share, "f1": f1, "matthews": 0.0, "pearson": 0.0, "spearman": 0.0}
        assert scores == {metric: pytest.approx(expected[metric]) for metric in task.metrics}
