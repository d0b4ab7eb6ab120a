"""A floor under every answer: a full model that is no better than a constant prediction ends the search.

Six kinds of baselines that mean nothing are refused by real searches on tiny models; one that has learnt is not.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from budget_search.data.metrics import constant_outputs, contributions, measure
from budget_search.layer_search.learning import gain_over_constant, remarks, why_not_learnt
from tests import tiny

OWN = ("--task", "own.csv", "--text-columns", "text", "--label-column", "label")
RANDOM = np.random.default_rng(0)


def answers(rates: Sequence[float], examples: int = 500) -> np.ndarray:
    """Contributions (seeds, examples) of models that are right at these rates."""
    return np.stack([100.0 * (np.arange(examples) < rate * examples) for rate in rates])


def constant(rate: float, examples: int = 500) -> np.ndarray:
    """The same of a constant prediction, right on examples of its own."""
    return 100.0 * (np.random.default_rng(7).permutation(examples) < rate * examples)


# -- scores of constant predictions ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "positives", "expected"),
    [
        ("accuracy", 30, 70.0),
        ("accuracy", 97, 97.0),
        ("f1", 30, 100 * 2 * 0.3 / 1.3),
        ("f1", 0, 0.0),
        ("matthews", 30, 0.0),
    ],
)
def test_the_best_constant_answer_of_classes(metric: str, positives: int, expected: float) -> None:
    labels = RANDOM.permutation([1] * positives + [0] * (100 - positives))
    best = constant_outputs(metric, labels, 2)
    assert measure((metric,), best, labels)[metric] == pytest.approx(expected)
    assert contributions(metric, best, labels).mean() == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["pearson", "spearman", "pearson_spearman"])
def test_a_constant_score_correlates_with_nothing(metric: str) -> None:
    scores = RANDOM.normal(size=50).astype(np.float32)
    assert measure((metric,), constant_outputs(metric, scores, 0), scores)[metric] == 0


# -- what counts as learnt --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rates", "examples", "learnt"),
    [
        ([0.85, 0.84, 0.86], 500, True),
        ([0.85], 500, True),
        ([0.58, 0.585, 0.58], 5_000, True),
        ([0.85, 0.50, 0.86], 500, True),
        ([0.52, 0.52, 0.52], 500, False),
        ([0.53, 0.535, 0.53], 500, False),
        ([0.50, 0.50, 0.85], 500, False),
        ([0.85, 0.50], 500, False),
    ],
    ids=[
        "learnt", "one seed", "a little, many examples", "one of three failed", "nothing", "too near", "one lucky seed",
        "one of two failed",
    ],
)  # fmt: skip
def test_a_baseline_must_exceed_the_constant(rates: Sequence[float], examples: int, learnt: bool) -> None:
    gain = gain_over_constant(answers(rates, examples), constant(0.52, examples))
    reason = why_not_learnt(gain, gain.failed, range(len(rates)))
    assert (reason is None) == learnt, gain
    if reason:
        assert f"score {gain.score:.1f}, best constant prediction 52.0" in reason


def test_the_bound_covers_a_constant_gain_as_often_as_it_says() -> None:
    """Baselines whose true gain is zero pass in at most one of twenty cases."""
    random, passed = np.random.default_rng(1), 0
    for _ in range(400):
        constant_right = random.random(400) < 0.5
        true_scores = 0.5 + 0.005 * random.standard_normal(3)
        baseline = np.stack([100.0 * (random.random(400) < score) for score in true_scores])
        passed += gain_over_constant(baseline, 100.0 * constant_right).lower > 0
    assert passed <= 0.05 * 400 + 3 * np.sqrt(400 * 0.05 * 0.95)


def test_a_delta_that_is_a_large_part_of_the_gain_is_told() -> None:
    gain = gain_over_constant(answers([0.60, 0.60, 0.60]), constant(0.52))
    [told] = remarks(gain, [], [1, 2, 3], [0.5, 2.0])
    assert told == (
        "An allowed loss of 2 points is 25% of the full model's gain over the best constant prediction: it scores "
        "60.00, the constant prediction 52.00."
    )


def test_another_metric_is_recommended_for_unbalanced_labels() -> None:
    [told] = remarks(gain_over_constant(answers([0.995] * 3, 2_000), constant(0.97, 2_000)), [], [1, 2, 3], [0.1])
    assert told.startswith("The best constant prediction scores 97.0:")
    assert "--metric f1" in told
    balanced = gain_over_constant(answers([0.9] * 3), constant(0.5))
    assert remarks(balanced, [], [1, 2, 3], [1.0]) == []


def test_seeds_that_failed_are_named() -> None:
    [told] = remarks(None, [43], [42, 43, 44], [1.0])
    assert told.startswith("With 1 of 3 seeds (43) the full model did not learn the task.")


# -- whole searches ---------------------------------------------------------------------------------------------


def table(path: Path, texts: Sequence[str], labels: Sequence[object]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])


def reviews(count: int) -> tuple[list[str], list[int]]:
    rows = tiny.reviews(count, 3)
    return [str(row["sentence"]) for row in rows], [int(str(row["label"])) for row in rows]


def case(name: str, path: Path) -> list[str]:
    """Write the table of a nonsense baseline; the options of its search."""
    texts, labels = reviews(600)
    options = [*tiny.RECIPE, "--train-examples", "300"]
    if name == "shuffled labels":
        random.Random(0).shuffle(labels)
    elif name == "constant features":
        texts = [f"the {number}" for number in range(len(texts))]
    elif name == "untrained":
        options += ["--lr", "1e-9"]
    elif name == "too short":
        options += ["--epochs", "0.05", "--lr", "1e-5"]
    elif name == "too high a rate":
        options += ["--lr", "0.9"]
    table(path, texts, labels)
    return options


@pytest.mark.parametrize("name", ["untrained", "too short", "too high a rate", "shuffled labels", "constant features"])
def test_a_baseline_that_has_learnt_nothing_is_refused(
    name: str, tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = case(name, tmp_path / "own.csv")
    command = [*OWN, "--model", str(bert), *options, "--delta", "0.01", "--output", "smaller", "--quiet"]
    assert tiny.command(*command) == 1
    [line] = capfd.readouterr().err.strip().splitlines()[-1:]
    assert "the full model" in line
    assert "has not learnt the task" in line or "could not be fine-tuned" in line
    study = tiny.only_study(tmp_path / "studies")
    assert not (study / "report.json").exists()
    assert not (tmp_path / "smaller").exists()


@pytest.mark.slow
def test_one_that_has_learnt_is_answered_with_the_share_of_the_gain_that_is_kept(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = case("learnt", tmp_path / "own.csv")
    assert tiny.command(*OWN, "--model", str(bert), *options, "--delta", "0.05", "--quiet") == 0
    report = json.loads((tiny.only_study(tmp_path / "studies") / "report.json").read_text("utf8"))
    baseline, [result] = report["baseline"], report["results"]
    assert baseline["constant_score"] == pytest.approx(report["splits"]["certification"]["constant_score"])
    assert 50 <= baseline["constant_score"] < 60 < baseline["score"]
    gain = baseline["score"] - baseline["constant_score"]
    assert result["gain_kept"]["value"] == pytest.approx(1 - result["degradation"] / gain)
    assert result["gain_kept"]["low"] == pytest.approx(1 - result["degradation_upper"] / gain)
