"""What the example of Table 2 reads off its studies, and what it says of the paper's findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import ModuleType

import pytest

from budget_search.core.formatting import tolerance
from budget_search.core.layers import LayerSet
from budget_search.report.entries import TrialRow
from budget_search.report.report import Report
from tests.examples import example
from tests.test_report import load

SEEDS = (42, 43)


@pytest.fixture
def table2() -> ModuleType:
    return example("table2")


@pytest.fixture
def findings() -> ModuleType:
    return example("table2_findings")


def study(model: str, task: str, losses: Mapping[str, float], *, strategy: str = "auto", total: int = 6) -> Report:
    """A study that confirmed these sets, each with the points it lost."""
    trials = [
        TrialRow(LayerSet.parse(kept, total).kept, 1.0, seed, "certification", "complete", 90.0 - lost, 1.0)
        for kept, lost in {f"0-{total - 1}": 0.0, **losses}.items()
        for seed in SEEDS
    ]
    return dataclasses.replace(
        load(), model=model, task=task, layers_total=total, trials=tuple(trials), question={"strategy": strategy}
    )


def test_top_counts_only_sets_without_the_uppermost_layers(table2: ModuleType) -> None:
    found = study("bert", "sst2", {"0-4": 0.5, "0-3": 1.5, "0-2": 4.0, "0,2,5": 0.9, "1,4": 2.9, "0,3": 2.95})
    assert [table2.cell(found, "top", delta) for delta in table2.DELTAS] == ["1", "2", "2"]
    assert [table2.cell(found, "any", delta) for delta in table2.DELTAS] == ["3 (1,3-4)", "3 (1,3-4)", "4 (0,2-3,5)"]


def test_before_any_layers_were_searched_only_the_uppermost_are_shown(table2: ModuleType, findings: ModuleType) -> None:
    found = study("bert", "sst2", {"0-4": 0.5, "0-3": 9.0}, strategy="top")
    section = table2.layers_dropped([found])
    assert section.grid.headers == ("δ", "dropped", "sst2", "mrpc", "rte", "stsb", "qqp")
    assert section.grid.rows[1] == ("1%", "top", "1", "-", "-", "-", "-")
    assert section.grid.rows[2] == ("", "any", "-", "-", "-", "-", "-")
    assert "not run" in findings.gain([found])
    assert "cannot be checked" in findings.lower_layers([found])


def test_top_dropping_that_nobody_looked_at_is_missing(findings: ModuleType) -> None:
    found = study("bert", "sst2", {"0,2-5": 0.5})
    assert findings.smallest(found, "top", 0.01) is None
    assert findings.smallest(found, "any", 0.01) == (1,)
    assert "not run" in findings.gain([found])


def test_two_recipes_of_one_model_stand_apart(table2: ModuleType) -> None:
    quick, paper = (
        dataclasses.replace(study("bert", "sst2", {"0-4": 0.5, "0-3": lost}), recipe={"name": name})
        for name, lost in (("quick", 0.9), ("paper", 9.0))
    )
    rows = table2.layers_dropped([quick, paper]).grid.rows
    assert [row[0] for row in rows if not row[1]] == ["bert, 6 layers, recipe 1", "bert, 6 layers, recipe 2"]


def test_how_many_layers_more(findings: ModuleType) -> None:
    found = study("bert", "sst2", {"0-4": 0.5, "0-3": 9.0, "0,2,5": 1.5})
    # Two more within two points and within three, none within one.
    assert "drops 1.33 layers more on average (over 3 cells; more in 2, at most 2)" in findings.gain([found])


@pytest.mark.parametrize("kept", ["0-2,4", "2-5"])
def test_two_dropped_layers_do_not_tell_which_ones_matter(findings: ModuleType, kept: str) -> None:
    assert "cannot be told" in findings.lower_layers([study("bert", "sst2", {kept: 0.5})])


@pytest.mark.parametrize(("kept", "upper", "word"), [("0-2", 6, "holds here"), ("3-5", 0, "does not hold here")])
def test_which_layers_matter_if_all_dropped_ones_are_of_one_half(
    findings: ModuleType, kept: str, upper: int, word: str
) -> None:
    # Six of six in one half: by chance twice in 64 times.
    said = findings.lower_layers([study("bert", task, {kept: 0.5}) for task in ("sst2", "qqp")])
    assert word in said
    assert f"2 answers within 3 points dropped 6 layers, {upper} of them in the upper half" in said
    assert "p = 0.031" in said


def test_an_answer_that_held_out_refutes_is_marked(table2: ModuleType) -> None:
    found = study("bert", "sst2", {"0-4": 0.5, "0-3": 9.0, "0,2,5": 1.5})
    result = dataclasses.replace(answered(found, "0,2,5").results[0], held_out_degradation=2.5)
    refuted = dataclasses.replace(found, results=(result,))
    assert [table2.cell(refuted, "any", delta) for delta in table2.DELTAS] == ["1 (5)", "3* (1,3-4)", "3 (1,3-4)"]
    assert [table2.cell(found, "any", delta) for delta in table2.DELTAS] == ["1 (5)", "3 (1,3-4)", "3 (1,3-4)"]


def down_to(depth: int) -> dict[str, float]:
    """Top-dropping goes so far, and not one layer further."""
    return {f"0-{depth - 1}": 0.5, f"0-{depth - 2}": 9.0}


@pytest.mark.parametrize(("depth", "word"), [(3, "holds here"), (5, "does not hold here")])
def test_robust_tasks(findings: ModuleType, depth: int, word: str) -> None:
    alone = study("other", "sst2", down_to(2))  # of no use: this model was run on one kind of task only
    said = findings.robust_tasks([study("bert", "qqp", down_to(depth)), study("bert", "mrpc", down_to(4)), alone])
    assert word in said
    assert "33 % on the other tasks" in said


@pytest.mark.parametrize(("depth", "word"), [(3, "holds here"), (5, "does not hold here")])
def test_earlier_maturity(findings: ModuleType, depth: int, word: str) -> None:
    shallow = study("bert-5", "qqp", down_to(2), total=5)
    reports = [study("my-xlnet", "qqp", down_to(depth)), study("my-bert", "qqp", down_to(4)), shallow]
    said = findings.earlier_maturity(reports)
    assert word in said
    assert "33 % of BERT's, in 1 comparison" in said
    assert "cannot be checked" in findings.earlier_maturity(reports[1:])


def test_an_answer_that_was_not_asked_is_missing_and_an_interruption_is_said(table2: ModuleType) -> None:
    report = study("bert", "sst2", {"0-4": 0.5})
    part = dataclasses.replace(report, results=report.results[1:2], finished=None)
    (row,) = table2.answers([part]).grid.rows
    assert (row[2], row[-1]) == (tolerance(part.results[0].delta), part.results[0].verdict)
    (row,) = table2.costs([part]).grid.rows
    assert row[-1].endswith("interrupted")


def test_savings_have_a_line_for_each_smaller_answer(table2: ModuleType) -> None:
    report = load()
    rows = table2.savings([report]).grid.rows
    smaller = {result.kept: result for result in report.results if not result.is_full}
    assert [row[2] for row in rows] == [f"{len(kept)} of {report.layers_total}" for kept in smaller]
    for row, result in zip(rows, smaller.values(), strict=True):
        saved = {point.batch: point.saved for point in result.inference}
        assert row[4] == f"{round(100 * result.parameters_saved)} %"
        assert row[5].startswith(f"{round(100 * saved[1].value)} %")
        assert row[-1] == f"{result.fine_tune_speedup:.1f} x"


def answered(report: Report, kept: str) -> Report:
    """The same study with this set as its only answer."""
    layers = LayerSet.parse(kept, report.layers_total)
    result = dataclasses.replace(
        report.results[0],
        kept=layers.kept,
        dropped=layers.dropped,
        depth=layers.depth,
        verdict="observed",
        certified=False,
    )
    return dataclasses.replace(report, results=(result,))


def test_a_search_is_compared_with_top_dropping_of_the_same_depth(findings: ModuleType) -> None:
    found = study("bert", "sst2", {"0,2,5": 1.0, "0-2": 2.5})
    uneven = dataclasses.replace(
        found,
        trials=tuple(
            dataclasses.replace(row, score=row.score + 0.2 if row.seed == SEEDS[0] else row.score)
            if row.kept == (0, 2, 5) and row.score is not None
            else row
            for row in found.trials
        ),
    )
    # Seed by seed 1.7 and 1.5 points: a standard error of 0.1, and Student's t with one degree of freedom, 12.71.
    said = findings.gain_at_equal_depth(answered(uneven, "0,2,5"))
    assert "score 1.60 points more than the lowest 3 (95 % interval over 2 seeds: 0.33 to 2.87)" in said
    assert findings.gain_at_equal_depth(answered(found, "0-2")) == ""
    assert findings.gain_at_equal_depth(answered(study("bert", "sst2", {"0,2,5": 1.0}), "0,2,5")) == ""


def test_fixed_strategies_are_compared_where_as_many_layers_were_dropped(findings: ModuleType) -> None:
    third, half = findings.DROPPED_SHARES
    found = study("bert", "sst2", {"0-3": 1.0, "2-5": 9.0, "0-1,4-5": 0.5, "0-2": 3.0, "3-5": 12.0})
    assert "in 0 of 1 comparisons. Points lost: bert, sst2: symmetric 0.50, top 1.00, bottom 9.00." in (
        findings.top_among_fixed([found], third)
    )
    assert "in 1 of 1 comparisons. Points lost: bert, sst2: top 3.00, bottom 12.00." in (
        findings.top_among_fixed([found], half)
    )
    assert "cannot be checked" in findings.top_among_fixed([study("bert", "sst2", {"0-3": 1.0})], third)
