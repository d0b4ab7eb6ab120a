"""Further limits on the answer: kept by every strategy, refused where they contradict, named where they bind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from budget_search.app.request import Request
from budget_search.core.errors import UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.limits import BindingLimit, Breach, Limits, Loss
from budget_search.core.serialization import read_record, to_plain
from budget_search.core.trial import TrialKey
from budget_search.layer_search.acquisition import candidate_sets
from budget_search.layer_search.strategies import STRATEGIES, propose
from budget_search.layer_search.strategies.problem import smallest_holding
from budget_search.report.sentences import bound_by
from tests import strategy_contract as contract
from tests import tiny
from tests.worlds import EFFECTS, InMemoryHistory, World, search, settings

ADDITIVE = contract.additive_table()
FULL = LayerSet.full(12)
# Of unlike size, so that counting layers does not do.
SIZES = (9, 9, 9, 5, 5, 5, 5, 5, 5, 3, 3, 3)
MILLISECONDS = tuple(2.0 + depth for depth in range(1, 13))
LIMITS = {
    "layers": Limits(max_layers=7),
    "parameters": Limits(max_params=50, full_parameters=76, layer_parameters=SIZES),
    "latency": Limits(max_latency_ms=8.5, latency_ms=MILLISECONDS),
    "keep": Limits(keep=frozenset({2, 11})),
    "drop": Limits(drop=frozenset({3, 5})),
    "all": Limits(
        frozenset({6}), frozenset({1, 11}), 8, 56, 9.5, full_parameters=76, layer_parameters=SIZES,
        latency_ms=MILLISECONDS,
    ),
}  # fmt: skip


def ask(limits: Limits, delta: float = 3.0, **facts: object):
    return contract.problem_for(ADDITIVE, delta, limits=limits, fixed=limits.keep, evaluations=14, **facts)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("kind", LIMITS)
def test_every_strategy_keeps_to_the_limits(name: str, kind: str) -> None:
    limits = LIMITS[kind]
    problem = ask(limits, width=2)
    history = [contract.baseline_of(ADDITIVE)]
    while proposed := propose(name, history, problem):
        known = {trial.layers for trial in history}
        for layers in proposed:
            assert layers not in known
            assert limits.respects_pins(layers), "keeps or drops what it must not"
            # Backward elimination passes through larger sets on its way down.
            assert name == "greedy" or limits.fits(layers), "too large"
        history += [ADDITIVE.trial(TrialKey(layers, 1.0, 0)) for layers in proposed]
    assert len(history) > 1
    best = smallest_holding(history, problem)
    assert best is None or limits.allow(best.layers)


@pytest.mark.parametrize("name", ["auto", "optuna", "greedy"])
def test_pins_of_a_deep_model_are_kept(name: str) -> None:
    table = contract.additive_table(contract.EFFECTS)
    limits = Limits(keep=frozenset({0, 5, 9}), drop=frozenset({1, 2, 3, 4}), max_layers=5)
    problem = replace(contract.problem_for(table, 3.0, evaluations=20), total=20, fixed=limits.keep, limits=limits)
    history = [contract.trial_of(LayerSet.full(20), 90.0)]
    for _ in range(4):
        proposed = propose(name, history, problem)
        assert proposed
        assert all(limits.respects_pins(layers) for layers in proposed)
        assert name == "greedy" or all(limits.allow(layers) for layers in proposed)
        history += [contract.trial_of(layers, 89.9 - len(layers.dropped) / 10) for layers in proposed]


@pytest.mark.parametrize("name", ["auto", "optuna", "greedy"])
def test_an_interrupted_search_goes_on_the_same_way(name: str) -> None:
    small, limits = contract.additive_table(contract.EFFECTS[:6]), Limits(frozenset({2}), frozenset({3}), 4)
    contract.check_resumes(name, small, 2.0, evaluations=8, limits=limits, fixed=limits.keep)


# -- a whole search -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["auto", "greedy", "top"])
def test_answers_satisfy_delta_and_limits(strategy: str) -> None:
    world, limits = World(), Limits(keep=frozenset({11}), drop=frozenset({4}), max_layers=9)
    answers = search(world, InMemoryHistory(), settings(strategy=strategy, limits=limits)).run()
    for delta, layers in answers.items():
        assert layers.is_full or (limits.allow(layers) and 90 - world.true_score(layers) <= delta)
    if strategy != "top":
        assert not answers[3.0].is_full
    confirmed = {job.key.layers for job in world.asked if job.split == "certification"} - {FULL}
    assert all(limits.allow(layers) for layers in confirmed)


@pytest.mark.parametrize("kind", ["layers", "keep", "drop"])
def test_the_fewest_layers_within_the_limits_or_one_more(kind: str) -> None:
    world, limits = World(seed_sd=0.2, screen_sd=0.2), LIMITS[kind]
    answers = search(world, InMemoryHistory(), settings(limits=limits)).run()
    allowed = [layers for layers in candidate_sets(12, (), ()) if limits.allow(layers)]
    for delta, layers in answers.items():
        fewest = min((each.depth for each in allowed if 90 - world.true_score(each) <= delta), default=12)
        assert layers.depth <= fewest + 1


def test_what_was_confirmed_before_is_no_answer_beyond_the_limits() -> None:
    world, memory = World(), InMemoryHistory()
    before = search(world, memory).run()
    known = before[1.0]
    limited = search(world, memory, settings(limits=Limits(max_layers=known.depth - 1)))
    answers = limited.run()
    assert answers[1.0].is_full or answers[1.0].depth < known.depth
    # The question without limits has the answer that it had.
    assert search(world, memory).run() == before


def test_which_limit_binds_and_by_how_much() -> None:
    world, memory = World(), InMemoryHistory()
    found = search(world, memory, settings(deltas=(1.0,), limits=Limits(max_layers=5)))
    assert found.run()[1.0].is_full
    bound = found.state.binding_limit(1.0)
    assert bound is not None and bound.within is not None and bound.beyond is not None
    cheapest = sum(sorted(EFFECTS)[:7])
    assert bound.within.depth == 5
    assert bound.within.degradation == pytest.approx(cheapest, abs=0.7)
    assert 6 <= bound.beyond.depth <= 8
    assert [breach.option for breach in bound.breaches] == ["--max-layers"]
    text = bound_by(0.01, found.settings.limits, bound)
    assert "--max-layers 5" in text
    assert f"{bound.beyond.depth} layers" in text


def test_a_binding_pin_is_named_with_what_is_confirmed_beyond_it() -> None:
    world, memory = World(), InMemoryHistory()
    free = search(world, memory, settings(deltas=(1.0,))).run()[1.0]
    pinned = search(world, memory, settings(deltas=(1.0,), limits=Limits(drop=frozenset({0}))))
    assert pinned.run()[1.0].is_full
    bound = pinned.state.binding_limit(1.0)
    assert bound is not None and bound.beyond is not None
    assert (bound.beyond.kept, bound.beyond.source) == (free.kept, "confirmation")
    assert [str(breach) for breach in bound.breaches] == ["with layer 0 (--drop-layers 0)"]


def test_what_binds_comes_back_from_json() -> None:
    bound = BindingLimit(None, Loss((0, 2), 2, 0.7, "expected"), (Breach("--max-layers", "1", "2 layers"),))
    assert read_record(BindingLimit, json.loads(json.dumps(to_plain(bound))), "binding") == bound


def test_nothing_binds_where_there_is_an_answer_or_no_limit() -> None:
    within, without = InMemoryHistory(), InMemoryHistory()
    found = search(World(), within, settings(deltas=(3.0,), limits=Limits(max_layers=9)))
    assert not found.run()[3.0].is_full
    assert found.state.binding_limit(3.0) is None
    free = search(World(effects=(20.0,) * 4), without, settings(total=4, deltas=(1.0,)))
    assert free.run()[1.0].is_full
    assert free.state.binding_limit(1.0) is None


# -- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"keep_layers": (3,), "drop_layers": (3, 4)}, ("--keep-layers", "--drop-layers", "3")),
        ({"keep_layers": tuple(range(7)), "max_layers": 5}, ("7", "--max-layers", "5")),
        ({"max_layers": 0}, ("--max-layers 0",)),
        ({"max_params": 0}, ("--max-params 0",)),
        ({"max_latency_ms": float("nan")}, ("--max-latency-ms",)),
        ({"keep_layers": (-1,)}, ("-1",)),
    ],
)
def test_contradictions_are_refused_before_anything_is_read(fields: dict[str, object], names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        Request("sst2", "bert", **fields)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        (Limits(keep=frozenset({12})), ("--keep-layers 12", "12 layers")),
        (Limits(drop=frozenset({2})), ("--drop-layers 2", "requires layer")),
        (Limits(keep=frozenset(range(12))), ("no layer is left to drop",)),
        (Limits(max_layers=1), ("--max-layers 1", "2 layers")),
        (Limits(max_params=10, full_parameters=76, layer_parameters=SIZES), ("--max-params 10", "24 parameters")),
        (Limits(max_latency_ms=3.5, latency_ms=MILLISECONDS), ("--max-latency-ms 3.5", "4 ms")),
    ],
)
def test_limits_that_a_model_cannot_satisfy_are_refused(limits: Limits, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as error:
        limits.require_possible(12, undroppable=(2, 5))
    assert all(name in str(error.value) for name in names)


# -- with a real, tiny model ----------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, bert: Path, sst2: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tiny.context(tmp_path, sst2=sst2, bert=bert))
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        ("--keep-layers", "4"),
        ("--drop-layers", "0-3"),
        ("--max-params", "3"),
        ("--max-latency-ms", "0.0001"),
    ],
)
def test_what_no_set_of_this_model_satisfies_leaves_nothing_behind(
    options: tuple[str, ...], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.command(*tiny.search_options("sst2"), *options, "--quiet") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert options[0] in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert not list((here / "studies").glob("*"))


@pytest.mark.slow
def test_limits_of_a_whole_search(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (*tiny.search_options("sst2"), "--delta", "0.06", "--keep-layers", "1", "3", "--drop-layers", "0",
               "--max-params", "1M", "--max-latency-ms", "1000", "--format", "json", "--quiet")  # fmt: skip
    assert tiny.command(*options) == 0
    report = json.loads(capsys.readouterr().out)
    question = {name: report["question"].get(name) for name in ("keep_layers", "drop_layers", "max_params")}
    assert question == {"keep_layers": [1, 3], "drop_layers": [0], "max_params": 1_000_000}
    (result,) = report["results"]
    assert len(result["kept"]) < 4
    smaller = [trial["kept"] for trial in report["trials"] if len(trial["kept"]) < 4]
    assert all({1, 3} <= set(kept) and 0 not in kept for kept in smaller)
    study = tiny.only_study(here / "studies")
    assert "--keep-layers 1,3 --drop-layers 0" in (study / "report.md").read_text("utf8").replace("`", "")
    # The latencies that were measured are kept: the same question again finds them.
    before = (study / "latency.json").read_bytes()
    (study / "report.json").unlink()
    assert tiny.command(*options) == 0
    assert (study / "latency.json").read_bytes() == before


def test_the_command_line_form_repeats_the_number_that_was_given() -> None:
    limits = Limits(max_layers=8, max_params=66_123_456, max_latency_ms=5.0, keep=frozenset({0, 1, 2}))
    assert limits.compact == "--max-layers 8 --max-params 66123456 --max-latency-ms 5 --keep-layers 0-2"
