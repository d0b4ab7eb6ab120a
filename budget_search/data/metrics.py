"""Unrounded scores in points (0-100, Matthews and correlations times 100), and per-example contributions to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# A model that predicts one class for nearly all examples has learned nothing about the task.
COLLAPSED_SHARE = 0.99
COLLAPSED_SPREAD, COLLAPSED_SPREAD_OF_LABELS = 1e-3, 1e-2
CLASS_METRICS = ("f1", "matthews")
"""The metrics of class predictions that are not means over examples."""


def predictions(outputs: np.ndarray) -> np.ndarray:
    """Class numbers (examples,) from logits (examples, classes), or the scores from (examples, 1)."""
    values: np.ndarray = outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    return values


def measure(metric_names: Sequence[str], outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compute the metrics of outputs (examples, classes or 1), in points.

    Constant predictions get a correlation and a Matthews coefficient of 0. Raises ValueError if an output is not
    finite, and KeyError for an unknown metric.
    """
    require_finite(outputs)
    predicted = predictions(outputs)
    return {name: 100 * _METRICS[name](predicted, labels) for name in metric_names}


def require_finite(outputs: np.ndarray) -> None:
    """Raises ValueError if an output is not finite."""
    if not np.isfinite(outputs).all():
        raise ValueError("some outputs are not numbers (NaN or infinite); the metrics are undefined")


def mean_loss(outputs: np.ndarray, labels: np.ndarray, regression: bool) -> float:
    """Mean cross-entropy in nats, or mean squared error, per example."""
    if regression:
        return float(np.mean((outputs[:, 0].astype(np.float64) - labels) ** 2))
    logits = outputs.astype(np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(logits).sum(axis=1))
    return float(np.mean(normaliser - logits[np.arange(len(labels)), labels]))


def collapsed(outputs: np.ndarray, labels: np.ndarray, regression: bool) -> bool:
    """Whether the predictions are (nearly) constant: one class for 99 % of the examples, or one number.

    If the labels themselves are that unbalanced, a model only counts as collapsed if it predicts other classes at most
    half as often as they occur. Numbers are constant if their standard deviation is at most a thousandth of their mean
    and a hundredth of the labels' standard deviation.
    """
    predicted = predictions(outputs)
    if regression:
        spread, labels_spread = (float(np.std(values, dtype=np.float64)) for values in (predicted, labels))
        mean = abs(float(np.mean(predicted, dtype=np.float64)))
        return spread <= COLLAPSED_SPREAD * mean and spread <= COLLAPSED_SPREAD_OF_LABELS * labels_spread
    return nearly_constant(predicted, labels)


def nearly_constant(predicted: np.ndarray, labels: np.ndarray) -> bool:
    """Whether one class is predicted for (nearly) all examples; both are class numbers (examples,)."""
    others, other_labels = (len(values) - np.bincount(values).max() for values in (predicted, labels))
    return bool(others <= min((1 - COLLAPSED_SHARE) * len(predicted), other_labels / 2))


