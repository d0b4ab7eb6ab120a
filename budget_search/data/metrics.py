"""Scores in points (0-100, Matthews and correlations times 100), never rounded, and what each example adds to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# A model that gives one class to nearly everything has learned nothing about the task.
COLLAPSED_SHARE = 0.99
COLLAPSED_SPREAD = 1e-3


def predictions(outputs: np.ndarray) -> np.ndarray:
    """Class numbers (examples,) from logits (examples, classes), or the scores from (examples, 1)."""
    values: np.ndarray = outputs[:, 0] if outputs.shape[1] == 1 else outputs.argmax(axis=1)
    return values


def measure(metric_names: Sequence[str], outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of these outputs (examples, classes or 1), in points.

    Constant predictions have a correlation and a Matthews coefficient of 0. Raises ValueError for outputs that are
    not numbers, and KeyError for an unknown metric.
    """
    if not np.isfinite(outputs).all():
        raise ValueError("the outputs are not numbers; nothing can be measured")
    predicted = predictions(outputs)
    return {name: 100 * _METRICS[name](predicted, labels) for name in metric_names}


def mean_loss(outputs: np.ndarray, labels: np.ndarray, regression: bool) -> float:
    """Mean cross-entropy in nats, or mean squared error, per example."""
    if regression:
        return float(np.mean((outputs[:, 0].astype(np.float64) - labels) ** 2))
    logits = outputs.astype(np.float64)
    logits = logits - logits.max(axis=1, keepdims=True)
    normaliser = np.log(np.exp(logits).sum(axis=1))
    return float(np.mean(normaliser - logits[np.arange(len(labels)), labels]))


def collapsed(outputs: np.ndarray, labels: np.ndarray, regression: bool) -> bool:
    """Whether the model says (nearly) the same for everything: one class for 99 % of the examples, or a constant.

    Where hardly any label is another one, that is right of the model: it may name half as many others as there are.
    Scores count as constant when they spread by less than a thousandth of their mean.
    """
    predicted = predictions(outputs)
    if regression:
        spread = float(np.std(predicted, dtype=np.float64))
        return spread <= COLLAPSED_SPREAD * abs(float(np.mean(predicted, dtype=np.float64)))
    others, other_labels = (len(values) - np.bincount(values).max() for values in (predicted, labels))
    return bool(others <= min((1 - COLLAPSED_SHARE) * len(predicted), other_labels / 2))


def contributions(metric: str, outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Per-example values (examples,) in points, whose mean is the score and whose spread is its sampling error.

    For accuracy that is 100 or 0. The other metrics are no means of examples: there it is the score plus the
    example's influence on it (infinitesimal jackknife), so that the standard error of the score is the standard
    deviation of these values over the square root of their number, and paired differences can be tested as means.
    """
    predicted = predictions(outputs)
    if metric == "accuracy":
        return np.where(predicted == labels, 100.0, 0.0)
    if metric == "pearson_spearman":
        both = [contributions(one, outputs, labels) for one in ("pearson", "spearman")]
        return np.asarray(np.mean(both, axis=0))
    values: np.ndarray = 100 * (_METRICS[metric](predicted, labels) + _INFLUENCES[metric](predicted, labels))
    return values


def _accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, predicted))


def _f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=1, average="binary", zero_division=0.0))


def _matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, predicted))


def _pearson(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import pearsonr

    if _is_constant(predicted) or _is_constant(labels):
        return 0.0
    return float(pearsonr(predicted.astype(np.float64), labels.astype(np.float64)).statistic)


def _spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    from scipy.stats import spearmanr

    if _is_constant(predicted) or _is_constant(labels):
        return 0.0
    return float(spearmanr(predicted, labels).statistic)


def _pearson_spearman(predicted: np.ndarray, labels: np.ndarray) -> float:
    return (_pearson(predicted, labels) + _spearman(predicted, labels)) / 2


def _is_constant(values: np.ndarray) -> bool:
    return bool((values == values[0]).all())


def _f1_influence(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """F1 is 2 E[both] / (E[predicted] + E[labelled]): the derivative of a ratio of means."""
    said, true = (predicted == 1).astype(np.float64), (labels == 1).astype(np.float64)
    positives = said.mean() + true.mean()
    if positives == 0:
        return np.zeros(len(labels))
    score = 2 * (said * true).mean() / positives
    influence: np.ndarray = (2 * said * true - score * (said + true)) / positives
    return influence


def _matthews_influence(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """With shares P of predictions and T of labels: (E[correct] - P.T) / sqrt((1 - P.P)(1 - T.T))."""
    classes = int(max(predicted.max(), labels.max())) + 1
    said = np.bincount(predicted, minlength=classes) / len(labels)
    true = np.bincount(labels, minlength=classes) / len(labels)
    varied_said, varied_true = 1 - said @ said, 1 - true @ true
    if varied_said <= 0 or varied_true <= 0:
        return np.zeros(len(labels))
    correct = (predicted == labels).astype(np.float64)
    scale = np.sqrt(varied_said * varied_true)
    score = (correct.mean() - said @ true) / scale
    shared = (correct - correct.mean()) - (true[predicted] - said @ true) - (said[labels] - said @ true)
    said_change = -2 * (said[predicted] - said @ said)
    true_change = -2 * (true[labels] - true @ true)
    influence: np.ndarray = shared / scale - score / 2 * (said_change / varied_said + true_change / varied_true)
    return influence


def _pearson_influence(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if _is_constant(predicted) or _is_constant(labels):
        return np.zeros(len(labels))
    x, y = _standardised(predicted), _standardised(labels)
    influence: np.ndarray = x * y - (x * y).mean() / 2 * (x**2 + y**2)
    return influence


def _spearman_influence(predicted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An example moves the correlation by its own ranks and by moving the ranks of those above it."""
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
    """Mean ranks as fractions of the examples, with mean 0."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    middle = (np.cumsum(count) - count / 2) / len(values)
    ranks: np.ndarray = middle[place]
    return np.asarray(ranks - ranks.mean())


def _mean_above(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """For every example: the sum of the weights of examples with a higher value, over all; equal ones count half."""
    _, place = np.unique(values, return_inverse=True)
    total = np.bincount(place, weights=weights)
    above = total.sum() - np.cumsum(total)
    means: np.ndarray = (above + total / 2) / len(values)
    return means[place]


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
