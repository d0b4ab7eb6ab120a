"""Means over tasks by strategy, and what the papers' own protocols would cost and answer."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import shutil
from itertools import combinations
from pathlib import Path

import pytest

from budget_search.core.errors import UsageError
from budget_search.core.layers import LayerSet
from budget_search.report.comparisons.measured_sets import greedy_chain, strategy_sets
from budget_search.report.comparisons.paper_protocols import greedy_depths, protocols, scanned_depths
from budget_search.report.comparisons.strategy_averages import BEST, averages
from budget_search.report.entries import TrialRow
from budget_search.report.plots.strategy_plots import draw_averages
from budget_search.report.renderers import render_averages
from budget_search.report.renderers.terminal import COLUMNS
from budget_search.report.report import Report
from tests import tiny
from tests.test_page import words
from tests.test_report import GOLDEN, load

SEEDS = (42, 43)
EFFECTS = (5.0, 0.2, 2.0, 1.0)
"""Points that each of four layers is worth; they add up."""


@pytest.fixture
def report() -> Report:
    return load()


def studied(
    report: Report, *, full: float = 90.0, in_full: tuple[str, ...] = (), screens: tuple[str, ...] = ()
) -> Report:
    """A report of a four-layer model whose layers add up, with these sets measured in full and by screens.

    Screens lose twice as much, and the second seed is a point above the first.
    """
    rows = [TrialRow((0, 1, 2, 3), 0.5, 7, "selection", "complete", full - 2, 1.0)]
    for text in ("0-3", *in_full):
        layers = LayerSet.parse(text, 4)
        for above, seed in enumerate(SEEDS):
            rows.append(TrialRow(layers.kept, 1.0, seed, "certification", "complete", full + above - lost(layers), 1.0))
    for text in screens:
        layers = LayerSet.parse(text, 4)
        rows.append(TrialRow(layers.kept, 0.5, 7, "selection", "complete", full - 2 - 2 * lost(layers), 1.0))
    baseline = dataclasses.replace(report.baseline, score=full + 0.5)
    return dataclasses.replace(report, layers_total=4, trials=tuple(rows), baseline=baseline, results=())


def lost(layers: LayerSet) -> float:
    return sum(EFFECTS[index] for index in layers.dropped)


EVERY = tuple(LayerSet(kept, 4).compact for size in (1, 2, 3) for kept in combinations(range(4), size))


# -- strategies -----------------------------------------------------------------------------------------------------


def test_greedy_goes_on_as_long_as_every_step_was_measured(report: Report) -> None:
    steps = ["0,2-3", "0,2", "0"]
    assert [each.compact for each in greedy_chain(studied(report, screens=EVERY))] == steps
    assert [each.compact for each in greedy_chain(studied(report, in_full=EVERY))] == steps
    without = tuple(text for text in EVERY if text != "2-3")
    assert [each.compact for each in greedy_chain(studied(report, screens=without))] == steps[:1]
    assert greedy_chain(studied(report, screens=("0,2-3",))) == []


def test_a_step_of_greedy_compares_runs_of_one_kind(report: Report) -> None:
    """A screen loses more than a full run: beside the others' full runs it would look worse than it is."""
    others = tuple(text for text in EVERY if text != "0,2-3")
    assert greedy_chain(studied(report, in_full=others, screens=("0,2-3",))) == []


def test_contribution_needs_the_similarities(report: Report) -> None:
    studies = studied(report, screens=EVERY)
    assert "contribution" not in strategy_sets(studies)
    similar = dataclasses.replace(studies, similarities=(0.5, 0.99, 0.9, 0.97))
    assert [each.kept for each in strategy_sets(similar)["contribution"]] == [(0, 2, 3), (0, 2), (0,)]


# -- means over tasks -----------------------------------------------------------------------------------------------


@pytest.fixture
def several(report: Report) -> list[Report]:
    """Two tasks with one model: every set in full, and some in screens alone; a third task of another model."""
    one = dataclasses.replace(studied(report, in_full=EVERY), task="example-task")
    two = dataclasses.replace(studied(report, full=80.0, in_full=("0-2",), screens=("0-1", "1-3")), task="second-task")
    return [one, two, dataclasses.replace(one, model="other")]


def test_means_are_over_the_tasks_that_measured_it(several: list[Report]) -> None:
    means, other = averages(several)
    assert (means.tasks, means.full_score) == (("example-task", "second-task"), 85.5)
    by_place = {(each.strategy, each.dropped): each for each in means.means}
    top = by_place["top", 1]
    assert (top.tasks, top.score, top.lost, top.short) == (("example-task", "second-task"), 84.5, 1.0, False)
    # 3 points lost in full by the one, 6 of the other's screen.
    assert (by_place["top", 2].lost, by_place["top", 2].short) == (4.5, True)
    assert by_place["top", 3].tasks == ("example-task",)
    assert (by_place["greedy", 1].lost, by_place[BEST, 2].lost) == (pytest.approx(0.2), pytest.approx((1.2 + 6) / 2))
    assert other.tasks == ("example-task",)


def test_of_two_studies_of_a_task_the_longer_run_counts(report: Report) -> None:
    short, long = studied(report, screens=("0-2", "0-1")), studied(report, in_full=("0-2", "0-1"))
    for reports in ([short, long], [long, short]):
        (means,) = averages(reports)
        assert means.tasks == (report.task,)
        assert [each.lost for each in means.means if each.strategy == "top"] == [1.0, 3.0]


