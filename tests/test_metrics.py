import tracemalloc

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from budget_search.data.metrics import (
    collapsed,
    constant_outputs,
    contributions,
    example_weight,
    mean_loss,
    measure,
    predictions,
)


def classified(
    seed: int = 0, examples: int = 600, classes: int = 2, skill: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Logits (examples, classes) that know the labels a little; the classes are not equally frequent."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.6, size=examples) - 1, classes - 1)
    return rng.normal(size=(examples, classes)) + skill * np.eye(classes)[labels], labels


def scored(seed: int = 0, examples: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Scores (examples, 1) and labels in steps of a half, as judgements often are: many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 11, size=examples) / 2
    return np.round(labels + rng.normal(scale=1.5, size=examples), 1)[:, None], labels.astype(np.float32)


def test_scores_are_in_points_and_not_rounded() -> None:
    outputs = np.array([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0]])
    labels = np.array([0, 1, 0])
    measured = measure(("accuracy", "f1", "matthews"), outputs, labels)
    assert measured == pytest.approx({"accuracy": 200 / 3, "f1": 200 / 3, "matthews": 50.0}, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("classes", [2, 3])
def test_metrics_are_those_of_scikit_learn_and_scipy(seed: int, classes: int) -> None:
    outputs, labels = classified(seed, classes=classes)
    predicted = predictions(outputs)
    measured = measure(("accuracy", "f1", "matthews"), outputs, labels)
    assert measured["accuracy"] == pytest.approx(100 * accuracy_score(labels, predicted), abs=1e-10)
    assert measured["matthews"] == pytest.approx(100 * matthews_corrcoef(labels, predicted), abs=1e-10)
    binary = measure(("f1",), outputs, (labels == 1).astype(np.int64))["f1"]
    assert binary == pytest.approx(100 * f1_score(labels == 1, predicted == 1), abs=1e-10)
    outputs, labels = scored(seed)
    measured = measure(("pearson", "spearman"), outputs, labels)
    assert measured["pearson"] == pytest.approx(100 * pearsonr(outputs[:, 0], labels).statistic, abs=1e-10)
    assert measured["spearman"] == pytest.approx(100 * spearmanr(outputs[:, 0], labels).statistic, abs=1e-10)


def test_f1_counts_the_second_class_as_positive() -> None:
    outputs = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    labels = np.array([0, 0, 1, 1])  # one of two positives found, nothing found wrongly
    assert measure(["f1"], outputs, labels)["f1"] == pytest.approx(100 * 2 / 3)


def test_correlations() -> None:
    labels = np.array([0.0, 1.0, 2.0, 3.0], dtype=np.float32)
    outputs = np.array([[0.0], [1.0], [4.0], [9.0]])  # the right order, not the right distances
    measured = measure(("pearson", "spearman", "pearson_spearman"), outputs, labels)
    assert measured["spearman"] == pytest.approx(100)
    assert measured["pearson"] == pytest.approx(100 * np.corrcoef(outputs[:, 0], labels)[0, 1])
    assert measured["pearson_spearman"] == pytest.approx((measured["pearson"] + 100) / 2)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "pearson_spearman"])
def test_constant_scores_correlate_with_nothing(metric: str) -> None:
    labels = np.array([0.0, 1.0, 2.0], dtype=np.float32)
    constant = np.full((3, 1), 2.5)
    assert measure([metric], constant, labels) == {metric: 0.0}
    assert contributions(metric, constant, labels).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_a_constant_class_scores_zero(metric: str) -> None:
    labels = np.array([0, 1, 1, 0])
    always_first = np.array([[1.0, 0.0]] * 4)
    assert measure([metric], always_first, labels) == {metric: 0.0}
    assert np.mean(contributions(metric, always_first, labels)) == 0.0


def test_outputs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="not numbers"):
        measure(["accuracy"], np.array([[np.nan, 0.0]]), np.array([0]))


def test_mean_loss_is_cross_entropy_in_nats_also_for_large_logits() -> None:
    assert mean_loss(np.zeros((2, 4)), np.array([0, 3]), regression=False) == pytest.approx(np.log(4))
    assert mean_loss(np.array([[1e4, 0.0]]), np.array([1]), regression=False) == pytest.approx(1e4)


def test_mean_loss_of_scores_is_squared_error() -> None:
    assert mean_loss(np.array([[1.0], [3.0]]), np.array([0.0, 3.0]), regression=True) == pytest.approx(0.5)


