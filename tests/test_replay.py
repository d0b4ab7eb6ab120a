"""Recorded tables: read, asked, and played on by a strategy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from budget_search.errors import StudyError, UsageError
from budget_search.layers import LayerSet
from budget_search.replay import Table, play
from budget_search.trial import Job, TrialKey
from tests import strategy_contract as contract

OWN = Path(__file__).parent / "tables" / "minilm-l6-sst2.json"
PUBLISHED = os.environ.get("BUDGET_SEARCH_TABLES")
FULL = LayerSet.full(6)


@pytest.fixture(scope="module")
def recorded() -> Table:
    return Table.load(OWN)


def write_table(path: Path, records: list[dict], **fields) -> Path:
    content = {"layers": 3, "metric": "accuracy", "complete_depths": [3], "records": records, **fields}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_a_table_holds_every_layer_set_in_both_seeds(recorded):
    assert (recorded.total, recorded.metric, recorded.seeds()) == (6, "accuracy", [0, 1])
    assert len(recorded.layer_sets()) == 2**6 - 1
    assert recorded.complete_depths == {1, 2, 3, 4, 5, 6}


def test_a_trial_is_answered_as_it_was_recorded(recorded):
    trial = recorded.trial(TrialKey(FULL, 1.0, 0))
    assert (trial.score, trial.split, trial.state) == (87.7167, "selection", "complete")
    assert trial.metrics["held_out_score"] == 85.4358
    other = recorded.trial(TrialKey(FULL, 1.0, 1)).score
    assert recorded.mean_score(FULL) == pytest.approx((87.7167 + other) / 2)


def test_what_was_not_recorded_is_refused_with_its_name(recorded):
    with pytest.raises(StudyError, match=r"layers 0-5 of 6, rung 0\.5, seed 0"):
        recorded.trial(TrialKey(FULL, 0.5, 0))
    with pytest.raises(StudyError, match=r"rung 0\.5"):
        recorded.mean_score(FULL, rung=0.5)


def test_jobs_are_answered_in_their_split(recorded):
    jobs = [Job(TrialKey(FULL, 1.0, seed), "certification") for seed in (1, 0)]
    answers = list(recorded.run_jobs(jobs))
    assert [answer.key for answer in answers] == [job.key for job in jobs]
    assert {answer.split for answer in answers} == {"certification"}


@pytest.mark.parametrize("content", ["", "[]", '{"layers": 3}', '{"layers": 3, "records": [{"kept": [7]}]}'])
def test_a_file_that_is_no_table_is_refused_by_name(content, tmp_path):
    path = tmp_path / "notes.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"notes\.json"):
        Table.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UsageError, match=r"absent\.json"):
        Table.load(tmp_path / "absent.json")


def test_play_measures_in_order_and_chooses_the_smallest_that_holds(recorded):
    replay = play("top", recorded, 1.0)
    assert [layers.compact for layers in replay.layers] == ["0-4", "0-3", "0-2", "0-1", "0"]
    assert replay.choice == LayerSet((0, 1, 2, 3, 4), 6)
    assert replay.unrecorded == ()


def test_the_full_model_is_chosen_where_nothing_holds(recorded):
    assert play("bottom", recorded, 0.5).choice == FULL


def test_known_trials_are_not_measured_again(recorded):
    known = [recorded.trial(TrialKey(LayerSet((0, 1, 2), 6), 1.0, 0))]
    replay = play("top", recorded, 1.0, known=known)
    assert [layers.compact for layers in replay.layers] == ["0-2", "0-4", "0-3", "0-1", "0"]


def test_the_seed_says_which_records_answer(recorded):
    first, second = (play("top", recorded, 1.0, record_seed=seed).trials for seed in (0, 1))
    assert {trial.key.seed for trial in second} == {1}
    assert [trial.score for trial in first] != [trial.score for trial in second]


def test_sets_that_were_not_recorded_are_named_and_never_chosen(tmp_path):
    records = [{"kept": [0, 1], "rung": 1.0, "seed": 0, "score": 89.5}]
    table = Table.load(write_table(tmp_path / "partial.json", records))
    replay = play("top", table, 1.0, baseline=90.0)
    assert replay.choice == LayerSet((0, 1), 3)
    assert replay.unrecorded == (LayerSet((0,), 3),)
    with pytest.raises(StudyError, match="0-2 of 3"):
        play("top", table, 1.0)


@pytest.mark.skipif(PUBLISHED is None, reason="BUDGET_SEARCH_TABLES names no folder of published tables")
def test_greedy_finds_the_best_pair_in_most_published_tables():
    """Recorded once per set and rounded to 0.1 point; all pairs of twelve layers were measured."""
    paths = sorted(Path(PUBLISHED or "").glob("glp-*.json"))
    assert len(paths) == 8
    found = 0
    for path in paths:
        table = Table.load(path)
        pairs = {key.layers: trial.score for key, trial in table.trials.items() if key.layers.depth == 10}
        [seed] = table.seeds()
        tried = play("greedy", table, 100.0, baseline=100.0, record_seed=seed).layers
        best = max(pairs[layers] for layers in tried if layers.depth == 10)
        found += best == max(pairs.values())
    assert found >= 6


def test_the_synthetic_table_is_additive():
    table = contract.additive_table((1.0, 2.0, 4.0))
    assert table.mean_score(LayerSet((1,), 3)) == contract.BASELINE - 5.0
    assert len(table.layer_sets()) == 2**3 - 1
