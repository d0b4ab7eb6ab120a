"""What the surrogate expects of sets nobody measured, and what is done with it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from budget_search.core.layers import LayerSet
from budget_search.layer_search.acceptance import AcceptanceRule
from budget_search.layer_search.acquisition import (
    ConfirmationRule,
    _best_first,
    candidate_sets,
    choose,
    confirmation_probabilities,
)
from budget_search.layer_search.pool import Pool
from budget_search.layer_search.strategies.auto import design
from budget_search.layer_search.surrogate import BROKEN, FullRuns, Surrogate, combine_with_loss

EFFECTS = np.array([2.6, 1.4, 0.3, 0.5, 0.1, 0.6, 0.1, 0.4, 0.1, 0.7, 0.2, 0.1])
EVERY = [LayerSet.dropping(gone, 12) for count in range(1, 12) for gone in itertools.combinations(range(12), count)]

OBSERVED, LIKELY = AcceptanceRule("observed", 0.8), AcceptanceRule("likely", 0.8)


def truth(layers: LayerSet) -> float:
    """Points lost: layers add up, and neighbours that go together cost half a point more."""
    gone = layers.dropped
    return float(sum(EFFECTS[list(gone)])) + 0.5 * sum(index + 1 in gone for index in gone)


def screens(slope: float = 1.5, count: int = 24, noise: float = 0.3) -> dict[LayerSet, float]:
    random = np.random.default_rng(1)
    sets = design(12, frozenset(), 12)
    more = [EVERY[index] for index in random.integers(300, 3500, count - len(sets))]
    return {layers: slope * truth(layers) + noise * random.normal() for layers in (*sets, *more)}


def fitted(**options: float) -> Surrogate:
    in_full = {layers: FullRuns(truth(layers), 3) for layers in list(screens())[:2]}
    return Surrogate.fit(12, screens(**options), in_full, 0.3, 3)


def test_it_expects_what_unmeasured_sets_really_lose() -> None:
    sets = [layers for layers in EVERY if 5 <= layers.depth <= 10]
    expected, sd = fitted().predict(sets)
    lost = np.array([truth(layers) for layers in sets])
    assert np.corrcoef(expected, lost)[0, 1] > 0.9
    assert np.sqrt(np.mean((expected - lost) ** 2)) < 0.6
    # Its own doubt is of the size of its errors.
    assert 0.5 < np.std((expected - lost) / sd) < 1.5


def test_without_measurements_it_says_that_more_layers_cost_more_and_how_unsure_it_is() -> None:
    expected, sd = Surrogate.fit(12, {}, {}, 0.5, 3).predict([LayerSet.full(12).drop(5), LayerSet((0, 1, 2), 12)])
    assert expected[0] < expected[1]
    assert sd[0] < sd[1]


def test_a_full_run_weighs_more_than_its_screen() -> None:
    layers = LayerSet((0, 1, 2, 3, 5, 7), 12)
    known = {**screens(), layers: 1.5 * truth(layers)}
    before, _ = Surrogate.fit(12, known, {}, 0.3, 3).predict([layers])
    after, sd = Surrogate.fit(12, known, {layers: FullRuns(truth(layers) + 3.0, 3)}, 0.3, 3).predict([layers])
    assert after[0] > before[0] + 1.0
    assert sd[0] < 0.6


def test_a_broken_screen_is_left_out() -> None:
    sets = EVERY[500:600]
    known = screens()
    broken = {**known, EVERY[0]: BROKEN + 30.0}
    np.testing.assert_allclose(
        Surrogate.fit(12, known, {}, 0.3, 3).predict(sets)[0], Surrogate.fit(12, broken, {}, 0.3, 3).predict(sets)[0]
    )


@pytest.mark.parametrize("total", [1, 2, 3, 6, 24])
def test_it_works_at_every_depth(total: int) -> None:
    sets = candidate_sets(total, frozenset(), [])
    expected, sd = Surrogate.fit(total, dict.fromkeys(sets[:3], 1.0), {}, 0.5, 3).predict(sets[:50])
    assert np.isfinite(expected).all()
    assert (sd > 0).all()


def test_losses_steady_the_points_they_are_worth() -> None:
    random = np.random.default_rng(0)
    real = random.uniform(0, 6, 40)
    points = real + random.normal(size=40)
    losses = (real + 0.2 * random.normal(size=40)) / 30
    steady = np.array(combine_with_loss(points.tolist(), losses.tolist()))
    assert np.std(steady - real) < 0.65 * np.std(points - real)
    assert combine_with_loss([1.0, 2.0], [0.1, 0.2]) == [1.0, 2.0]
    assert combine_with_loss(points.tolist(), [None] * 40) == points.tolist()


def test_the_design_drops_many_layers_at_once_and_each_about_as_often() -> None:
    sets = design(12, frozenset(), 12)
    assert len(set(sets)) == 12
    assert all(4 <= len(layers.dropped) <= 7 for layers in sets)
    times = [sum(index in layers.dropped for layers in sets) for index in range(12)]
    assert max(times) - min(times) <= 3
    assert min(len(set(a.kept) ^ set(b.kept)) for a, b in itertools.combinations(sets, 2)) >= 2


@pytest.mark.parametrize("total", [2, 3, 4, 6, 24, 96])
def test_the_design_comes_to_an_end_and_keeps_fixed_layers(total: int) -> None:
    sets = design(total, frozenset({0}), 12)
    assert 1 <= len(sets) <= 12
    assert all(0 in layers.kept and not layers.is_full for layers in sets)


def test_sets_considered_are_all_of_a_shallow_model_and_reach_every_depth_of_a_deep_one() -> None:
    assert len(candidate_sets(6, frozenset(), [])) == 62
    assert len(candidate_sets(6, frozenset({0}), [])) == 31
    measured = [LayerSet(tuple(range(10)), 30)]
    deep = candidate_sets(30, frozenset({3}), measured)
    assert {layers.depth for layers in deep} == set(range(1, 30))
    assert LayerSet(tuple(range(9)), 30) in deep
    assert all(3 in layers.kept for layers in deep)
    assert deep == candidate_sets(30, frozenset({3}), measured)


def test_chances_fall_with_what_is_lost_and_rise_with_what_is_allowed() -> None:
    surrogate = fitted()
    harmless, harmful = LayerSet.dropping({11}, 12), LayerSet.dropping({0, 1}, 12)
    both = Pool.of([harmless, harmful], 12)
    strict, lax = (
        confirmation_probabilities(surrogate, both, ConfirmationRule(delta, 0.3, 3, {}, OBSERVED))
        for delta in (1.0, 5.0)
    )
    assert strict[0] > strict[1]
    assert lax[1] > strict[1]


def test_a_probability_asks_for_a_lower_mean_the_less_is_known() -> None:
    expected, sds = np.array([0.5, 0.5, 3.0]), np.array([0.1, 1.0, 1.0])
    by_mean = ConfirmationRule(1.0, 0.5, 3, {}, OBSERVED).required_means(expected, sds)
    likely = ConfirmationRule(1.0, 0.5, 3, {}, LIKELY).required_means(expected, sds)
    few_examples = ConfirmationRule(1.0, 0.5, 3, {}, LIKELY, example_variance=0.5).required_means(expected, sds)
    assert by_mean.tolist() == [1.0, 1.0, 1.0]
    assert likely[0] > likely[1] > likely[2]
    assert (likely <= by_mean).all()
    assert (few_examples[1:] < likely[1:]).all()


def test_runs_already_there_count_towards_the_chance() -> None:
    surrogate, layers = fitted(), LayerSet.dropping({11}, 12)
    lucky, unlucky = (ConfirmationRule(1.0, 0.3, 3, {layers: FullRuns(lost, 2)}, OBSERVED) for lost in (0.0, 1.6))
    assert lucky.allowed_degradation(layers, 1.0) == pytest.approx(3.0)
    assert unlucky.allowed_degradation(layers, 1.0) == pytest.approx(-0.2)
    # The set keeps its runs where it is one of a selection.
    chosen = Pool.of(EVERY, 12).where(np.array([each == layers for each in EVERY]))
    assert confirmation_probabilities(surrogate, chosen, lucky) > confirmation_probabilities(surrogate, chosen, unlucky)


def best_first(chance: dict[int, float], answer: int, total: int = 12, tries: int = 5) -> int | None:
    """The depth to try first, when a ladder's rungs hold with these chances, a deeper one whenever a shallower does; a
    layer is worth two fine-tunes, and any answer as much again."""
    draws = np.linspace(0.0005, 0.9995, 1000)
    holds = np.array([draws < each for each in chance.values()])
    worths = [2.0 * (answer - depth) for depth in chance]
    rung = _best_first(worths, [3 * depth / total for depth in chance], holds, 2.0 if answer == total else 0.0, tries)
    return None if rung is None else list(chance)[rung]


def test_the_ladder_is_entered_where_layers_saved_are_worth_the_tries() -> None:
    assert best_first({3: 0.02, 5: 0.6, 7: 0.95, 9: 1.0}, answer=12) == 5
    assert best_first({3: 0.02, 5: 0.1, 7: 0.9, 9: 1.0}, answer=12) == 7


def test_the_last_try_is_a_safer_one() -> None:
    chance = {3: 0.02, 5: 0.5, 7: 0.95, 9: 1.0}
    assert best_first(chance, answer=12) == 5
    assert best_first(chance, answer=12, tries=1) == 7
    assert best_first(chance, answer=12, tries=0) is None


def test_an_answer_is_left_alone_unless_a_better_one_is_likely_enough_for_its_price() -> None:
    assert best_first({5: 0.1, 6: 0.3}, answer=7) is None
    assert best_first({5: 0.1, 6: 0.9}, answer=7) == 6
    # Far more to gain: a smaller chance will do.
    assert best_first({5: 0.3}, answer=11) == 5


def test_any_answer_is_worth_more_than_its_layers() -> None:
    assert best_first({11: 0.8}, answer=12) == 11
    assert best_first({10: 0.8}, answer=11) is None
    assert best_first({11: 0.05}, answer=12) is None


def test_choosing_takes_the_likeliest_set_of_a_depth_and_nothing_from_nothing() -> None:
    surrogate = fitted()
    worse, better = LayerSet.dropping({0, 1}, 12), LayerSet.dropping({10, 11}, 12)
    confirming = ConfirmationRule(2.0, 0.3, 3, {}, OBSERVED)
    assert choose(surrogate, Pool.of([worse, better], 12), confirming, 12, 5) == better
    assert choose(surrogate, Pool.of([], 12), confirming, 12, 5) is None


def test_a_selection_knows_its_own_sets_alone() -> None:
    pool = Pool.of(EVERY, 12)
    few = [EVERY[7], LayerSet((0,), 12), LayerSet.full(12), EVERY[100]]
    assert [pool.sets[position] for position, _ in pool.find(few)] == [EVERY[7], LayerSet((0,), 12), EVERY[100]]
    deep = pool.where(pool.depths >= 9).where(~pool.where(pool.depths >= 9).among([EVERY[7]]))
    assert set(deep.sets) == {layers for layers in EVERY if layers.depth >= 9} - {EVERY[7]}
    assert list(deep.depths) == [layers.depth for layers in deep.sets]
    assert [(deep.sets[position], layers) for position, layers in deep.find(few)] == [(EVERY[100], EVERY[100])]
    surrogate = fitted()
    np.testing.assert_allclose(surrogate.predict_rows(deep.rows), surrogate.predict(deep.sets))


def test_a_full_run_that_broke_does_not_bend_the_rest() -> None:
    sets = [LayerSet.dropping({11}, 12), LayerSet.dropping({10, 11}, 12)]
    screened = {layers: 0.5 * len(layers.dropped) for layers in sets}
    broken = {LayerSet((0,), 12): FullRuns(35.0, 1)}
    plain, with_broken = (Surrogate.fit(12, screened, runs, 0.3, 3) for runs in ({}, broken))
    assert np.allclose(plain.predict(sets)[0], with_broken.predict(sets)[0])
