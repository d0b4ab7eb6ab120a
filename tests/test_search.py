"""The loop: what it runs, what it never runs again, when it stops and what it answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from budget_search.core.config import RECIPES
from budget_search.core.errors import BudgetSearchError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, SearchBudget, Trial
from budget_search.simulation.simulated_search import VirtualWorkers
from tests.worlds import EFFECTS, InMemoryHistory, World, fewest_layers, search, settings, without_interruption

FULL = LayerSet.full(12)


def test_answers_hold_and_are_confirmed_with_every_seed() -> None:
    world, memory = World(), InMemoryHistory()
    answers = search(world, memory).run()
    for delta, layers in answers.items():
        assert 90 - world.true_score(layers) <= delta
        assert layers.depth <= fewest_layers(world, delta) + 1
        confirmed = [t for t in memory.trials if t.layers == layers and t.split == "certification"]
        assert {trial.key.seed for trial in confirmed} == {42, 43, 44}
        assert all(trial.rung == FULL_RUNG for trial in confirmed)


@pytest.mark.parametrize("strategy", ["auto", "greedy"])
def test_searching_comes_within_a_layer_of_the_fewest(strategy: str) -> None:
    world = World(seed_sd=0.2, screen_sd=0.2)
    answers = search(world, InMemoryHistory(), settings(strategy=strategy)).run()
    for delta, layers in answers.items():
        assert layers.depth <= fewest_layers(world, delta) + 1


def test_screens_and_confirmations_never_share_a_seed() -> None:
    world = World()
    search(world, InMemoryHistory()).run()
    screened = {job.key.seed for job in world.asked if job.split == "selection"}
    confirmed = {job.key.seed for job in world.asked if job.split == "certification"}
    assert screened
    assert confirmed
    assert not screened & confirmed


@pytest.mark.parametrize("after", [0, 1, 3, 4, 7, 12, 20, 29, 41, 50])
def test_interrupted_anywhere_it_ends_as_if_nothing_had_happened(after: int) -> None:
    world = World(seed_sd=0.3, screen_sd=0.3, interrupt_after=after)
    undisturbed = InMemoryHistory()
    expected = search(without_interruption(world), undisturbed).run()
    memory = InMemoryHistory()
    if after < len(undisturbed.trials):
        with pytest.raises(KeyboardInterrupt):
            search(world, memory).run()
        assert len(memory.trials) == after
    answers = search(without_interruption(world), memory).run()
    assert answers == expected
    assert Counter(trial.key for trial in memory.trials) == Counter(trial.key for trial in undisturbed.trials)


def test_the_same_question_again_runs_nothing() -> None:
    world, memory = World(seed_sd=0.3, screen_sd=0.3), InMemoryHistory()
    first = search(world, memory).run()
    again = without_interruption(world)
    assert search(again, memory).run() == first
    assert again.asked == []


def test_another_delta_reuses_what_was_measured() -> None:
    memory = InMemoryHistory()
    search(World(), memory, settings(deltas=(2.0,))).run()
    known = {trial.key for trial in memory.trials}
    more = World()
    search(more, memory, settings(deltas=(1.0,))).run()
    assert more.asked
    assert not known & {job.key for job in more.asked}
    assert not any(job.key.layers.is_full for job in more.asked)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"strategy": "optuna"}, {"strategy": "optuna", "sampler": "random"}),
        ({}, {"start": (LayerSet((1, 3, 5, 7, 9, 11), 12), LayerSet((0, 2, 4, 6), 12))}),
        ({"criterion": "certified", "confidence": 0.5}, {"criterion": "certified", "confidence": 0.999}),
    ],
)
def test_another_question_is_not_answered_by_the_last_ones_plan(before: dict[str, Any], after: dict[str, Any]) -> None:
    memory = InMemoryHistory()
    first = search(World(), memory, settings(deltas=(2.0,), **before))
    first.run()
    assert first.state.is_answered(2.0)
    second = search(World(), memory, settings(deltas=(2.0,), **after))
    assert not second.state.is_answered(2.0)
    second.run()
    assert second.state.is_answered(2.0)
    if "start" in after:
        assert set(after["start"]) <= {trial.layers for trial in memory.trials}


def test_a_collapsed_screen_is_run_longer_up_to_half_the_recipe_and_not_judged() -> None:
    best = LayerSet((0, 1, 2, 3), 6)
    world = World(effects=(5, 4, 3, 2.5, 0.1, 0.1), collapses_below={best: 0.9})
    memory = InMemoryHistory()
    answers = search(world, memory, settings(total=6, deltas=(1.0,), screen_rung=0.25)).run()
    assert answers == {1.0: best}
    assert [t.rung for t in memory.history if t.layers == best and t.split == "selection"] == [0.25, 0.5]


def test_a_screen_that_goes_on_collapsing_is_compared_with_nothing() -> None:
    """The full model's screens as long as those that teach nothing either would cost the most of all."""
    again = LayerSet((0, 1), 3)
    world, memory = World(effects=(5, 4, 0.1), collapses_below={again: 0.9}), InMemoryHistory()
    search(world, memory, settings(total=3, deltas=(1.0,), screen_rung=0.25)).run()
    assert [t.rung for t in memory.history if t.layers == again and t.split == "selection"] == [0.25, 0.5]
    assert [t.rung for t in memory.history if t.layers.is_full and t.split == "selection"] == [0.25]


