"""What plots draw and tables read off, from a report's trials."""

from __future__ import annotations

import dataclasses
import os
from itertools import pairwise
from typing import Any

import pytest

from budget_search.report.comparisons.comparison import comparison
from budget_search.report.comparisons.measured_sets import (
    answers_by_delta,
    best_by_depth,
    distinct_answers,
    families,
    measured_sets,
)
from budget_search.report.entries import Reference, TrialRow
from budget_search.report.renderers import render
from budget_search.report.renderers.terminal import COLUMNS
from budget_search.report.report import Report
from tests.test_report import GOLDEN, load

REFERENCE = Reference(
    model="six-layers",
    revision="0" * 40,
    layers_total=6,
    score=88.9,
    std=0.2,
    seeds=3,
    metrics={"accuracy": 88.9},
    degradation=1.21,
    degradation_upper=1.8,
    confidence=0.95,
    held_out_score=89.0,
    held_out_degradation=1.3,
    parameters=66_955_010,
    parameters_saved=0.43,
)


@pytest.fixture
def report() -> Report:
    return load()


def test_losses_are_against_the_same_rung_split_and_seed(report: Report) -> None:
    def row(kept: tuple[int, ...], rung: float, split: str, seed: int, score: float) -> TrialRow:
        return TrialRow(kept, rung, seed, split, "complete", score, 1.0)

    full, half = tuple(range(12)), tuple(range(6))
    trials = (
        row(full, 1.0, "certification", 42, 90.0),
        row(full, 1.0, "certification", 43, 92.0),
        # A screen may be as long as the full recipe; it is scored on other examples.
        row(full, 1.0, "selection", 7, 80.0),
        row(full, 0.5, "selection", 7, 70.0),
        row(half, 1.0, "certification", 42, 89.0),
        row(half, 1.0, "certification", 43, 90.0),
        row(half, 0.5, "selection", 7, 40.0),
        row((0, 1), 1.0, "selection", 7, 75.0),
        row((0,), 1.0, "certification", 42, 60.0),
    )
    one, two, six = measured_sets(dataclasses.replace(report, trials=trials))
    assert (six.lost, six.confirmed, six.rung) == (1.5, True, 1.0)
    assert six.std == pytest.approx(0.5**0.5)
    assert (two.lost, two.confirmed, two.std) == (5.0, False, None)
    assert (one.lost, one.confirmed) == (30.0, False)  # given up after one seed


def test_a_set_without_the_further_seeds_of_certify_stays_confirmed(report: Report) -> None:
    """`--certify` runs further seeds of the baseline and of the answers only."""
    full, answer, other = tuple(range(12)), tuple(range(6)), tuple(range(5))
    trials = tuple(
        TrialRow(kept, 1.0, seed, "certification", "complete", 90.0 - lost, 1.0)
        for kept, lost, seeds in ((full, 0.0, 4), (answer, 1.0, 4), (other, 3.0, 2), ((0,), 9.0, 1))
        for seed in range(42, 42 + seeds)
    )
    asked = dataclasses.replace(report, trials=trials, question={"base_seed": 42, "seeds": 2})
    assert {each.kept: each.confirmed for each in measured_sets(asked)} == {answer: True, other: True, (0,): False}


def test_the_best_of_a_depth_is_a_confirmed_one(report: Report) -> None:
    best = best_by_depth(measured_sets(report))
    assert [(each.depth, each.confirmed) for each in best] == [
        (9, False), (6, False), (5, True), (4, True), (3, True), (2, True),
    ]  # fmt: skip
    assert best[0].kept == (0, 1, 2, 3, 4, 5, 7, 9, 11)


def test_a_collapsed_run_is_on_no_curve_and_equals_come_by_their_layers(report: Report) -> None:
    def row(kept: tuple[int, ...], seed: int, score: float, state: str = "complete") -> TrialRow:
        return TrialRow(kept, 1.0, seed, "certification", state, score, 1.0)

    full = tuple(range(12))
    trials = (
        row(full, 42, 90.0),
        row(full, 43, 90.0),
        row((0, 1), 42, 60.0),
        row((0, 2), 42, 60.0),
        # Given up after one seed: one class for every example.
        row((0,), 42, 51.0, "collapsed"),
        row((1,), 42, 51.0, "collapsed"),
        row((0, 1, 2), 42, 51.0, "collapsed"),  # confirmed: it may be an answer
        row((0, 1, 2), 43, 51.0, "collapsed"),
    )
    sets = measured_sets(dataclasses.replace(report, trials=trials))
    assert [each.kept for each in best_by_depth(sets)] == [(0, 1, 2), (0, 1)]
    assert [each.kept for each in families(report, sets)["top"]] == [(0, 1, 2), (0, 1)]
    assert {each.kept for each in sets if each.collapsed} == {(0,), (1,), (0, 1, 2)}


