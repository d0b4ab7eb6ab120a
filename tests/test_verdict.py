"""The bound and its word: hand-computed cases and the borders. How often it errs: see test_verdict_studies."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy import stats

from budget_search.core.layers import LayerSet
from budget_search.data import metrics
from budget_search.layer_search.verdict import (
    PRIOR_SEED_SD,
    Judgement,
    expected_seed_sd,
    judge,
    judge_checkpoint,
    resolution,
    share_of_error,
    share_of_look,
    smallest_certifiable_delta,
    verdict_word,
)

TOP, OTHER = LayerSet((0, 1), 4), LayerSet((0, 2), 4)
FULL = LayerSet.full(4)


def contributions(*rows: str) -> np.ndarray:
    """Per-example contributions to accuracy, in points: seeds, examples, a 1 for a right answer."""
    return np.array([[100.0 * (letter == "1") for letter in row] for row in rows])


def judgement(**fields) -> Judgement:
    usual = Judgement(
        degradation=0.5, seed_variance=0.03, example_variance=0.01, seed_degrees_of_freedom=6, seeds=3, examples=2000
    )
    return replace(usual, **fields)


# -- by hand ------------------------------------------------------------------------------------------------------


def test_one_candidate_with_two_seeds_by_hand():
    # Differences per seed: (100, 0, 0, 100) and (100, 0, 0, -100): means 50 and 0.
    baseline = contributions("1101", "1110")
    candidate = contributions("0100", "0111")
    candidate[1, 2] = 100.0  # the third example stays right in the second seed
    found = judge(baseline, {TOP: candidate})[TOP]
    assert found.degradation == 25.0
    # Own variance (50 - 25)^2 * 2 / 1 = 1250, over two seeds. Scores: 75, 75 and 25, 75: pooled 2 * (0 + 1250) / 2.
    assert found.seed_variance == pytest.approx(1250 / 2)
    # Means over seeds (100, 0, 0, 0): variance 2500. Within: (0, 0, 0, 20000), mean 5000, over two seeds 2500: nothing
    # is left but half an example each way: (100 / 4)^2.
    assert found.example_variance == pytest.approx(625.0)
    assert found.degrees_of_freedom == pytest.approx(1250**2 / (625**2 / 2 + 625**2 / 3))
    assert found.upper == pytest.approx(25 + stats.t.ppf(0.95, found.degrees_of_freedom) * math.sqrt(1250))


def test_pooled_and_own_seed_variance_by_hand():
    # Scores per seed: baseline 90, 90, 90; steady 89, 89, 89; unsteady 91, 88, 85 (means of four contributions).
    def constant(*scores: float) -> np.ndarray:
        return np.array([[score] * 4 for score in scores])

    candidates = {TOP: constant(89.0, 89.0, 89.0), OTHER: constant(91.0, 88.0, 85.0)}
    found = judge(constant(90.0, 90.0, 90.0), candidates)
    # Variances 0, 0, 9: twice their mean is 6. The unsteady set's own is 9, the steady one's 0.
    assert found[TOP].seed_variance == pytest.approx(6 / 3)
    assert found[OTHER].seed_variance == pytest.approx(9 / 3)
    assert found[TOP].seed_degrees_of_freedom == 3 * (3 - 1)


def test_the_example_part_is_what_differs_lastingly():
    # Eight examples, two seeds: two examples are lost in both seeds, one flips in the second seed only.
    baseline = contributions("11111111", "11111111")
    candidate = contributions("00111111", "00011111")
    mean_difference = np.array([100, 100, 50, 0, 0, 0, 0, 0])
    within = 5000 / 8 / 2
    found = judge(baseline, {TOP: candidate})[TOP]
    assert found.example_variance == pytest.approx((mean_difference.var(ddof=1) - within) / 8 + (100 / 8) ** 2)


def test_any_metric_whose_contributions_are_score_plus_influence():
    rng = np.random.default_rng(0)
    baseline = 88.0 + rng.normal(0, 20, (3, 400))
    found = judge(baseline, {TOP: baseline - 1.5})[TOP]
    assert found.degradation == pytest.approx(1.5)
    assert found.example_variance == pytest.approx((100 / 400) ** 2)  # numbers: no example weighs more than others


def rare_class(
    studies: int, examples: int, recalls: tuple[float, float], false_positives: float
) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """The weight of an example, and contributions to F1 of two models on 3 % positives, the same with every seed."""
    rng = np.random.default_rng(0)
    for _ in range(studies):
        labels = (rng.random(examples) < 0.03).astype(int)
        luck = rng.random(examples)
        hits = (np.where(labels == 1, luck < recall, luck < false_positives).astype(int) for recall in recalls)
        full, part = (
            np.tile(metrics.contributions("f1", np.stack([1.0 - hit, hit], axis=1), labels), (3, 1)) for hit in hits
        )
        yield metrics.example_weight("f1", labels), full, part


@pytest.mark.parametrize(("recalls", "false_positives"), [((0.90, 0.84), 0.002), ((1.0, 0.93), 0.0)])
def test_the_few_examples_of_a_rare_class_do_not_make_the_bound_too_narrow(recalls, false_positives):
    """If a missed positive counted like a missed negative, 29 % of the first bounds would be below the truth. In the
    second case often neither model misses one, so the outcomes do not show what it counts."""
    full_f1, part_f1 = (200 * recall / (recall + 1 + false_positives * 97 / 3) for recall in recalls)
    studies = rare_class(300, 750, recalls, false_positives)
    bounds = [judge(full, {TOP: part}, 0.975, (), weight)[TOP].upper for weight, full, part in studies]
    assert np.mean(np.array(bounds) < full_f1 - part_f1) < 0.06


def test_resolution_counts_what_an_example_of_the_rarest_class_weighs():
    common, rare = (resolution(750, 3, weight=weight).smallest_certifiable_delta for weight in (100.0, 1_667.0))
    assert rare > common + 2


# -- the borders --------------------------------------------------------------------------------------------------


def test_without_any_change_half_an_example_each_way_is_supposed():
    results = contributions("11101110", "11101110")
    found = judge(results, {TOP: results.copy()})[TOP]
    assert (found.degradation, found.seed_variance) == (0.0, 0.0)
    assert found.example_variance == (100 / 8) ** 2
    assert found.upper == pytest.approx(stats.t.ppf(0.95, 7) * 100 / 8)
    assert not found.certified(5.0)


def test_a_collapsed_run_bars_certification_and_leaves_the_bound():
    sound, collapsed = judgement(degradation=0.1), judgement(degradation=0.1, collapsed=1)
    assert sound.certified(1.0)
    assert not collapsed.certified(1.0)
    assert collapsed.upper == sound.upper


def test_one_seed_bounds_nothing():
    found = judge(contributions("1111"), {TOP: contributions("1111"), OTHER: contributions("1110")})
    assert found[OTHER].degradation == 25.0
    for each in found.values():
        assert (each.seed_variance, each.variance, each.degrees_of_freedom, each.upper) == (None, None, None, None)
        assert not each.certified(100.0)


def test_a_checkpoint_is_judged_for_itself():
    baseline = contributions("11110000", "11100000", "11111000")
    [checkpoint] = contributions("11000001")
    found = judge_checkpoint(baseline, checkpoint)
    # Its score is 37.5; the baseline's are 50, 37.5 and 62.5, as far apart as its seeds alone make them.
    assert found.degradation == pytest.approx(12.5)
    assert found.seed_variance == pytest.approx(12.5**2 / 3)
    assert found.seed_degrees_of_freedom == 2
    # The differences it keeps whatever seed the baseline has: lost thrice, won once.
    lasting = np.cov(baseline - checkpoint)
    off_diagonal = (lasting.sum() - np.trace(lasting)) / 6
    assert found.example_variance == pytest.approx(off_diagonal / 8 + (100 / 8) ** 2, rel=0.05)
    assert judge_checkpoint(baseline[:1], checkpoint).upper is None
    with pytest.raises(ValueError, match=r"broadcast|seeds, examples"):
        judge_checkpoint(baseline, checkpoint[:5])


def test_nothing_to_judge():
    assert judge(contributions("11", "10"), {}) == {}


@pytest.mark.parametrize("wrong", [np.ones((2, 5)), np.ones((3, 4)), np.ones(4), np.full((2, 4), np.nan)])
def test_results_that_are_not_paired_are_refused(wrong):
    with pytest.raises(ValueError, match=r"seeds, examples|finite"):
        judge(np.ones((2, 4)), {TOP: wrong})


def test_the_bound_rises_with_the_confidence_and_agrees_with_the_probability():
    usual, strict = judgement(), judgement(confidence=0.99)
    assert usual.upper < strict.upper
    assert usual.certified(usual.upper)
    assert not usual.certified(usual.upper - 1e-9)


# -- how wide it is -----------------------------------------------------------------------------------------------

TRUE = 1.0


@dataclass(frozen=True)
class World:
    """Noise of the simulated studies, in points: seeds, lasting differences of examples, flips of single outcomes."""

    seeds: int
    candidates: int
    examples: int
    seed_sd: float
    lasting_sd: float = 14.8
    flip_sd: float = 19.0

    def studies(self, count: int) -> Iterator[tuple[np.ndarray, dict[LayerSet, np.ndarray]]]:
        """Studies in which every candidate truly loses TRUE points; a study is (baseline, candidates)."""
        rng = np.random.default_rng(20261120)
        sets = [LayerSet((0, 1 + index), 12) for index in range(self.candidates)]
        flip = self.flip_sd / math.sqrt(2)
        for _ in range(count):
            shared = rng.normal(0, self.seed_sd / 2, (self.seeds, 1))

            def runs(shared: np.ndarray = shared) -> np.ndarray:
                # A quarter of the seed variance is common to all sets, as data order is.
                own = rng.normal(0, self.seed_sd * math.sqrt(0.75), (self.seeds, 1))
                return shared + own + rng.normal(0, flip, (self.seeds, self.examples))

            lasting = rng.normal(0, self.lasting_sd, (self.candidates, self.examples))
            yield 90 + runs(), {each: 90 - TRUE + lasting[row] + runs() for row, each in enumerate(sets)}


def test_the_bound_is_not_merely_wide():
    """A set that loses much less than delta is certified as a rule."""
    world = World(seeds=3, candidates=4, examples=2000, seed_sd=0.3)
    passed = [next(iter(judge(*study).values())).certified(TRUE + 1.5) for study in world.studies(100)]
    assert np.mean(passed) > 0.8


# -- the word -----------------------------------------------------------------------------------------------------

GOOD, FAIR = judgement(degradation=0.1), judgement(degradation=0.9)


@pytest.mark.parametrize(
    ("given", "facts", "word"),
    [
        (GOOD, {}, "certified"),
        (GOOD, {"criterion": "certified"}, "certified"),
        (GOOD, {"criterion": "likely"}, "certified"),
        (FAIR, {"criterion": "likely"}, "likely"),
        (FAIR, {}, "observed"),
        (replace(GOOD, collapsed=1), {}, "observed"),
        (GOOD, {"held_out_degradation": 1.01}, "held_out disagrees"),
        (GOOD, {"held_out_degradation": 1.0}, "certified"),
        (replace(GOOD, seed_variance=None), {}, "observed"),
        (FAIR, {"held_out_degradation": 2.0}, "held_out disagrees"),
    ],
)
def test_the_word_for_a_smaller_model(given, facts, word):
    assert verdict_word(TOP, 1.0, given, **facts) == word


@pytest.mark.parametrize(
    ("criterion", "smallest", "word"),
    [
        ("certified", 1.2, "cannot be resolved"),
        ("certified", 1.0, "full model"),
        ("certified", None, "cannot be resolved"),
        ("observed", 1.2, "full model"),
    ],
)
def test_the_word_for_the_full_model(criterion, smallest, word):
    facts = {"criterion": criterion, "smallest_certifiable": smallest}
    assert verdict_word(FULL, 1.0, None, held_out_degradation=0.0, **facts) == word


@pytest.mark.parametrize("given", [None, judgement(degradation=1.1)])
def test_a_set_that_does_not_hold_is_no_answer(given):
    with pytest.raises(ValueError, match="0-1 of 4"):
        verdict_word(TOP, 1.0, given)


# -- what can be resolved -----------------------------------------------------------------------------------------


def test_the_smallest_certifiable_delta_by_hand():
    # Seeds: 2 * 0.6^2 / 3 = 0.24 with 5 * 2 degrees of freedom; examples: 0.01 * 100^2 / 5000 + 0.02^2 with 4,999.
    freedom = 0.2604**2 / (0.24**2 / 10 + 0.0204**2 / 4999)
    expected = stats.t.ppf(0.95, freedom) * math.sqrt(0.2604)
    assert smallest_certifiable_delta(5000, 3, 0.6, candidates=4) == pytest.approx(expected)


def test_more_seeds_more_examples_and_less_noise_resolve_more():
    usual = smallest_certifiable_delta(500, 3, 0.5, candidates=4)
    assert smallest_certifiable_delta(500, 5, 0.5, candidates=4) < usual
    assert smallest_certifiable_delta(2000, 3, 0.5, candidates=4) < usual
    assert smallest_certifiable_delta(500, 3, 0.3, candidates=4) < usual
    assert smallest_certifiable_delta(500, 3, 0.5, candidates=8) < usual
    assert smallest_certifiable_delta(500, 3, 0.5, candidates=4, confidence=0.99) > usual
    assert smallest_certifiable_delta(1000, 1) == math.inf


def test_the_forecast_is_the_bound_of_an_equally_good_set():
    """The median bound of simulated sets that lose nothing, whose noise is as the forecast supposes."""
    world = World(seeds=3, candidates=3, examples=1000, seed_sd=0.6, lasting_sd=10.0, flip_sd=0.0)
    bounds = [found.upper - TRUE for study in world.studies(300) for found in judge(*study).values()]
    assert np.median(bounds) == pytest.approx(smallest_certifiable_delta(1000, 3, 0.6, candidates=3), rel=0.15)


def test_the_spread_between_seeds_leans_on_the_assumption_while_there_are_few():
    assert expected_seed_sd([]) == expected_seed_sd([90.0]) == PRIOR_SEED_SD
    assert expected_seed_sd([90.0, 92.0]) == pytest.approx(math.sqrt((4 * 0.25 + 2.0) / 5))
    steady = expected_seed_sd([90.0] * 3)
    assert 0 < steady < PRIOR_SEED_SD


def test_the_resolution_of_further_seeds_is_that_of_the_last_look():
    with_further = resolution(5000, 3, further=3)
    assert "With 3 seeds and 3 further ones" in with_further.explanation
    level = 1 - 0.05 * share_of_error(0) * share_of_look(3, 3)
    expected = smallest_certifiable_delta(5000, 6, PRIOR_SEED_SD, confidence=level)
    assert with_further.smallest_certifiable_delta == pytest.approx(expected)
    assert resolution(5000, 1, further=1).smallest_certifiable_delta is not None


def test_late_candidates_have_a_bound_too():
    """From the fiftieth one on, one minus its share of the error was rounded to 1, and its bound was infinite."""
    assert 1 - 0.05 * share_of_error(200) < 1
    assert sum(map(share_of_error, range(2_000))) <= 1 + 1e-8


def test_the_spread_of_all_sets_counts():
    assert expected_seed_sd([90.0, 92.0], [88.0, 88.0]) == pytest.approx(math.sqrt((4 * 0.25 + 2.0) / 6))


def test_the_resolution_says_what_would_help():
    def remedies(examples: int, seeds: int) -> tuple[float, ...]:
        """Now, with two seeds more, with four times the examples where these would help."""
        found = resolution(examples, seeds).explanation
        return tuple(float(number) for number in re.findall(r"(?:for|to) (\d+\.\d+)", found))

    now, by_seeds, by_examples = remedies(277, 5)
    assert by_examples < by_seeds < now
    now, by_seeds = remedies(40_000, 2)
    assert by_seeds < now
    assert "more examples alone would not help" in resolution(40_000, 2).explanation
    assert "assumed" in resolution(5000, 3, [[90.0]]).explanation


def test_the_resolution_follows_the_noise_that_the_search_met():
    """A baseline that is steady by luck does not promise what unsteady candidates cannot keep."""
    steady = [90.0, 90.1, 90.0]
    alone = resolution(1200, 3, [steady])
    beside = resolution(1200, 3, [steady, [87.0, 89.0, 91.0]])
    assert ", measured)" in alone.explanation
    assert beside.smallest_certifiable_delta > 1.5 * alone.smallest_certifiable_delta


def test_rte_cannot_certify_one_point_and_qqp_can():
    assert resolution(277, 3).smallest_certifiable_delta > 1.0
    assert resolution(40_000, 3, [[91.0, 91.1, 90.9]]).smallest_certifiable_delta < 1.0


def test_one_seed_resolves_nothing_and_says_so():
    found = resolution(5000, 1, [90.0])
    assert found.smallest_certifiable_delta is None
    assert "seed" in found.explanation