def test_where_everything_breaks_no_few_layers_are_tried_for_luck() -> None:
    world, memory = World(effects=(30,) * 6), InMemoryHistory()
    assert search(world, memory, settings(total=6, deltas=(1.0,), screen_rung=0.5)).run() == {1.0: LayerSet.full(6)}
    confirmed = {job.key.layers.depth for job in world.asked if job.split == "certification"}
    assert confirmed <= {5, 6}


def test_screens_whose_ranking_misleads_are_lengthened() -> None:
    world = World(misleading_below=0.2)
    found = search(world, InMemoryHistory(), settings(deltas=(2.0,)))
    answers = found.run()
    assert found.state.screens.rung == pytest.approx(1 / 3)
    assert any("lengthened" in note for note in found.notes())
    assert answers[2.0].depth <= fewest_layers(world, 2.0) + 1


def test_screens_that_agree_with_longer_runs_stay_short() -> None:
    found = search(World(screen_sd=0.1), InMemoryHistory(), settings(deltas=(2.0,)))
    found.run()
    assert found.state.screens.rung == pytest.approx(1 / 6)
    assert not any("lengthened" in note for note in found.notes())


def test_a_set_beyond_hope_is_not_given_every_seed() -> None:
    # The screen flatters this set by 20 points: it will be confirmed first, and fail by far.
    flattered = LayerSet((0, 1, 2), 12)

    class Flattering(World):
        def measure(self, job: Job) -> Trial:
            trial = super().measure(job)
            flatters = job.split == "selection" and job.key.layers == flattered
            return replace(trial, score=(trial.score or 0.0) + 20) if flatters else trial

    world = Flattering()
    answers = search(world, InMemoryHistory(), settings(deltas=(1.0,), strategy="top")).run()
    runs = [job for job in world.asked if job.key.layers == flattered and job.split == "certification"]
    assert len(runs) == 1
    assert answers[1.0] != flattered


def test_a_set_that_diverges_is_no_answer() -> None:
    memory = InMemoryHistory()
    first = search(World(), memory, settings(deltas=(2.0,))).run()[2.0]
    answers = search(World(diverging=frozenset({first})), InMemoryHistory(), settings(deltas=(2.0,))).run()
    assert answers[2.0] != first
    assert 90 - World().true_score(answers[2.0]) <= 2.0


def test_a_collapsed_confirmation_counts_with_its_score() -> None:
    worst = LayerSet((0, 1, 2, 3, 4, 5), 12)
    world = World(effects=(9,) * 6 + (0.0,) * 6, collapses_below={worst: 2.0})
    memory = InMemoryHistory()
    named = settings(deltas=(1.0,), named=(worst,))
    answers = search(world, memory, named).run()
    assert search(world, memory, named).state.confirmations.collapsed(worst) == 3
    assert answers[1.0] == FULL


