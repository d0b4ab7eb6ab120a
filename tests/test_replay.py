"""Recorded tables: read, asked, and played on by a strategy."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest

from budget_search.core.errors import StudyError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Job, TrialKey
from budget_search.layer_search.strategies import STRATEGIES
from budget_search.simulation.replay import Table, play
from tests import strategy_contract as contract
from tests.examples import example

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


# -- the replay benchmark -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def benchmark():
    return example("replay")


@pytest.fixture
def small(tmp_path) -> Path:
    """All sets of four layers, additive in (4.2, 0.3, 0.45, 0.9), with shorter runs; two seeds, the second half a
    point better. And what models with these scores said of 1,000 examples."""
    effects, records, logits = (4.2, 0.3, 0.45, 0.9), [], []
    labels = np.zeros(1000, dtype=np.int8)
    for count in range(1, 5):
        for kept in itertools.combinations(range(4), count):
            for seed in (0, 1):
                score = 90.0 + 0.5 * seed - sum(effects[index] for index in range(4) if index not in kept)
                fields = {"rung": 1.0, "seed": seed, "prefix_third_score": score - 3}
                records.append({"kept": list(kept), "score": score, **fields})
                right = np.arange(1000) < round(10 * score)
                logits.append(np.column_stack([right, ~right]).astype(np.float16))
    path = write_table(tmp_path / "small.json", records, layers=4, complete_depths=[1, 2, 3, 4])
    np.savez(path.with_suffix(".npz"), selection_logits=np.array(logits), selection_labels=labels)
    return path


def lines(benchmark, capsys, *arguments: object) -> list[dict]:
    benchmark.main([*map(str, arguments), "--format", "json"])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_regret_at_a_depth_is_against_the_best_in_the_table(small, benchmark, capsys):
    asked = ("--table", small, "--depth", 2, "--repeats", 3, "--strategy")
    top, greedy, auto = lines(benchmark, capsys, *asked, "top", "greedy", "auto")
    assert list(top) == ["task", "strategy", "evaluations", "regret_mean", "regret_std", "equivalents"]
    # Layers 0-1 stay where 0 and 3 would be best: 0.45 + 0.9 lost instead of 0.3 + 0.45.
    assert (top["task"], top["regret_mean"], top["regret_std"]) == ("small", pytest.approx(0.6), 0.0)
    assert (top["evaluations"], top["equivalents"]) == (2, pytest.approx((3 + 2) / 4))
    assert greedy["regret_mean"] == auto["regret_mean"] == 0.0


def test_no_more_entries_are_read_than_allowed(small, benchmark, capsys):
    asked = ("--table", small, "--depth", 2, "--repeats", 2)
    rows = lines(benchmark, capsys, *asked, "--evaluations", 5)
    assert {row["strategy"] for row in rows} == set(STRATEGIES)
    assert max(row["evaluations"] or 0 for row in rows) == 5
    [searched] = lines(benchmark, capsys, "--table", small, "--strategy", "greedy", "--evaluations", 9, "--repeats", 2)
    assert searched["evaluations"] <= 9


def test_a_strategy_that_cannot_be_played_has_no_figures(small, benchmark, capsys):
    [row] = lines(benchmark, capsys, "--table", small, "--depth", 2, "--strategy", "contribution")
    assert (row["evaluations"], row["regret_mean"]) == (None, None)


def test_the_whole_search_finds_the_fewest_layers(small, benchmark, capsys):
    small.with_suffix(".npz").unlink()  # so that the scores are exact
    [row] = lines(benchmark, capsys, "--table", small, "--strategy", "auto", "--repeats", 4, "--delta", 0.01, 0.02)
    # At two points 1, 2 and 3 may go together (1.65), at one point only 1 and 2.
    assert row["excess_depth_mean"] == 0.0
    # Two runs of the baseline, of one layer and of two layers are 3.5; a third of a run for screens of the rest.
    assert 3.5 <= row["equivalents"] <= 3.5 + (4 + 4 * 3 + 6 * 2 + 4) / 4 / 3 + 2


def test_a_draw_resamples_examples_and_breaks_ties(small):
    table = Table.load(small)
    first, second = (table.resampled(np.random.default_rng(seed)) for seed in (1, 2))
    key = TrialKey(LayerSet((0, 3), 4), 1.0, 0)
    assert abs(first.trial(key).score - table.trial(key).score) > 0.05
    assert first.trial(key).score != second.trial(key).score
    without = Table.load(write_table(small.parent / "rounded.json", [{"kept": [0], "rung": 1, "seed": 0, "score": 80}]))
    drawn = without.resampled(np.random.default_rng(0)).mean_score(LayerSet((0,), 3))
    assert 80 < drawn < 80.001


def test_sets_outside_the_table_are_not_proposed(tmp_path, benchmark, capsys):
    pairs = [(0, 1), (0, 2), (1, 2), (0, 3)]
    records = [{"kept": list(kept), "rung": 1.0, "seed": 5, "score": 80.0 + sum(kept)} for kept in pairs]
    path = write_table(tmp_path / "pairs.json", records, layers=4, complete_depths=[])
    rows = lines(benchmark, capsys, "--table", path, "--depth", 2, "--repeats", 2, "--strategy", "auto", "optuna")
    assert [(row["evaluations"], row["regret_mean"]) for row in rows] == [(4, 0.0), (4, 0.0)]


def test_outputs_of_another_table_are_refused(small):
    other = write_table(small.parent / "other.json", [{"kept": [0], "rung": 1.0, "seed": 0, "score": 80}])
    small.with_suffix(".npz").rename(other.with_suffix(".npz"))
    with pytest.raises(UsageError, match=r"other\.json.*does not belong"):
        Table.load(other)
