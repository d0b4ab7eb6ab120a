"""``minimize_layers``: a search with an objective of the user's own. The objectives here are tables."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import budget_search as bs
from budget_search.app.objective_search import ObjectiveSearch, request_for
from budget_search.errors import BudgetSearchError, StudyError, UsageError
from tests import tiny

EXAMPLES = 800
LOST = (4.0, 2.0, 0.05, 0.04)
"""Points that each of the four layers is worth."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def outcome(kept: bs.LayerSet, seed: int, fraction: float, split: str) -> bs.Outcome:
    """Answers to the same examples each time: more of them are wrong, the more of value is dropped."""
    difficulty = np.random.default_rng(split == "selection").permutation(EXAMPLES) / EXAMPLES
    noise = np.random.default_rng([seed, *kept.kept]).normal(0, 0.1)
    score = 90 - sum(LOST[layer] for layer in kept.dropped) - 10 * (1 - fraction) + noise
    right = 100.0 * (difficulty < score / 100)
    return bs.Outcome(right.mean(), right)


def search(objective: Any = outcome, **options: Any) -> Any:
    fields = {"layers": 4, "study": "mine", "deltas": [0.01], "seeds": 2, "quiet": True, **options}
    return bs.minimize_layers(objective, **fields)


class Counted:
    """An objective that counts its calls, and interrupts the search at one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.calls: list[tuple[bs.LayerSet, int, float, str]] = []
        self.stop_at = stop_at

    def __call__(self, *call: Any) -> bs.Outcome:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append(call)
        return outcome(*call)


def test_the_layers_of_value_are_kept(here: Path) -> None:
    report = search(
        constant_score=50.0, model="mine", metric="accuracy", deltas=[0.01, 0.03],
        measure=lambda kept: bs.Measured(parameters=100 + 10 * kept.depth, latency_ms=1.0 + kept.depth),
    )  # fmt: skip
    one, three = report.results
    assert one.kept == (0, 1)
    assert three.kept == (0,)
    assert one.degradation == pytest.approx(sum(LOST[2:]), abs=0.3)
    assert one.degradation < one.degradation_upper
    assert report.baseline.constant_score == 50.0
    assert one.gain_kept.value == pytest.approx(1 - one.degradation / (report.baseline.score - 50))
    assert (one.parameters, one.parameters_saved) == (120, pytest.approx(1 - 120 / 140))
    assert one.inference[0].saved.value == pytest.approx(1 - 3 / 5)
    assert one.held_out_degradation is None
    assert bs.read_report(here / "studies" / "mine").results == report.results


def test_the_command_reads_the_study(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search(version="3")
    files = {path.name for path in (here / "studies" / "mine").iterdir()}
    assert {"study.db", "config.json", "report.json", "report.md", "report.html", "environment.json"} <= files
    assert tiny.command("report", "mine") == 0
    table = capsys.readouterr().out
    assert "2 of the model's 4 layers (0-1) suffice for mine to stay within 1 point" in table
    assert "Inference was not timed." in table
    assert "from_pretrained" not in table
    for form in ("markdown", "html", "latex", "json", "csv"):
        assert tiny.command("report", "mine", "--format", form) == 0
    assert tiny.command("ls") == 0
    assert "2 of 4 (0-1) within 1 point" in capsys.readouterr().out
    for arguments in (
        ("export", "mine", "--delta", "0.01", "--output", "smaller"),
        ("inspect", "mine"),
        ("report", "mine", "--reference", "demo"),
    ):
        assert tiny.command(*arguments) == 2
        assert "used a user-defined objective, so it has no models" in capsys.readouterr().err
    assert not (here / "smaller").exists()


def test_an_interrupted_search_goes_on() -> None:
    interrupted, resumed, whole = Counted(stop_at=6), Counted(), Counted()
    with pytest.raises(KeyboardInterrupt):
        search(interrupted)
    report = search(resumed)
    search(whole, study="whole")
    screens = {(seed, fraction) for _, seed, fraction, split in whole.calls if split == "selection"}
    runs = {(seed, fraction) for _, seed, fraction, split in whole.calls if split == "certification"}
    assert runs == {(42, 1.0), (43, 1.0)}
    assert min(fraction for _, fraction in screens) == 0.25
    assert not {seed for seed, _ in screens} & {42, 43}
    assert len(interrupted.calls) == 6
    assert interrupted.calls + resumed.calls == whole.calls
    assert report.cost.reused == 6


def test_another_delta_uses_what_is_known_and_a_known_answer_calls_nothing() -> None:
    first, second, third = Counted(), Counted(), Counted()
    search(first, deltas=[0.01])
    report = search(second, deltas=[0.03])
    assert not set(map(str, first.calls)) & set(map(str, second.calls))
    assert [result.delta for result in report.results] == [0.03]
    assert [result.delta for result in search(third, deltas=[0.01, 0.03]).results] == [0.01, 0.03]
    assert third.calls == []


def test_no_evaluation_waits_for_one_of_the_full_model() -> None:
    """An objective trains every layer set from the start."""
    request = request_for("mine", "task", "model", {"deltas": [0.01]})
    assert not ObjectiveSearch(outcome, 4, request).settings(workers=2, spent_seconds=0.0).builds_on_full


def test_several_processes_evaluate() -> None:
    # A function without a name can be sent to another process too.
    report = search(lambda *call: outcome(*call), workers=2, max_trials=6)
    runs = [trial for trial in report.trials if trial.rung == 1]
    assert len(report.trials) == 6
    for trial in runs:
        assert trial.score == outcome(bs.LayerSet(trial.kept, 4), trial.seed, 1.0, "certification").score


def test_what_cannot_be_pickled_runs_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    held, calls = threading.Lock(), list[int]()

    def objective(*call: Any) -> bs.Outcome:
        with held:
            calls.append(os.getpid())
        return outcome(*call)

    report = search(objective, workers=2, max_trials=4, quiet=False)
    assert calls == [os.getpid()] * len(report.trials)
    assert "cannot be pickled" in capsys.readouterr().err


def test_another_study_of_that_name_in_a_central_storage_is_refused() -> None:
    options = {"storage": "sqlite:///central.db", "max_trials": 3}
    search(**options)
    with pytest.raises(StudyError, match="the storage holds a study mine of another task"):
        search(**options, studies_dir="elsewhere", version="2")


def test_without_results_per_example_the_bound_counts_the_seeds() -> None:
    report = search(lambda *call: outcome(*call).score, measure=lambda kept: 1 / 0)
    [result] = report.results
    seeds = [trial.score for trial in report.trials if trial.kept == result.kept and trial.rung == 1]
    assert result.kept == (0, 1)
    assert len(seeds) == 2
    assert result.degradation < result.degradation_upper
    assert any("no results per example" in note for note in report.notes)
    assert report.splits == {}
    assert any("measure failed: ZeroDivisionError" in note for note in report.notes)


def test_an_exception_is_a_failed_evaluation(here: Path) -> None:
    def objective(kept: bs.LayerSet, seed: int, fraction: float, split: str) -> bs.Outcome:
        if 2 in kept.dropped:
            raise RuntimeError("layer 2 is needed")
        return outcome(kept, seed, fraction, split)

    report = search(objective, keep_layers=(3,), max_layers=3, deltas=[0.05])
    failed = [trial for trial in report.trials if trial.state == "failed"]
    assert failed
    assert all("RuntimeError: layer 2 is needed (test_objective.py, line" in trial.error for trial in failed)
    assert {2, 3} <= set(report.results[0].kept)
    assert report.results[0].depth <= 3


def test_a_full_model_that_fails_ends_the_search() -> None:
    def objective(*_: Any) -> bs.Outcome:
        raise ValueError("no data")

    with pytest.raises(BudgetSearchError, match=r"ValueError: no data .*nothing can be compared with it; fix the obj"):
        search(objective)


def test_a_full_model_that_learnt_nothing_ends_the_search() -> None:
    with pytest.raises(
        BudgetSearchError, match=r"has not learnt the task \(score 90\.\d, best constant prediction 90\.0"
    ):
        search(constant_score=90.0)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("good", "must return a score in points, or a budget_search.Outcome .*, received 'good'"),
        (None, "must return a score in points, or a budget_search.Outcome .*, received None"),
        (bs.Outcome(90.0, metrics={"name": "x"}), "metrics that are numbers"),  # type: ignore[dict-item]
        (bs.Outcome(90.0, metrics={"loss": float("inf")}), "the loss is inf"),
        (float("nan"), "the score is nan"),
        (bs.Outcome(90.0, [100.0, 0.0]), "per_example must average to the score 90.0000, in points; it averages to 50"),
        (bs.Outcome(90.0, [[90.0], [90.0]]), r"at least two; received shape \(2, 1\)"),
    ],
)
def test_an_unusable_outcome_is_explained(returned: Any, message: str) -> None:
    with pytest.raises(BudgetSearchError, match=message):
        search(lambda *_: returned)


def test_other_examples_for_another_layer_set_are_refused() -> None:
    def objective(kept: bs.LayerSet, seed: int, fraction: float, split: str) -> bs.Outcome:
        whole = outcome(kept, seed, fraction, split).per_example
        assert whole is not None
        some = whole if kept.is_full else whole[:100]
        return bs.Outcome(float(np.mean(some)), some)

    with pytest.raises(StudyError, match="per_example must hold the same examples for every layer set"):
        search(objective, deltas=[0.5])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": 1}, "layers=1 must be the number of layers of the full model, at least 2"),
        ({"screen_fraction": 1.0}, "screen_fraction=1.0 must be above 0 and below 1"),
        ({"deltas": [2.0]}, "a delta is a fraction"),
        ({"lr": 0.1}, "does not know lr; allowed: deltas"),
        ({"objective": 3}, "must be a function, received 3"),
        ({"keep_layers": (9,)}, "9"),
        ({"study": "../elsewhere"}, "a study name may contain only"),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(here: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        search(options.pop("objective", outcome), **options)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("change", [{"layers": 5}, {"version": "2"}, {"metric": "f1"}])
def test_a_study_goes_on_with_the_same_objective_only(change: dict[str, Any]) -> None:
    search(max_trials=3)
    with pytest.raises(StudyError, match=f"was begun with {next(iter(change))} .*choose another study name"):
        search(**change)