def test_what_failed_for_the_machines_reasons_is_run_again_with_the_same_seed() -> None:
    world, memory = World(machine_failures=1), InMemoryHistory()
    answers = search(world, memory).run()
    assert answers == search(World(), InMemoryHistory()).run()
    assert Counter(job.key for job in world.asked).most_common(1)[0][1] == 2
    assert not any(trial.machine_failure for trial in memory.history)


def test_failing_twice_for_the_machines_reasons_stops_the_search_and_keeps_the_rest() -> None:
    memory = InMemoryHistory()
    with pytest.raises(BudgetSearchError, match=r"out of memory.*free memory"):
        search(World(machine_failures=8), memory).run()
    assert search(World(), memory).run() == search(World(), InMemoryHistory()).run()


def test_a_baseline_that_diverges_is_an_error() -> None:
    with pytest.raises(BudgetSearchError, match=r"full model could not be fine-tuned.*nan"):
        search(World(diverging=frozenset({FULL})), InMemoryHistory()).run()


def test_a_baseline_that_learns_nothing_is_an_error() -> None:
    with pytest.raises(BudgetSearchError, match="not learnt the task"):
        search(World(collapses_below={FULL: 2.0}), InMemoryHistory()).run()


@pytest.mark.parametrize("width", [1, 2, 4])
@pytest.mark.parametrize("limit", [4, 5, 7, 9, 12, 15, 25])
def test_the_limit_of_fine_tunes_is_kept(limit: int, width: int) -> None:
    world, memory = Crowd(screen_sd=0.2, seed_sd=0.2), InMemoryHistory()
    world.slots = width
    answers = search(world, memory, settings(budget=SearchBudget(max_trials=limit), width=width)).run()
    assert len(memory.trials) <= limit
    for delta, layers in answers.items():
        assert layers == FULL or 90 - world.true_score(layers) <= delta + 0.5
    if limit >= 15:
        # What is held back for a confirmation is spent on one.
        assert search(world, memory).state.confirmations.started


def test_a_small_budget_leaves_something_for_the_smaller_deltas() -> None:
    """Held back for one delta alone, the confirmations of the largest left nothing for the others."""
    answers = search(
        World(screen_sd=0.2, seed_sd=0.2), InMemoryHistory(), settings(budget=SearchBudget(max_trials=20))
    ).run()
    assert not answers[2.0].is_full


def test_the_limit_of_hours_lets_no_screen_begin_after_it() -> None:
    world = World()
    answers = search(world, InMemoryHistory(), settings(budget=SearchBudget(max_hours=1e-9))).run()
    assert all(layers == FULL for layers in answers.values())
    assert {job.key.layers for job in world.asked} == {FULL}


