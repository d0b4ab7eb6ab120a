"""The rule by which a set is accepted, and the estimate behind ``likely``: own runs shrunk towards a prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from budget_search.core.layers import LayerSet
from budget_search.core.trial import Job, Trial
from budget_search.layer_search.acceptance import RESIDUAL_SD, AcceptanceRule, Estimate, shrink
from budget_search.simulation.replay import InMemoryHistory
from tests.worlds import World, search, settings


def test_the_posterior_is_that_of_two_normal_measurements() -> None:
    """Compared with the posterior computed on a grid of true degradations."""
    observed, variance, expected, sd = 1.3, 0.2, 0.4, 0.5
    grid = np.linspace(-5, 5, 200_001)
    density = np.exp(-((grid - observed) ** 2) / (2 * variance))
    density *= np.exp(-((grid - expected) ** 2) / (2 * (sd**2 + RESIDUAL_SD**2)))
    density /= density.sum()
    estimate = shrink(observed, variance, expected, sd)
    assert estimate.mean == pytest.approx(float(density @ grid), abs=1e-4)
    assert estimate.sd == pytest.approx(float(np.sqrt(density @ (grid - estimate.mean) ** 2)), abs=1e-4)
    assert estimate.probability_within(1.0) == pytest.approx(float(density[grid <= 1.0].sum()), abs=1e-3)


def test_the_quantile_inverts_the_probability() -> None:
    estimate = Estimate(0.6, 0.3)
    assert estimate.probability_within(estimate.quantile(0.8)) == pytest.approx(0.8)
    assert estimate.quantile(0.5) == pytest.approx(0.6)


def test_required_means_invert_the_rule() -> None:
    """A mean slightly below is accepted with the same prediction and variance, one slightly above is not."""
    rule, variance, delta = AcceptanceRule("likely", 0.8), 0.2, 1.0
    expected, sds = np.array([0.2, 0.9, 1.5]), np.array([0.3, 0.1, 0.6])
    for mean, prior, sd in zip(rule.required_means(delta, expected, sds, variance), expected, sds, strict=True):
        below, above = (shrink(mean + step, variance, prior, sd).quantile(0.8) for step in (-1e-6, 1e-6))
        assert below <= delta < above or mean == delta


class Lucky(World):
    """One set scores 0.9 points better by chance in every full run than its layers say."""

    def measure(self, job: Job) -> Trial:
        trial = super().measure(job)
        if trial.layers != LUCKY or job.split == "selection":
            return trial
        assert trial.score is not None
        return replace(trial, score=trial.score + 0.9)


LUCKY = LayerSet.dropping((0, 1), 12)
NEIGHBOURS = tuple(LayerSet.dropping(dropped, 12) for dropped in ((0, 1), (0, 2), (1, 2), (0,), (1,), (2,), (0, 1, 2)))


def test_a_lucky_set_is_pulled_towards_what_its_neighbours_lose() -> None:
    """The runs of other sets count for a set, its own count once."""
    world = Lucky()
    together = search(world, InMemoryHistory(), settings(named=NEIGHBOURS, deltas=(1.0,), criterion="likely"))
    together.run()
    state = together.state
    own = np.mean(state.confirmations.degradations(LUCKY))
    alone = search(world, InMemoryHistory(), settings(named=(LUCKY,), deltas=(1.0,), criterion="likely"))
    alone.run()
    assert state.estimate(LUCKY).mean > own
    assert state.estimate(LUCKY).sd < alone.state.estimate(LUCKY).sd


@pytest.mark.parametrize("probability", [0.5, 0.8, 0.95])
def test_an_answer_holds_in_the_mean_and_with_the_probability_asked_for(probability: float) -> None:
    found = search(World(), InMemoryHistory(), settings(criterion="likely", probability=probability))
    answers = found.run()
    state = found.state
    assert not answers[3.0].is_full
    for delta, layers in answers.items():
        if not layers.is_full:
            assert state.estimate(layers).probability_within(delta) >= probability
            assert np.mean(state.confirmations.degradations(layers)) <= delta
    smaller = [each for each in state.confirmations.sets if each.depth < answers[3.0].depth]
    assert not any(state.holds(each, 3.0) for each in smaller)


def test_one_seed_has_an_estimate_too() -> None:
    found = search(World(), InMemoryHistory(), settings(criterion="likely", seeds=(42,)))
    answer = found.run()[3.0]
    assert not answer.is_full
    assert 0.8 <= found.state.estimate(answer).probability_within(3.0) < 1.0