def test_methods_are_not_mixed(several: list[Report]) -> None:
    """The best of two methods would pass for one method's curve."""
    gradual = dataclasses.replace(several[0], recipe={**several[0].recipe, "dropping": "gradual"})
    plain, other = averages([several[0], gradual])
    assert (plain.model, other.model) == (several[0].model, f"{several[0].model}, dropping gradual")
    assert plain.means == other.means


@pytest.mark.parametrize(("form", "file"), [("table", "curves.txt"), ("markdown", "curves.md"), ("csv", "curves.csv")])
def test_the_whole_text(several: list[Report], form: str, file: str) -> None:
    text = render_averages(several, form) + "\n"
    path = GOLDEN / file
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    if form == "table":
        assert max(map(len, text.splitlines())) <= COLUMNS


def test_programs_get_the_unrounded_means(several: list[Report]) -> None:
    means = json.loads(render_averages(several, "json"))
    assert [each["model"] for each in means] == ["twelve-layers", "other"]
    rows = list(csv.DictReader(io.StringIO(render_averages(several, "csv"))))
    assert (rows[0]["strategy"], float(rows[0]["score"])) == ("full model", 85.5)
    with pytest.raises(UsageError, match="no --format latex"):
        render_averages(several, "latex")


def test_the_picture_tells_models_strategies_and_units(several: list[Report]) -> None:
    drawn = draw_averages(several)
    assert list(drawn) == ["strategies-twelve-layers", "strategies-other"]
    shown = words(drawn["strategies-twelve-layers"])
    assert "mean points lost over 2 tasks" in shown
    assert "layers dropped, of 4" in shown
    assert "top, 3 dropped: 3.20 lost over 1 task" in shown
    assert list(draw_averages(several[:2])) == ["strategies"]


# -- the papers' protocols ------------------------------------------------------------------------------------------


def test_their_prices_are_arithmetic(report: Report) -> None:
    assert sum(scanned_depths(12)) / 12 == 6.5
    # Down to the last layer greedy-layer pruning takes L (L + 1) / 2 fine-tunes, the full model's among them.
    assert len(greedy_depths(12, 1)) == 12 * 13 / 2
    assert sum(greedy_depths(4, 2)) == 4 + 4 * 3 + 3 * 2
    scan, greedy, own = protocols(report)
    assert (scan.fine_tunes, scan.equivalents) == (12, pytest.approx(1.05 * 6.5))
    assert greedy.name == "greedy down to 2 layers"
    assert greedy.equivalents == pytest.approx(1.05 * sum(greedy_depths(12, 2)) / 12)
    assert own.equivalents == report.cost.full_fine_tune_equivalents
    old = dataclasses.replace(report, cost=dataclasses.replace(report.cost, equivalents_per_fine_tune=None))
    assert protocols(old) == []


def answered(report: Report, depth: int, delta: float) -> Report:
    result = dataclasses.replace(
        load().results[1], delta=delta, kept=tuple(range(depth)), dropped=tuple(range(depth, 4)), depth=depth
    )
    return dataclasses.replace(report, results=(result,))


def told(report: Report, number: int, delta: float) -> tuple[str, bool] | None:
    answer = protocols(report)[number].answers[delta]
    return None if answer is None else (answer.layers.compact, answer.short)


def test_what_the_scan_would_have_answered(report: Report) -> None:
    every = ("0", "0-1", "0-2")
    full = answered(studied(report, in_full=every), 2, 0.03)
    assert told(full, 0, 0.03) == ("0-1", False)
    assert told(answered(studied(report, in_full=every), 3, 0.005), 0, 0.005) == ("0-3", False)
    # By screens, which lose twice as much, it would have kept one more; and is not known where one was left out.
    assert told(answered(studied(report, screens=every), 2, 0.03), 0, 0.03) == ("0-2", True)
    assert told(answered(studied(report, in_full=("0-1", "0-2")), 2, 0.03), 0, 0.03) is None


def test_what_greedy_would_have_answered(report: Report) -> None:
    assert told(answered(studied(report, in_full=EVERY), 2, 0.02), 1, 0.02) == ("0,2", False)
    # Its way down to the answer's depth was not measured to the end.
    assert told(answered(studied(report, in_full=EVERY[4:]), 2, 0.02), 1, 0.02) is not None
    assert told(answered(studied(report, in_full=EVERY[10:]), 2, 0.02), 1, 0.02) is None


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_curves_of_studies(
    sst2_study: Path, bert: Path, sst2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A search by contribution leaves the similarities in its report, so that its sets are recognised."""
    tiny.context(tmp_path, sst2=sst2, bert=bert)
    shutil.copytree(sst2_study.parent, tmp_path / "studies")
    monkeypatch.chdir(tmp_path)
    options = ("--delta", "0.05", "--strategy", "contribution", "--quiet")
    assert tiny.command(*tiny.search_options("sst2"), *options) == 0
    capsys.readouterr()
    assert tiny.command("report", "sst2", "--curves", "--format", "json", "--plots", "p") == 0
    (means,) = json.loads(capsys.readouterr().out)
    dropped = {each["dropped"] for each in means["means"] if each["strategy"] == "contribution"}
    assert dropped == {1, 2, 3}
    assert (tmp_path / "p" / "strategies.svg").is_file()
    assert tiny.command("report", "sst2", "--curves", "--format", "html") == 2