def test_families_of_the_paper_are_recognised(report: Report) -> None:
    found = families(report, measured_sets(report))
    assert list(found) == ["top"]
    assert [each.depth for each in found["top"]] == [9, 6, 5, 4, 3, 2]


def test_an_answer_for_every_delta_is_read_off(report: Report) -> None:
    read = answers_by_delta(report)
    assert read[0].low == 0.005
    assert read[-1].high == 0.05
    for before, after in pairwise(read):
        assert after.low == pytest.approx(before.high + 0.005)
    shown = {reading.low: None if reading.confirmed is None else reading.confirmed.depth for reading in read}
    assert shown == {0.005: None, 0.01: 5, 0.015: 4, 0.02: 3, 0.03: 2}
    assert read[0].screened is not None
    assert read[0].screened.depth == 9


def test_an_answer_to_several_deltas_is_shown_once(report: Report) -> None:
    twice = dataclasses.replace(report.results[1], delta=0.015)
    answers = distinct_answers(dataclasses.replace(report, results=(*report.results, twice)))
    assert [result.delta for result in answers] == [0.01, 0.02, 0.03]


# --- side by side --------------------------------------------------------------------------------------------------


@pytest.fixture
def several(report: Report) -> list[Report]:
    """Two tasks with one model, and one of them with another; beside that a third, which has no study."""
    second = dataclasses.replace(report, task="second-task", study="second", results=report.results[1:3])
    other = dataclasses.replace(
        report, model="org/a_model&more", study="third", results=report.results[2:3], references=(REFERENCE,)
    )
    return [report, second, other]


def test_tasks_stand_beside_each_other_and_models_below(several: list[Report]) -> None:
    dropped, saved, _ = comparison(several)
    assert dropped.grid is not None
    assert dropped.grid.headers == ("δ", "example-task", "second-task")
    assert dropped.grid.rows == (
        ("twelve-layers", "", ""),
        ("0.1%", "0", "-"),
        ("1%", "7", "7"),
        ("2%", "9", "9"),
        ("3%", "10*", "-"),
        ("org/a_model&more", "", ""),
        ("0.1%", "-", "-"),
        ("1%", "-", "-"),
        ("2%", "9", "-"),
        ("3%", "-", "-"),
    )
    assert saved.grid is not None
    assert ("example-task", "7", "0-4", "0.60", "63.0 M", "2.11", "57 % ↓") in saved.grid.rows


def test_two_studies_of_one_task_and_model_are_told_apart_by_their_recipes(report: Report) -> None:
    def names(**changes: Any) -> list[str]:
        dropped, _ = comparison([report, dataclasses.replace(report, **changes)])  # no third table without other models
        assert dropped.grid is not None
        return [row[0] for row in dropped.grid.rows if not row[1]]

    longer = names(recipe={**report.recipe, "epochs": 9, "lr": 0.5})
    assert longer == ["twelve-layers (epochs 3, lr 3e-05)", "twelve-layers (epochs 9, lr 0.5)"]
    by_method = names(recipe={**report.recipe, "epochs": 9, "distil": 0.5})
    assert by_method == ["twelve-layers", "twelve-layers, distil 0.5"]
    assert names(study="the second") == [f"twelve-layers ({report.study})", "twelve-layers (the second)"]


@pytest.mark.parametrize(
    ("form", "file"), [("table", "several.txt"), ("markdown", "several.md"), ("latex", "several.tex")]
)
def test_the_whole_text_of_several(several: list[Report], form: str, file: str) -> None:
    text = render(several, form) + "\n"
    path = GOLDEN / file
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    if form == "table":
        assert max(map(len, text.splitlines())) <= COLUMNS
