"""Every strategy against the contract, and what is particular to each."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from budget_search.core.errors import UsageError
from budget_search.core.layers import FAMILIES, LayerSet, odd_alternate, top
from budget_search.core.trial import Tolerance, Trial, TrialKey
from budget_search.layer_search.strategies import SAMPLERS, STRATEGIES, greedy, propose
from budget_search.layer_search.strategies.problem import SearchProblem, smallest_holding
from budget_search.simulation.replay import Table, play
from tests import strategy_contract as contract

ADDITIVE = contract.additive_table()
SMALL = contract.additive_table(contract.EFFECTS[:5])


@pytest.fixture(scope="module")
def recorded() -> Table:
    return Table.load(Path(__file__).parent / "tables" / "minilm-l6-sst2.json")


def full_of(total: int, score: float = 90.0) -> Trial:
    return contract.trial_of(LayerSet.full(total), score)


def dropping(*gone: int, total: int = 4) -> LayerSet:
    return LayerSet.dropping(gone, total)


# -- the contract -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.05, 1.0, 3.0])
@pytest.mark.parametrize("name", STRATEGIES)
def test_keeps_the_contract_on_the_recorded_table(name, delta, recorded):
    contract.check_run(name, recorded, delta)


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("name", STRATEGIES)
def test_keeps_the_contract_on_twelve_layers(name, width):
    contract.check_run(name, ADDITIVE, 2.0, width=width, evaluations=25)


@pytest.mark.parametrize("fixed", [{0, 11}, set(range(11)), set(range(12))])
@pytest.mark.parametrize("name", STRATEGIES)
def test_fixed_layers_stay(name, fixed):
    contract.check_run(name, ADDITIVE, 2.0, fixed=frozenset(fixed), evaluations=25)


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize("name", STRATEGIES)
def test_tiny_models(name, total):
    contract.check_run(name, contract.additive_table((0.4,) * total), 1.0)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_interrupted_search_goes_on_the_same_way(name, recorded):
    contract.check_resumes(name, recorded, 2.0, evaluations=16)


@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - {"auto", "optuna"}))
def test_stopping_inside_a_batch_changes_nothing(name):
    contract.check_resumes(name, ADDITIVE, 2.0, width=4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_keeps_the_contract(sampler):
    contract.check_run("optuna", SMALL, 1.0, sampler=sampler, evaluations=12)
    contract.check_resumes("optuna", SMALL, 1.0, sampler=sampler, evaluations=10)


@pytest.mark.parametrize("name", STRATEGIES)
def test_failed_trials_are_no_answer(name):
    contract.check_uses_failures(name, SMALL, 1.0)


@pytest.mark.parametrize("delta", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("name", ["greedy", "auto"])
def test_those_that_search_find_the_optimum_of_an_additive_model(name, delta):
    contract.check_optimal(name, ADDITIVE, delta)
    contract.check_optimal(name, ADDITIVE, delta, fixed=frozenset({4, 11}))


def test_tpe_beats_random_draws_on_an_additive_model():
    def depths(sampler: str) -> list[int]:
        return [play("optuna", ADDITIVE, delta, sampler=sampler).choice.depth for delta in (1.0, 2.0, 3.0)]

    assert sum(depths("tpe")) < sum(depths("random"))


@pytest.mark.parametrize(("name", "depths"), {"auto": (4, 3, 3), "greedy": (4, 4, 3), "top": (5, 4, 4)}.items())
def test_depths_found_on_the_recorded_table(name, depths, recorded):
    """The search finds what there is; greedy misses 0-1,5 at delta 2, which is no child of its own four layers."""
    assert tuple(play(name, recorded, delta).choice.depth for delta in (1.0, 2.0, 3.0)) == depths
    assert tuple(contract.optimum(recorded, delta) for delta in (1.0, 2.0, 3.0)) == (4, 3, 3)


# -- the package --------------------------------------------------------------------------------------------------


def test_an_unknown_strategy_is_named_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'gredy'.*auto.*greedy"):
        propose("gredy", [], SearchProblem(4, Tolerance(1.0, {})))


def test_a_strategy_sees_the_history_sorted_by_key(monkeypatch):
    def echo(history, problem):
        return [trial.layers for trial in history]

    monkeypatch.setattr(greedy, "echo", echo, raising=False)
    monkeypatch.setitem(STRATEGIES, "echo", "greedy:echo")
    sets = [dropping(0, 1), dropping(3), dropping()]
    history = [contract.trial_of(layers, 90.0) for layers in sets]
    assert propose("echo", history, SearchProblem(4, Tolerance(1.0, {1.0: 90.0}))) == sorted(sets)


def test_importing_the_strategies_loads_neither_optuna_nor_torch():
    code = (
        "import sys, budget_search.layer_search.strategies, budget_search.simulation.replay\n"
        "print({'optuna', 'torch'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_smallest_that_holds_is_the_one_that_loses_least_of_its_depth():
    problem = SearchProblem(4, Tolerance(1.0, {1.0: 90.0}))
    scores = {dropping(): 90.0, dropping(3): 89.9, dropping(0, 1): 89.2, dropping(2, 3): 89.5, dropping(1, 2, 3): 88.9}
    history = [contract.trial_of(layers, score) for layers, score in scores.items()]
    best = smallest_holding(history, problem)
    assert best is not None
    assert best.layers == dropping(2, 3)


def test_trials_of_different_rungs_are_judged_by_their_own_baseline():
    problem = SearchProblem(4, Tolerance(1.0, {0.25: 70.0, 1.0: 90.0}))
    short = Trial(TrialKey(dropping(3), 0.25, 0), "selection", "complete", 69.5)
    assert smallest_holding([full_of(4), short], problem) == short


# -- fixed families and contribution ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_measured_at_every_depth_it_has(name):
    expected = [FAMILIES[name](12, dropped) for dropped in range(1, 12)]
    assert propose(name, [full_of(12)], SearchProblem(12, Tolerance(1.0, {1.0: 90.0}))) == [s for s in expected if s]


def test_a_family_with_fixed_layers_puts_them_back():
    problem = SearchProblem(6, Tolerance(1.0, {1.0: 90.0}), fixed=frozenset({5}))
    assert [each.dropped for each in propose("top", [], problem)] == [(4,), (3, 4), (2, 3, 4), (1, 2, 3, 4)]


def test_contribution_tries_the_thresholds_first_then_every_number():
    problem = SearchProblem(5, Tolerance(1.0, {1.0: 90.0}), similarities=(0.5, 0.91, 0.96, 0.93, 0.5))
    proposed = propose("contribution", [full_of(5)], problem)
    assert [each.dropped for each in proposed] == [(2,), (2, 3), (1, 2, 3), (1, 2, 3, 4)]
    without_middle = SearchProblem(5, Tolerance(1.0, {1.0: 90.0}), similarities=(0.5, 0.97, 0.96, 0.5, 0.4))
    first = propose("contribution", [full_of(5)], without_middle)[0]
    assert first.dropped == (1, 2)


@pytest.mark.parametrize("similarities", [None, (0.9, 0.9)])
def test_contribution_needs_a_similarity_per_layer(similarities):
    with pytest.raises(UsageError, match="similarities of all 4 layers"):
        propose("contribution", [], SearchProblem(4, Tolerance(1.0, {}), similarities=similarities))


# -- greedy -------------------------------------------------------------------------------------------------------


def greedy_after(scores: dict[LayerSet, float], delta: float = 1.0, losses: dict[LayerSet, float] | None = None):
    losses = losses or {}
    history = [full_of(4)] + [
        contract.trial_of(layers, score, metrics={"loss": losses[layers]} if layers in losses else {})
        for layers, score in scores.items()
    ]
    return propose("greedy", history, SearchProblem(4, Tolerance(delta, {1.0: 90.0})))


def test_greedy_goes_on_from_the_least_harmful_drop():
    first_round = {dropping(0): 80.0, dropping(1): 89.5, dropping(2): 89.6, dropping(3): 89.4}
    assert set(greedy_after(first_round)) == {dropping(0, 2), dropping(1, 2), dropping(2, 3)}


def test_greedy_finishes_an_interrupted_round_before_it_decides():
    assert set(greedy_after({dropping(0): 80.0, dropping(2): 89.9})) == {dropping(1), dropping(3)}


def test_greedy_stops_after_a_round_in_which_nothing_holds():
    first_round = {dropping(0): 80.0, dropping(1): 88.9, dropping(2): 88.8, dropping(3): 70.0}
    assert greedy_after(first_round) == []
    assert greedy_after(first_round, delta=1.2) != []


def test_greedy_compares_unrounded_scores():
    first_round = {dropping(0): 80.0, dropping(1): 89.5000001, dropping(2): 80.0, dropping(3): 89.5}
    assert dropping(0, 1) in greedy_after(first_round)


def test_greedy_breaks_ties_by_loss_and_then_drops_the_highest_layer():
    tied = {dropping(0): 80.0, dropping(1): 89.5, dropping(2): 89.5, dropping(3): 89.5}
    assert dropping(0, 3) in greedy_after(tied)
    losses = {dropping(1): 0.30, dropping(2): 0.29, dropping(3): 0.31}
    assert dropping(0, 2) in greedy_after(tied, losses=losses)
    del losses[dropping(3)]
    assert dropping(0, 3) in greedy_after(tied, losses=losses)


# -- optuna -------------------------------------------------------------------------------------------------------


def test_optuna_starts_from_the_families_and_then_fills_the_width():
    problem = contract.problem_for(ADDITIVE, 2.0, width=3)
    history = [contract.baseline_of(ADDITIVE)]
    seeds = propose("optuna", history, problem)
    assert {top(12, 6), odd_alternate(12, 6), top(12, 3), top(12, 9)} <= set(seeds)
    history += [ADDITIVE.trial(TrialKey(layers, 1.0, 0)) for layers in seeds]
    assert len(propose("optuna", history, problem)) == 3


def test_optuna_ends_when_every_set_is_measured():
    assert len(play("optuna", SMALL, 1.0, evaluations=100).trials) == 2**5 - 2


def test_optuna_proposes_a_set_once_however_wide_the_call():
    problem = contract.problem_for(SMALL, 1.0, width=50, evaluations=100)
    seeds = play("optuna", SMALL, 1.0, evaluations=5).trials
    history = [contract.baseline_of(SMALL), *seeds]
    while proposed := propose("optuna", history, problem):
        assert len(set(proposed)) == len(proposed)
        history += [SMALL.trial(TrialKey(layers, 1.0, 0)) for layers in proposed]
    assert len(history) == 2**5 - 1


def test_optuna_draws_by_seed():
    history = [contract.baseline_of(ADDITIVE), *play("optuna", ADDITIVE, 2.0, evaluations=20).trials]
    other = contract.problem_for(ADDITIVE, 2.0, seed=1)
    same = contract.problem_for(ADDITIVE, 2.0, seed=0)
    assert propose("optuna", history, same) != propose("optuna", history, other)
    assert len(propose("optuna", history, same)) == 1


def test_optuna_is_quiet_and_leaves_its_settings_as_they_were(capfd):
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            play("optuna", SMALL, 1.0, evaluations=14)
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(before)
    assert capfd.readouterr() == ("", "")


def test_an_unknown_sampler_is_refused():
    with pytest.raises(UsageError, match=r"'cma'.*tpe"):
        propose("optuna", [full_of(4)], SearchProblem(4, Tolerance(1.0, {1.0: 90.0}), sampler="cma"))


# -- auto ---------------------------------------------------------------------------------------------------------


def test_auto_proposes_as_many_as_run_at_once():
    problem = contract.problem_for(ADDITIVE, 0.5, width=2)
    history = [contract.baseline_of(ADDITIVE)]
    for _ in range(12):
        proposed = propose("auto", history, problem)
        assert len(proposed) == 2
        history += [ADDITIVE.trial(TrialKey(layers, 1.0, 0)) for layers in proposed]


def test_auto_needs_fewer_evaluations_than_greedy_for_the_same_depth():
    auto, greedy = play("auto", ADDITIVE, 3.0, evaluations=30), play("greedy", ADDITIVE, 3.0)
    assert auto.choice.depth == greedy.choice.depth
    assert len(auto.trials) < len(greedy.trials)
