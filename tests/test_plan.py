"""What a search would cost, told before it runs; and what another study hands over."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from budget_search.app.warm_start import warm_start_note
from budget_search.core.layers import LayerSet
from budget_search.core.limits import Limits
from budget_search.core.trial import Job, SearchBudget, TrialKey
from budget_search.engine.parallel.forked_processes import forked_processes
from budget_search.simulation import simulated_search
from budget_search.simulation.generated_models import GeneratedModel
from budget_search.simulation.simulated_search import VirtualWorkers, layers_trained, simulate_searches
from tests import tiny
from tests.worlds import InMemoryHistory, World, search, settings


@pytest.fixture(autouse=True)
def few_rehearsals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(simulated_search, "SIMULATIONS", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# -- rehearsals -----------------------------------------------------------------------------------------------------


def test_the_same_plan_is_rehearsed_alike() -> None:
    asked = settings(total=5, evaluations=12)
    with forked_processes(2) as processes:
        first, again = simulate_searches(asked), simulate_searches(asked, run=processes.map)
    assert [each.jobs for each in first] == [each.jobs for each in again]
    assert len({each.jobs for each in first}) > 1


def test_rehearsals_keep_to_limits_and_budget() -> None:
    limits = Limits(keep=frozenset({4}), max_layers=3)
    for each in simulate_searches(settings(total=5, evaluations=12, limits=limits, budget=SearchBudget(max_trials=11))):
        assert len(each.jobs) <= 11
        assert any(not job.key.layers.is_full for job in each.jobs)
        assert all(job.key.layers.is_full or limits.allow(job.key.layers) for job in each.jobs)


@pytest.mark.parametrize("strategy", ["greedy", "top", "contribution"])
def test_any_strategy_can_be_rehearsed(strategy: str) -> None:
    for each in simulate_searches(settings(total=4, strategy=strategy, deltas=(2.0,))):
        assert any(not job.key.layers.is_full for job in each.jobs)


def test_deep_models_are_rehearsed_with_fewer_layers() -> None:
    asked = settings(total=24, strategy="top", deltas=(2.0,), fixed=frozenset({20}), named=())
    assert {each.total for each in simulate_searches(asked)} == {12}


def test_what_named_sets_take_is_known() -> None:
    named = (LayerSet((0, 3, 20), 24), LayerSet((0, 5), 24))
    (only,) = simulate_searches(settings(total=24, named=named))
    assert [job.key.layers.depth for job in only.jobs] == [24, 24, 24, 3, 3, 3, 2, 2, 2]


@pytest.mark.parametrize(("depths", "seconds"), [((3, 1, 1, 1), 3.0), ((2, 2, 2), 4.0), ((), 0.0)])
def test_evaluations_begin_as_soon_as_a_worker_is_free(depths: tuple[int, ...], seconds: float) -> None:
    jobs = [
        Job(TrialKey(LayerSet(tuple(range(depth)), 12), 1.0, seed), "selection") for seed, depth in enumerate(depths)
    ]
    workers = VirtualWorkers(2, layers_trained, World().measure)
    assert len(list(workers.run(jobs))) == len(jobs)
    assert workers.clock == seconds


def test_two_workers_are_told_to_take_about_half_the_time() -> None:
    one, two = ([each.seconds for each in simulate_searches(settings(total=6, width=width))] for width in (1, 2))
    assert 1.5 < sum(one) / sum(two) < 2


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, bert: Path, sst2: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tiny.context(tmp_path, sst2=sst2, bert=bert))
    return tmp_path


def planned(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert tiny.command(*options, "--format", "json", "--quiet") == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


@pytest.mark.slow
def test_a_plan_leaves_nothing_behind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = planned(capsys, "plan", *tiny.search_options("sst2"), "--delta", "0.05")
    assert {path.name for path in here.iterdir()} <= {"sst2", "bert", "cache"}
    for name in ("evaluations", "equivalents", "training_equivalents", "hours"):
        assert 0 < told[name]["low"] <= told[name]["median"] <= told[name]["high"]
    assert told["training_equivalents"]["high"] < told["equivalents"]["high"]
    rows = told["seconds_per_evaluation"]
    assert {row["depth"] for row in rows} == {1, 2, 3, 4}
    full = [row for row in rows if row["rung"] == 1]
    assert {row["split"] for row in full} == {"certification"}
    assert full[0]["steps"] == 39
    assert all(row["seconds"] == pytest.approx(row["train_seconds"] + row["evaluation_seconds"]) for row in rows)
    assert min(row["seconds"] for row in rows) > 0
    assert told["disk_bytes"] > 0
    assert told["known"] == {"evaluations": 0, "equivalents": 0, "answered": False}
    assert told["resolution"]["smallest_certifiable_delta"] > 0


@pytest.mark.slow
def test_a_plan_for_two_workers_times_two_at_once_and_leaves_no_process(here: Path) -> None:
    options = [*tiny.search_options("sst2"), "--workers", "2", "--delta", "0.05", "--format", "json"]
    with tiny.ended(tiny.start(["plan", *options, "--layers", "0-1"], here, tiny.environment(here))) as process:
        # Returns when no process holds these streams any more.
        out, err = process.communicate()
    assert process.returncode == 0, err
    told = json.loads(out)
    assert told["workers"] == 2
    assert min(row["seconds"] for row in told["seconds_per_evaluation"]) > 0


def test_a_plan_counts_what_the_study_holds(sst2_study: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(sst2_study.parent, here / "studies")
    before = tiny.tree(here / "studies")
    options = tiny.search_options("sst2")
    again = planned(capsys, *options, "--delta", "0.05", "0.06", "--dry-run")
    held = len(tiny.recorded(sst2_study))
    assert again["known"]["answered"]
    assert again["known"]["evaluations"] == held
    assert again["evaluations"]["high"] == 0
    other = planned(capsys, "plan", *options, "--delta", "0.005")
    assert not other["known"]["answered"]
    assert other["known"]["evaluations"] == held
    anew = planned(capsys, "plan", *options, "--delta", "0.005", "--study", "another")
    # At least the baseline is reused.
    assert other["evaluations"]["low"] <= anew["evaluations"]["low"] - 3
    assert tiny.tree(here / "studies") == before
    assert tiny.command("plan", *options, "--delta", "0.05", "0.06", "--quiet") == 0
    assert "nothing is left to run" in capsys.readouterr().out


def test_what_a_search_would_refuse_a_plan_refuses(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.command("plan", *tiny.search_options("sst2"), "--keep-layers", "9", "--quiet") == 2
    said = capsys.readouterr()
    assert "--keep-layers 9" in said.err
    assert said.out == ""


# -- another study's findings -----------------------------------------------------------------------------------------


def test_what_is_handed_over_is_screened_first_and_judged_in_the_report() -> None:
    start = (LayerSet((0, 1, 2, 3, 5), 12), LayerSet((6, 7, 8, 9, 10, 11), 12))
    world = World()
    found = search(world, InMemoryHistory(), settings(start=start, deltas=(2.0, 3.0)))
    answers = found.run()
    screened = [job.key.layers for job in world.asked if job.split == "selection" and not job.key.layers.is_full]
    assert tuple(screened[:2]) == start
    said = warm_start_note(found.state, "elsewhere")
    assert "2 layer sets of elsewhere" in said
    for delta, layers in answers.items():
        assert (f"the answer within {delta:.2f} points is one of them" in said) == (layers in start)


def test_what_limits_forbid_is_not_taken_over() -> None:
    start, world = (LayerSet((0, 1, 2, 3, 5), 12), LayerSet((0, 1, 2, 11), 12)), World()
    search(world, InMemoryHistory(), settings(start=start, deltas=(3.0,), limits=Limits(max_layers=4))).run()
    screened = {job.key.layers for job in world.asked if job.split == "selection"}
    assert start[1] in screened
    assert start[0] not in screened


@pytest.mark.slow
def test_a_search_begins_with_what_another_study_found(
    sst2_study: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sst2_study.parent, here / "studies")
    answer = json.loads((sst2_study / "report.json").read_text("utf8"))["results"][0]["kept"]
    options = (*tiny.search_options("sst2"), "--epochs", "2", "--delta", "0.06", "--study", "second")
    report = planned(capsys, *options, "--start-from", "sst2")
    assert any(note.startswith("Started from") and sst2_study.name in note for note in report["notes"])
    assert answer in [trial["kept"] for trial in report["trials"] if trial["split"] == "selection"]
    assert report["question"]["start_from"] == "sst2"


def test_a_study_of_another_depth_is_refused_and_nothing_written(
    sst2_study: Path, here: Path, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    shutil.copytree(sst2_study.parent, here / "studies")
    before = tiny.tree(here / "studies")
    deeper = tiny.make_bert(tmp_path_factory.mktemp("deeper") / "bert", layers=5)
    options = ["--task", "sst2", "--data-dir", "sst2", "--model", str(deeper), *tiny.RECIPE]
    for name, reason in (("sst2", "4 layers, this one has 5"), ("nobody", "no study 'nobody'")):
        assert tiny.command(*options, "--start-from", name, "--quiet") == 2
        said = capsys.readouterr()
        assert reason in said.err
        assert len(said.err.strip().splitlines()) == 1
    assert tiny.tree(here / "studies") == before


def test_made_up_models_know_their_truth() -> None:
    model = GeneratedModel(3, 6)
    assert model.degradation(LayerSet.full(6)) == 0
    depths = [model.smallest_depth(delta) for delta in (0.5, 2.0, 100.0)]
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] == 1