class Clock:
    """Stands where the time is: it goes on with the fine-tunes alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class TimedWorld(World):
    """An evaluation takes as many seconds as it trains layers through the recipe."""

    clock = Clock()

    def measure(self, job: Job) -> Trial:
        seconds = job.key.rung * job.key.layers.depth
        self.clock.now += seconds
        return replace(super().measure(job), train_seconds=seconds)


@pytest.mark.parametrize("seconds", [38, 60, 90, 150, 300])
@pytest.mark.parametrize("strategy", ["auto", "greedy"])
def test_hours_are_kept_to_with_what_is_confirmed_by_then(
    seconds: int, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, memory = TimedWorld(seed_sd=0.2, screen_sd=0.2), InMemoryHistory()
    world.clock = Clock()
    monkeypatch.setattr("budget_search.layer_search.budget.time", world.clock)
    budget = SearchBudget(max_hours=seconds / 3600)
    found = search(world, memory, settings(strategy=strategy, budget=budget))
    answers = found.run()
    assert world.clock.now <= seconds
    confirmed = found.state.confirmations.sets
    assert all(layers in confirmed or layers.is_full for layers in answers.values())
    if seconds >= 90:
        assert confirmed, "what is held back for a confirmation is spent on one"
    if found.ended_early:
        assert any("was spent" in note for note in found.notes())
    elif strategy == "auto":
        assert answers == search(TimedWorld(seed_sd=0.2, screen_sd=0.2), InMemoryHistory()).run()


def test_named_sets_are_measured_in_full_and_nothing_else() -> None:
    named = (LayerSet((0, 1, 2, 3, 5, 7, 9), 12), LayerSet((0, 1, 2), 12))
    world = World()
    answers = search(world, InMemoryHistory(), settings(named=named)).run()
    assert {job.key.layers for job in world.asked} == {FULL, *named}
    assert {job.split for job in world.asked} == {"certification"}
    lost = {layers: 90 - world.true_score(layers) for layers in named}
    assert answers == {d: min([s for s in named if lost[s] <= d], key=lambda s: s.depth, default=FULL) for d in answers}


def test_certified_answers_need_the_bound_within_delta() -> None:
    observed = search(World(), InMemoryHistory(), settings(deltas=(1.0,)), half_width=0.5).run()[1.0]
    certified = search(
        World(), InMemoryHistory(), settings(deltas=(1.0,), criterion="certified"), half_width=0.5
    ).run()[1.0]
    assert certified.depth > observed.depth
    assert 90 - World().true_score(certified) <= 0.5


def test_candidates_are_written_down_before_the_first_is_confirmed() -> None:
    class Watching(InMemoryHistory):
        def append(self, trial: Trial) -> None:
            if trial.split == "certification" and not trial.layers.is_full:
                (noted,) = [sets for name, sets in self.facts.items() if name.startswith("candidates for 2 points")]
                assert trial.layers.compact in noted
            super().append(trial)

    memory = Watching()
    search(World(), memory, settings(deltas=(2.0,))).run()
    assert any(trial.split == "certification" and not trial.layers.is_full for trial in memory.trials)


def test_fixed_layers_stay() -> None:
    kept = frozenset({EFFECTS.index(min(EFFECTS))})
    world = World()
    search(world, InMemoryHistory(), settings(fixed=kept)).run()
    assert all(kept <= set(job.key.layers.kept) for job in world.asked)


def test_screens_that_exaggerate_are_seen_through() -> None:
    """Screens that lose three times what full runs lose would end the search layers too early."""

    class Exaggerating(World):
        def measure(self, job: Job) -> Trial:
            trial = super().measure(job)
            if job.split == "selection":
                return replace(trial, score=90 - 3 * (90 - self.true_score(job.key.layers)))
            return trial

    world = Exaggerating()
    found = search(world, InMemoryHistory(), settings(strategy="greedy"))
    answers = found.run()
    assert found.state.screens.slope == pytest.approx(1 / 3, abs=0.05)
    assert all(layers.depth <= fewest_layers(world, delta) + 1 for delta, layers in answers.items())


def test_a_larger_delta_asked_later_reconsiders_what_was_given_up() -> None:
    memory = InMemoryHistory()
    search(World(seed_sd=0.2, screen_sd=0.5), memory, settings(deltas=(0.5,), strategy="greedy")).run()
    at_once = search(
        World(seed_sd=0.2, screen_sd=0.5), InMemoryHistory(), settings(deltas=(3.0,), strategy="greedy")
    ).run()
    later = search(World(seed_sd=0.2, screen_sd=0.5), memory, settings(deltas=(3.0,), strategy="greedy")).run()
    assert later[3.0].depth <= at_once[3.0].depth


def test_a_full_model_that_diverges_on_its_screen_is_an_error_and_no_endless_loop() -> None:
    class Diverging(World):
        def measure(self, job: Job) -> Trial:
            if job.split == "selection" and job.key.layers.is_full:
                return Trial(job.key, job.split, "failed", error="the loss was nan")
            return super().measure(job)

    with pytest.raises(BudgetSearchError, match="could not be fine-tuned for a screen"):
        search(Diverging(), InMemoryHistory()).run()


def test_named_sets_alone_are_answers_also_where_smaller_ones_are_known() -> None:
    memory = InMemoryHistory()
    known = search(World(), memory, settings(deltas=(3.0,))).run()[3.0]
    named = LayerSet(tuple(range(11)), 12)
    assert known.depth < named.depth
    assert search(World(), memory, settings(deltas=(3.0,), named=(named,))).run()[3.0] == named


def test_another_base_seed_screens_anew() -> None:
    memory = InMemoryHistory()
    search(World(screen_sd=0.3), memory, settings(deltas=(2.0,))).run()
    again = World(screen_sd=0.3)
    found = search(again, memory, settings(deltas=(2.0,), screen_seed=8, seeds=(52, 53, 54)))
    found.run()
    assert {trial.key.seed for trial in found.state.screens.trials} == {8}
    assert not {job.key.seed for job in again.asked} & {7, 42, 43, 44}


class Crowd(World):
    """Several evaluations at a time, each as long as it trains layers through the recipe and reads examples."""

    slots, busy, clock = 3, 0.0, 0.0

    def run_jobs(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        workers = VirtualWorkers(self.slots, lambda job: (job.key.rung + 0.02) * job.key.layers.depth, self.measure)
        for trial in workers.run(jobs):
            self.asked.append(Job(trial.key, trial.split))
            yield trial
        self.clock, self.busy = workers.clock, sum(map(workers.seconds, workers.started))


@pytest.mark.parametrize("strategy", ["auto", "optuna", "greedy", "top"])
def test_several_at_a_time_measure_nothing_twice_and_answer_as_well(strategy: str) -> None:
    world = Crowd(seed_sd=0.2, screen_sd=0.2)
    memory = InMemoryHistory()
    answers = search(world, memory, settings(strategy=strategy, width=3)).run()
    assert len({trial.key for trial in memory.trials}) == len(memory.trials)
    alone = search(World(seed_sd=0.2, screen_sd=0.2), InMemoryHistory(), settings(strategy=strategy)).run()
    assert all(answers[delta].depth <= alone[delta].depth + (2 if strategy == "optuna" else 1) for delta in answers)
    if strategy in ("auto", "optuna"):
        screened = {trial.layers for trial in memory.trials if trial.split == "selection"} - {FULL}
        assert len(screened) <= 30


@pytest.mark.parametrize("recipe", ["paper", "standard"], ids=["from the pre-trained model", "from the full model"])
@pytest.mark.parametrize("strategy", ["auto", "greedy"])
def test_nobody_waits_for_the_slowest_and_little_is_run_in_vain(strategy: str, recipe: str) -> None:
    """Waiting for the last seed of the baseline and of every candidate left two workers 1.4 times as fast as one."""
    alone, together, busy = 0.0, 0.0, 0.0
    for number in range(4):
        effects = EFFECTS[number:] + EFFECTS[:number]
        one, two = (Crowd(effects=effects, seed_sd=0.3, screen_sd=0.3) for _ in range(2))
        one.slots, two.slots = 1, 2
        search(one, InMemoryHistory(), settings(strategy=strategy, recipe=RECIPES[recipe])).run()
        search(two, InMemoryHistory(), settings(strategy=strategy, width=2, recipe=RECIPES[recipe])).run()
        alone, together, busy = alone + one.clock, together + two.clock, busy + two.busy
    assert busy / 2 > 0.92 * together
    assert alone / together > 1.6


def test_named_sets_wait_for_nobody() -> None:
    named = tuple(LayerSet(tuple(range(depth)), 12) for depth in (9, 7, 5))
    world = Crowd()
    world.slots = 2
    search(world, InMemoryHistory(), settings(named=named, width=2)).run()
    assert world.clock < 1.1 * world.busy / 2


def test_several_at_a_time_run_the_machines_failures_once_more() -> None:
    class Failing(Crowd):
        def measure(self, job: Job) -> Trial:
            self.machine_failures = 2 if len(self.asked) == 9 else self.machine_failures
            return super().measure(job)

    for world in (Crowd(machine_failures=2), Failing()):
        memory = InMemoryHistory()
        search(world, memory, settings(width=3)).run()
        assert len({job.key for job in world.asked}) == len(world.asked) - 2
        assert not any(trial.machine_failure for trial in memory.history)
    with pytest.raises(BudgetSearchError, match="failed twice"):
        search(Crowd(machine_failures=50), InMemoryHistory(), settings(width=3)).run()