def ratio(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """The ratio of two sums over examples (rows), by column; 0 for 0 / 0."""
    total = denominators.sum(axis=0, dtype=np.float64)
    return np.asarray(numerators.sum(axis=0, dtype=np.float64) / np.where(total > 0, total, 1.0))


def ratio_contributions(numerators: np.ndarray, denominators: np.ndarray) -> np.ndarray:
    """Values of the shape of both whose mean over examples (rows) is ``ratio``.

    A value is the ratio plus the example's influence on it (infinitesimal jackknife).
    """
    value, mean = ratio(numerators, denominators), denominators.mean(axis=0, dtype=np.float64)
    return np.asarray(value + (numerators - value * denominators) / np.where(mean > 0, mean, 1.0))


def contributions(metric: str, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per-example values (examples,) in points; their mean is the score and their spread gives its standard error.

    For accuracy, a value is 100 or 0. The other metrics are not means over examples: a value is the score plus the
    example's influence on it (infinitesimal jackknife). The standard error of the score is the standard deviation of
    the values divided by the square root of their number, and paired differences can be tested as means.
    """
    predicted = predictions(outputs)
    if metric == "accuracy":
        return np.where(predicted == labels, 100.0, 0.0)
    if metric == "pearson_spearman":
        both = [contributions(one, outputs, labels) for one in ("pearson", "spearman")]
        return np.asarray(np.mean(both, axis=0))
    values: np.ndarray = 100 * (_METRICS[metric](predicted, labels) + _INFLUENCES[metric](predicted, labels))
    return values


def example_weight(metric: str, labels: np.ndarray) -> float:
    """The points that one example of the rarest class contributes: what a perfect model loses if it misses one, times
    the number of examples.

    100 for accuracy. By F1 and Matthews' coefficient an example of a rare class weighs many times as much. Other
    metrics, and labels of one class, get 100 as well.
    """
    counts = np.bincount(labels) if metric in CLASS_METRICS else np.array([len(labels)])
    by_count = sorted(np.flatnonzero(counts), key=lambda each: counts[each])
    if len(by_count) < 2:
        return 100.0
    missed = labels.copy()
    missed[np.flatnonzero(labels == by_count[0])[0]] = by_count[-1]
    return max(100.0, 100 * len(labels) * (1 - _METRICS[metric](missed, labels)))


def constant_outputs(metric: str, labels: np.ndarray, classes: int) -> np.ndarray:
    """The outputs of the constant prediction with the highest score, of equals the most frequent class.

    One-hot (examples, classes); zeros (examples, 1) for a regression task, whose ``classes`` are 0.
    """
    if not classes:
        return np.zeros((len(labels), 1), dtype=np.float32)
    frequent_first = np.argsort(-np.bincount(labels, minlength=classes), kind="stable")
    # One copy of a row serves all examples: with hundreds of classes the whole arrays would take gigabytes.
    one_hot = np.eye(classes, dtype=np.float32)
    answers = (np.broadcast_to(one_hot[each], (len(labels), classes)) for each in frequent_first)
    return max(answers, key=lambda outputs: measure((metric,), outputs, labels)[metric])


# The formulas are written out because sklearn.metrics and scipy.stats take seconds to import in every worker process.


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    return float((predicted == labels).mean())


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Of class 1; 0 if it is neither predicted nor a label."""
    positives = int((predicted == 1).sum() + (labels == 1).sum())
    return 2 * int(((predicted == 1) & (labels == 1)).sum()) / positives if positives else 0.0


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """With class shares P of predictions and T of labels: (E[correct] - P.T) / sqrt((1 - P.P)(1 - T.T))."""
    p, t = _class_shares(predicted, labels)
    p_variance, t_variance = 1 - p @ p, 1 - t @ t
    if p_variance <= 0 or t_variance <= 0:
        return 0.0
    return float(((predicted == labels).mean() - p @ t) / np.sqrt(p_variance * t_variance))


def _class_shares(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    classes = int(max(predicted.max(), labels.max())) + 1
    p, t = (np.bincount(values, minlength=classes) / len(labels) for values in (predicted, labels))
    return p, t


def _pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    if _is_constant(predicted) or _is_constant(labels):
        return 0.0
    return float((_standardised(predicted) * _standardised(labels)).mean())


def _spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    if _is_constant(predicted) or _is_constant(labels):
        return 0.0
    return _pearson(_centred_ranks(predicted), _centred_ranks(labels))


def _pearson_spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    return (_pearson(predicted, labels) + _spearman(predicted, labels)) / 2


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def _f1_influence(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F1 is 2 E[both] / (E[predicted] + E[labelled]): the derivative of a ratio of means."""
    predicted_1, labelled_1 = (predicted == 1).astype(np.float64), (labels == 1).astype(np.float64)
    positives = predicted_1.mean() + labelled_1.mean()
    if positives == 0:
        return np.zeros(len(labels))
    score = 2 * (predicted_1 * labelled_1).mean() / positives
    influence: np.ndarray = (2 * predicted_1 * labelled_1 - score * (predicted_1 + labelled_1)) / positives
    return influence


def _matthews_influence(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The derivative of ``_matthews`` by the share of an example."""
    p, t = _class_shares(predicted, labels)
    p_variance, t_variance = 1 - p @ p, 1 - t @ t
    if p_variance <= 0 or t_variance <= 0:
        return np.zeros(len(labels))
    correct = (predicted == labels).astype(np.float64)
    scale = np.sqrt(p_variance * t_variance)
    score = (correct.mean() - p @ t) / scale
    covariance_change = (correct - correct.mean()) - (t[predicted] - p @ t) - (p[labels] - p @ t)
    p_change = -2 * (p[predicted] - p @ p)
    t_change = -2 * (t[labels] - t @ t)
    influence: np.ndarray = covariance_change / scale - score / 2 * (p_change / p_variance + t_change / t_variance)
    return influence


def _pearson_influence(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if _is_constant(predicted) or _is_constant(labels):
        return np.zeros(len(labels))
    x, y = _standardised(predicted), _standardised(labels)
    influence: np.ndarray = x * y - (x * y).mean() / 2 * (x**2 + y**2)
    return influence


def _spearman_influence(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An example changes the correlation through its own ranks and through the ranks of the examples above it."""
    if _is_constant(predicted) or _is_constant(labels):
        return np.zeros(len(labels))
    x, y = _centred_ranks(predicted), _centred_ranks(labels)
    covariance, x_variance, y_variance = (x * y).mean(), (x * x).mean(), (y * y).mean()
    scale = np.sqrt(x_variance * y_variance)
    covariance_change = x * y + _mean_above(predicted, y) + _mean_above(labels, x) - 3 * covariance
    x_change = x * x + 2 * _mean_above(predicted, x) - 3 * x_variance
    y_change = y * y + 2 * _mean_above(labels, y) - 3 * y_variance
    variance_change = x_change / x_variance + y_change / y_variance
    influence: np.ndarray = (covariance_change - covariance / 2 * variance_change) / scale
    return influence


def _standardised(values: np.ndarray) -> np.ndarray:
    centred: np.ndarray = values.astype(np.float64) - values.mean(dtype=np.float64)
    return np.asarray(centred / centred.std())


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (ties averaged) divided by the number of examples, centred to mean 0."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = (np.cumsum(counts) - counts / 2) / len(values)
    ranks: np.ndarray = mean_ranks[inverse]
    return np.asarray(ranks - ranks.mean())


def _mean_above(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For every example, the summed weights of examples with a higher value (ties count half), divided by all."""
    _, inverse = np.unique(values, return_inverse=True)
    total = np.bincount(inverse, weights=weights)
    above = total.sum() - np.cumsum(total)
    means: np.ndarray = (above + total / 2) / len(values)
    return means[inverse]


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _pearson,
    "spearman": _spearman,
    "pearson_spearman": _pearson_spearman,
}
_INFLUENCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "f1": _f1_influence,
    "matthews": _matthews_influence,
    "pearson": _pearson_influence,
    "spearman": _spearman_influence,
}
