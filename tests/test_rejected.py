"""What the report says of the nearest smaller set: the true reason for which it was not accepted."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Trial, TrialKey
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement
from budget_search.report.entries import Rejected
from budget_search.report.rejected import nearest_rejected
from budget_search.report.sentences import why_not_smaller
from tests.worlds import InMemoryHistory, settings

FULL, SMALLER = LayerSet.full(12), LayerSet.dropping((8,), 12)
DELTA = 2.0


def scored(layers: LayerSet, *scores: float | None) -> list[Trial]:
    """Runs with the seeds 42, 43 and so on; None for one that failed."""
    return [
        Trial(TrialKey(layers, FULL_RUNG, seed), "certification", "failed" if score is None else "complete", score)
        for seed, score in enumerate(scores, start=42)
    ]


def screened(layers: LayerSet, score: float) -> Trial:
    asked = settings()
    return Trial(TrialKey(layers, asked.screen_rung, asked.screen_seed), "selection", "complete", score)


def rejected(*trials: Trial, variance: float = 0.1, **changes: Any) -> Rejected:
    """The nearest smaller set of a study with these trials and a full model that scored 90 with every seed."""
    memory = InMemoryHistory()
    for trial in (*scored(FULL, 90.0, 90.0, 90.0), screened(FULL, 87.0), *trials):
        memory.append(trial)

    def compare(layers: LayerSet, confidence: float) -> Judgement:
        values = state.confirmations.degradations(layers)
        return Judgement(fmean(values), variance, 0.001, 50, len(values), 5_000, confidence)

    state = SearchState(settings(deltas=(DELTA,), **changes), memory, compare)
    found = nearest_rejected(state, FULL, DELTA)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("scores", "reason", "said"),
    [
        (
            (89.0,),
            "unfinished",
            "lost 1.00 points so far, which is within the allowed loss. It was run with 1 of 3 seeds only.",
        ),
        ((87.5,), "unfinished", "lost 2.50 points so far, 0.50 more than allowed. It was run with 1 of 3"),
        ((80.0,), "futile", "8.00 more than allowed. It was stopped after 1 of 3 seeds: its mean was unlikely"),
        ((89.0, None), "failed", "lost 1.00 points when confirmed, but one of its fine-tunes failed."),
        ((None,), "failed", "could not be trained. A lower learning rate may help."),
        ((87.5, 87.5, 87.5), "mean", "0.50 more than allowed. More seeds may settle it"),
        ((80.0, 80.0, 80.0), "mean", "lost 10.00 points when confirmed, 8.00 more than allowed."),
    ],
)
def test_the_reason_follows_from_the_runs(scores: tuple[float | None, ...], reason: str, said: str) -> None:
    found = rejected(*scored(SMALLER, *scores), criterion="observed")
    assert found.reason == reason
    assert said in why_not_smaller(DELTA / 100, found)


@pytest.mark.parametrize(("collapsed", "variance", "reason"), [(True, 0.001, "collapsed"), (False, 4.0, "upper bound")])
def test_what_bars_certification(collapsed: bool, variance: float, reason: str) -> None:
    runs = scored(SMALLER, 89.0, 89.0, 89.0)
    runs[0] = replace(runs[0], state="collapsed" if collapsed else "complete")
    found = rejected(*runs, variance=variance, criterion="certified")
    sentence = why_not_smaller(DELTA / 100, found)
    assert found.reason == reason
    assert ("did not learn" in sentence) == (reason == "collapsed")
    assert ("its upper bound is" in sentence) == (reason == "upper bound")


def test_a_set_that_is_within_delta_on_average_is_not_likely_enough() -> None:
    found = rejected(*scored(SMALLER, 88.1, 88.1, 88.1), variance=1.0, criterion="likely")
    assert found.reason == "probability"
    assert "but is within the allowed loss with only" in why_not_smaller(DELTA / 100, found)


def test_a_good_screen_that_was_never_confirmed() -> None:
    found = rejected(screened(SMALLER, 86.0))
    assert found.reason == "screened"
    assert "in a short fine-tune, which is within the allowed loss, but was not confirmed" in why_not_smaller(
        0.02, found
    )


def test_where_sets_were_named_no_other_set_is_spoken_of() -> None:
    memory = InMemoryHistory()
    for trial in (*scored(FULL, 90.0, 90.0, 90.0), screened(FULL, 87.0), screened(SMALLER, 60.0)):
        memory.append(trial)
    asked = settings(deltas=(DELTA,), named=(LayerSet.dropping((3,), 12),))
    state = SearchState(asked, memory, lambda layers, confidence: pytest.fail("nothing is confirmed"))
    assert nearest_rejected(state, FULL, DELTA) is None


def test_a_set_that_failed_is_not_nearer_than_one_that_was_tried() -> None:
    tried = LayerSet.dropping((3,), 12)
    assert (
        rejected(*scored(SMALLER, 89.0, None), *scored(tried, 87.9, 87.9, 87.9), criterion="observed").kept
        == tried.kept
    )


def test_a_report_of_an_earlier_version_names_no_reason() -> None:
    found = rejected(*scored(SMALLER, 88.1, 88.1, 88.1), variance=1.0, criterion="likely")
    earlier = replace(found, reason=None)
    assert why_not_smaller(DELTA / 100, earlier) == why_not_smaller(DELTA / 100, found)


def test_with_one_seed_more_seeds_are_advised() -> None:
    found = rejected(*scored(SMALLER, 87.5), seeds=(42,), criterion="observed")
    assert "--seeds 3" in found.would_settle or "seeds=3" in found.would_settle
