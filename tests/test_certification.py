"""Further seeds for the answers: which runs they take, when they stop, and how often what they certify is wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, SearchBudget, Trial, TrialKey
from budget_search.layer_search.certification import can_certify
from budget_search.layer_search.confirmation import Confirmations
from budget_search.layer_search.loop import Search
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement, judge, share_of_look
from budget_search.simulation.replay import NullObserver
from tests.examples import example
from tests.worlds import InMemoryHistory, World, settings, without_interruption

certainty = example("certainty")
FULL, FIRST = LayerSet.full(12), LayerSet.dropping((8,), 12)
NAMED = (FIRST, LayerSet.dropping((8, 4, 11), 12), LayerSet.dropping((0,), 12))
SEED_VARIANCE = 0.12


def search(world: World, memory: InMemoryHistory, wanted: SearchSettings) -> Search:
    """A search whose bounds narrow with the number of seeds, as if each had a known variance."""

    def compare(layers: LayerSet, confidence: float) -> Judgement:
        values = state.confirmations.degradations(layers)
        return Judgement(fmean(values), SEED_VARIANCE / len(values), 0.001, 50, len(values), 5_000, confidence)

    state = SearchState(wanted, memory, compare)
    return Search(state, world.run_jobs, NullObserver())


def asked(**changes: Any) -> SearchSettings:
    return settings(**{"named": (FIRST,), "deltas": (0.5,), "certify": 6, **changes})


def further(memory: InMemoryHistory) -> list[tuple[LayerSet, int]]:
    runs = [trial.key for trial in memory.history if trial.split == "certification" and trial.key.seed > 44]
    return sorted((key.layers, key.seed) for key in runs)


# -- which runs ---------------------------------------------------------------------------------------------------


def test_pairs_of_runs_until_the_bound_is_within_delta() -> None:
    memory = InMemoryHistory()
    found = search(World(), memory, asked())
    assert found.run() == {0.5: FIRST}
    judgement = found.state.judge(FIRST, 0.5)
    assert judgement.certified(0.5)
    extra = judgement.seeds - 3
    assert 1 < extra < 6
    seeds = range(45, 45 + extra)
    assert further(memory) == sorted((layers, seed) for layers in (FULL, FIRST) for seed in seeds)
    before = Confirmations(memory.history, 12, (42, 43, 44), tuple(seeds)[:-1])
    assert len(before.seeds_of(FIRST)) == judgement.seeds - 1


def test_at_most_as_many_pairs_as_asked_for_then_the_answer_stays_uncertified() -> None:
    memory = InMemoryHistory()
    found = search(World(), memory, asked(certify=2, deltas=(0.25,)))
    assert found.run() == {0.25: FIRST}
    assert not found.state.judge(FIRST, 0.25).certified(0.25)
    assert {seed for _, seed in further(memory)} == {45, 46}
    assert any("2 further seeds" in note for note in found.notes())


@pytest.mark.parametrize(
    "changes",
    [{"certify": 0}, {"deltas": (5.0,)}, {"deltas": (0.1,), "certify": 1}, {"named": (LayerSet.dropping((0,), 12),)}],
    ids=["not asked", "certified already", "hopeless", "the full model"],
)
def test_no_further_run_where_none_is_wanted(changes: dict[str, Any]) -> None:
    memory = InMemoryHistory()
    search(World(), memory, asked(**changes)).run()
    assert further(memory) == []


def test_answers_to_several_deltas_share_the_runs_of_the_baseline() -> None:
    memory = InMemoryHistory()
    found = search(World(), memory, asked(named=NAMED, deltas=(0.1, 0.7), certify=30))
    assert found.run() == {0.1: FIRST, 0.7: NAMED[1]}
    runs = further(memory)
    assert max(Counter(runs).values()) == 1
    assert {layers for layers, _ in runs} == {FULL, FIRST, NAMED[1]}
    by_layers = Counter(layers for layers, _ in runs)
    assert by_layers[FULL] == max(by_layers[FIRST], by_layers[NAMED[1]]) < by_layers[FIRST] + by_layers[NAMED[1]]


def test_further_runs_that_contradict_the_first_ones_change_the_answer() -> None:
    """With three seeds the set seemed to hold; with the further ones it loses two points."""

    class Unmasking(World):
        def measure(self, job: Job) -> Trial:
            trial = super().measure(job)
            late = job.key.layers == FIRST and job.key.seed > 44
            return replace(trial, score=(trial.score or 0) - 2) if late else trial

    memory = InMemoryHistory()
    found = search(Unmasking(), memory, asked())
    assert found.run() == {0.5: FULL}
    assert {seed for _, seed in further(memory)} == {45}


@pytest.mark.parametrize("spoilt", [FIRST, FULL])
def test_a_further_run_that_collapses_ends_it_and_certifies_nothing(spoilt: LayerSet) -> None:
    class Collapsing(World):
        def measure(self, job: Job) -> Trial:
            trial = super().measure(job)
            return replace(trial, state="collapsed") if job.key.layers == spoilt and job.key.seed == 45 else trial

    memory = InMemoryHistory()
    found = search(Collapsing(), memory, asked())
    answer = found.run()[0.5]
    assert not found.state.judge(answer, 0.5).certified(0.5)
    assert {seed for _, seed in further(memory)} == {45}


def test_a_further_run_that_diverges_disqualifies_the_set_like_any_run() -> None:
    class Diverging(World):
        def measure(self, job: Job) -> Trial:
            if job.key.layers == FIRST and job.key.seed == 45:
                return Trial(job.key, job.split, "failed", error="the loss was nan")
            return super().measure(job)

    memory = InMemoryHistory()
    assert search(Diverging(), memory, asked()).run() == {0.5: FULL}
    assert {seed for _, seed in further(memory)} == {45}
    assert search(World(), memory, asked(certify=0)).run() == {0.5: FIRST}


def test_the_search_budget_limits_further_runs_too() -> None:
    memory = InMemoryHistory()
    found = search(World(), memory, asked(budget=SearchBudget(max_trials=9)))
    found.run()
    # Six for the answer, two for one pair; a second pair would be one too many.
    assert len(memory.history) == 8
    assert found.ended_early


@pytest.mark.parametrize("after", range(25))
def test_interrupted_anywhere_it_ends_as_if_nothing_had_happened(after: int) -> None:
    wanted = asked(named=NAMED, deltas=(0.5, 0.8))
    world, undisturbed, memory = World(seed_sd=0.2, interrupt_after=after), InMemoryHistory(), InMemoryHistory()
    expected = search(without_interruption(world), undisturbed, wanted).run()
    assert further(undisturbed)
    if after < len(undisturbed.trials):
        with pytest.raises(KeyboardInterrupt):
            search(world, memory, wanted).run()
    assert search(without_interruption(world), memory, wanted).run() == expected
    assert Counter(trial.key for trial in memory.trials) == Counter(trial.key for trial in undisturbed.trials)


def test_asked_afterwards_it_goes_on_with_the_trials_and_the_plain_question_keeps_its_answer() -> None:
    plain, certify = (settings(deltas=(1.0, 3.0), certify=more) for more in (0, 3))
    world, memory, together = World(seed_sd=0.2, screen_sd=0.2), InMemoryHistory(), InMemoryHistory()
    first = search(world, memory, plain).run()
    known = len(memory.trials)
    later = search(world, memory, certify).run()
    assert later == search(without_interruption(world), together, certify).run()
    assert {trial.key for trial in memory.history} == {trial.key for trial in together.history}
    assert {trial.key.seed for trial in memory.trials[known:]} <= {45, 46, 47}
    assert len(memory.trials) > known
    again = without_interruption(world)
    assert search(again, memory, plain).run() == first
    assert again.asked == []


# -- which runs count ---------------------------------------------------------------------------------------------


def test_further_seeds_count_in_their_order_where_set_and_baseline_have_them() -> None:
    def scored(layers: LayerSet, *seeds: int) -> list[Trial]:
        return [Trial(TrialKey(layers, FULL_RUNG, s), "certification", "complete", 90.0 - s) for s in seeds]

    history = scored(FULL, 42, 43, 44, 45) + scored(FIRST, 42, 43, 45, 46)
    confirmations = Confirmations(history, 12, (42, 43), (44, 45, 46))
    assert confirmations.seeds_of(FULL) == (42, 43, 44, 45)
    assert confirmations.seeds_of(FIRST) == (42, 43)
    history += scored(FIRST, 44)
    assert Confirmations(history, 12, (42, 43), (44, 45, 46)).seeds_of(FIRST) == (42, 43, 44, 45)
    assert Confirmations(history, 12, (42, 43)).seeds_of(FIRST) == (42, 43)


def test_further_seeds_do_not_count_for_a_set_that_lacks_one_of_the_first() -> None:
    """Three seeds from 43 were asked for before, now three from 42: seed 45 is a further one of an incomplete set."""
    memory = InMemoryHistory()
    search(World(), memory, settings(deltas=(0.5,), seeds=(43, 44, 45))).run()
    found = search(World(), memory, settings(deltas=(0.5,), seeds=(42, 43, 44), certify=3))
    confirmations = found.state.confirmations
    begun = [layers for layers in confirmations.started if not confirmations.is_complete(layers)]
    assert begun
    assert all(confirmations.scores(layers).keys() <= {43, 44} for layers in begun)
    found.run()


def test_pooling_weighs_sets_by_their_degrees_of_freedom() -> None:
    """By hand: the baseline's and the set's scores vary by 2 and 0 with two seeds, those of another by 5 with four."""
    baseline, own = np.array([[91.0] * 4, [89.0] * 4]), np.array([[88.0] * 4] * 2)
    found = judge(baseline, {FIRST: own}, 0.95, [np.array([80.0, 80.0, 83.0, 85.0])])[FIRST]
    other = (4 + 4 + 1 + 9) / 3
    pooled = 2 * (1 * 2 + 1 * 0 + 3 * other) / 5
    assert found.seed_variance == pytest.approx(pooled / 2)
    assert found.seed_degrees_of_freedom == 5
    assert found.seed_share == pytest.approx(pooled / 2 / (pooled / 2 + found.example_variance))


# -- the error over all looks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [0, 1, 3, 20])
def test_the_looks_at_a_bound_share_the_error(looks: int) -> None:
    shares = [share_of_look(look, looks) for look in range(looks + 1)]
    assert sum(shares) == pytest.approx(1.0)
    assert max(shares) == shares[-1]


def test_what_cannot_be_certified_is_foreseen() -> None:
    usual = Judgement(0.5, 0.1, 0.01, 8, 3, 2_000)
    assert can_certify(usual, 1.2, 3, 0.975)
    assert not can_certify(usual, 0.5, 3, 0.975)
    assert can_certify(usual, 0.9, 30, 0.975)
    assert not can_certify(usual, 0.9, 1, 0.975)
    assert not can_certify(replace(usual, collapsed=1), 9.0, 3, 0.975)
    assert can_certify(replace(usual, seed_variance=None, seeds=1), 0.1, 2, 0.975)


def test_several_looks_certify_a_wrong_answer_in_at_most_one_study_of_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The set loses a trace more than allowed. With the whole error for every look it would be certified too often."""
    wrong_looks = certainty.Scenario("observed", (1.0,), tried=1, seeds=2, certify=6, examples=1_000, seed_sd=1.0)

    def certified() -> float:
        studies = [certainty.search_in(certainty.Study(number, wrong_looks)) for number in range(200)]
        name = certainty.certifying(wrong_looks)
        verdicts = [answer.verdict for answers in studies for answer in answers if answer.rule == name]
        return verdicts.count("certified") / len(verdicts)

    limit = 0.05 + 2.33 * (0.05 * 0.95 / 200) ** 0.5
    assert certified() <= limit
    monkeypatch.setattr("budget_search.layer_search.state.share_of_look", lambda look, looks: 1.0)
    assert certified() > limit