def test_one_class_for_nearly_everything_is_collapsed() -> None:
    outputs, labels = np.tile([1.0, 0.0], (200, 1)), np.arange(200) % 2
    outputs[:2] = [0.0, 1.0]
    assert collapsed(outputs, labels, regression=False)
    outputs[:3] = [0.0, 1.0]
    assert not collapsed(outputs, labels, regression=False)


def test_a_model_that_finds_the_few_others_has_not_collapsed() -> None:
    labels = (np.arange(1000) < 8).astype(int)
    right = np.eye(2)[labels]
    assert not collapsed(right, labels, regression=False)
    right[:4] = [1.0, 0.0]
    assert collapsed(right, labels, regression=False), "half of the eight are still missed"


def test_scores_that_hardly_vary_are_collapsed_whatever_their_scale() -> None:
    wiggle = np.linspace(-1, 1, 100)[:, None]
    assert collapsed(2.7 + 1e-3 * wiggle, wiggle, regression=True)
    assert not collapsed(2.7 + 0.1 * wiggle, wiggle, regression=True)
    assert not collapsed(1e-3 * wiggle, wiggle, regression=True)
    assert not collapsed(2000 + 0.5 * wiggle, 2000 + 0.5 * wiggle, regression=True), "years, all of them right"
    assert collapsed(np.zeros((10, 1)), wiggle[:10], regression=True)


def test_predictions_of_classes_and_scores() -> None:
    assert predictions(np.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])).tolist() == [1, 0]
    assert predictions(np.array([[0.5], [1.5]])).tolist() == [0.5, 1.5]


CASES = [
    ("accuracy", classified()),
    ("f1", classified()),
    ("matthews", classified()),
    ("matthews", classified(classes=4)),
    ("pearson", scored()),
    ("spearman", scored()),
    ("pearson_spearman", scored()),
]


@pytest.mark.parametrize(("metric", "case"), CASES)
def test_contributions_average_to_the_score(metric: str, case: tuple[np.ndarray, np.ndarray]) -> None:
    assert np.mean(contributions(metric, *case)) == pytest.approx(measure([metric], *case)[metric], abs=1e-9)


@pytest.mark.parametrize(("metric", "case"), CASES)
def test_contributions_agree_with_leaving_examples_out(metric: str, case: tuple[np.ndarray, np.ndarray]) -> None:
    outputs, labels = case
    examples = len(labels)
    score = measure([metric], outputs, labels)[metric]
    left_out = [measure([metric], np.delete(outputs, row, axis=0), np.delete(labels, row))[metric] for row in range(60)]
    jackknife = (examples - 1) * (score - np.array(left_out))
    influence = contributions(metric, outputs, labels)[:60] - score
    assert np.corrcoef(jackknife, influence)[0, 1] > 0.999
    assert influence == pytest.approx(jackknife, abs=0.04 * np.abs(jackknife).max())


@pytest.mark.parametrize(("metric", "case"), CASES)
def test_contributions_give_the_standard_error_of_a_bootstrap(metric: str, case: tuple[np.ndarray, np.ndarray]) -> None:
    outputs, labels = case
    rng = np.random.default_rng(1)
    draws = rng.integers(len(labels), size=(400, len(labels)))
    bootstrap = np.std([measure([metric], outputs[rows], labels[rows])[metric] for rows in draws])
    ours = np.std(contributions(metric, outputs, labels)) / np.sqrt(len(labels))
    assert ours == pytest.approx(bootstrap, rel=0.12)


def test_the_best_constant_of_hundreds_of_classes_takes_little_memory() -> None:
    """As one array for each class, these predictions would take 640 MB."""
    labels = np.arange(10_000) % 126
    labels[:100] = 3
    tracemalloc.start()
    outputs = constant_outputs("matthews", labels, 126)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert outputs[0].argmax() == 3
    assert peak < 64e6


@pytest.mark.parametrize(
    ("metric", "positives", "weight"),
    [("accuracy", 22, 100), ("f1", 375, 100), ("f1", 22, 1_744), ("matthews", 22, 1_775), ("f1", 0, 100)],
)
def test_what_an_example_of_the_rarest_class_weighs(metric: str, positives: int, weight: float) -> None:
    """With 750 examples; 1,744 = 750 * 100 * (1 - 42 / 43), the F1 that a perfect model loses with one positive."""
    assert example_weight(metric, (np.arange(750) < positives).astype(int)) == pytest.approx(weight, rel=0.002)
