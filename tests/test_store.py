"""Studies on disk: what was measured comes back as it was, from a real database."""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from budget_search.core.errors import StudyError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Trial, TrialKey
from budget_search.storage.files import write_json
from budget_search.storage.study_folder import StudyFolder, draft_of
from budget_search.storage.study_store import StudyStore

KEY = TrialKey(LayerSet((0, 3, 11), 12), 1 / 6, 1_000_142)

trials = st.builds(
    Trial,
    key=st.builds(
        TrialKey,
        layers=st.sets(st.integers(0, 11), min_size=1).map(lambda kept: LayerSet(tuple(sorted(kept)), 12)),
        rung=st.floats(0.01, 1.0),
        seed=st.integers(0, 2_000_000),
    ),
    split=st.sampled_from(["selection", "certification"]),
    state=st.sampled_from(["complete", "collapsed"]),
    score=st.floats(-100, 100),
    metrics=st.dictionaries(st.sampled_from(["accuracy", "f1", "loss"]), st.floats(-100, 100)),
    train_seconds=st.floats(0, 1e6),
    train_tokens=st.integers(0, 2**40),
    train_layer_tokens=st.none() | st.integers(0, 2**40),
    peak_bytes=st.integers(0, 2**40),
)


def opened(path: Path) -> StudyStore:
    return StudyStore.open("some study", 12, folder=StudyFolder(path))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(trials, min_size=1, max_size=4, unique_by=lambda trial: trial.key))
def test_trials_come_back_as_they_were(tmp_path_factory: pytest.TempPathFactory, some: list[Trial]) -> None:
    path = tmp_path_factory.mktemp("study")
    store = opened(path)
    for trial in some:
        store.append(trial)
    expected = sorted(some, key=lambda trial: trial.key)
    assert store.history == expected
    assert opened(path).history == expected


def test_a_failed_trial_has_no_score_and_keeps_its_reason(tmp_path: Path) -> None:
    failed = Trial(KEY, "selection", "failed", error="the loss was nan")
    opened(tmp_path).append(failed)
    assert opened(tmp_path).history == [failed]


def test_a_rerun_after_a_machine_failure_replaces_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append(Trial(KEY, "selection", "failed", error="out of memory", machine_failure=True))
    store.append(Trial(KEY, "selection", "complete", 71.0))
    assert [trial.score for trial in store.history] == [71.0]
    assert [trial.score for trial in opened(tmp_path).history] == [71.0]


def test_optuna_reads_the_study_with_named_objectives_and_flags(tmp_path: Path) -> None:
    opened(tmp_path).append(Trial(KEY, "selection", "complete", 71.0, {"loss": 0.5}))
    study = optuna.load_study(study_name="some study", storage=f"sqlite:///{tmp_path / 'study.db'}")
    frame = study.trials_dataframe()
    assert study.metric_names == ["score", "depth"]
    assert frame.loc[0, "values_score"] == 71.0
    assert frame.loc[0, "values_depth"] == 3
    assert [index for index in range(12) if frame.loc[0, f"params_layer_{index:02d}"]] == [0, 3, 11]
    assert frame.loc[0, "user_attrs_rung"] == 1 / 6


def test_facts_are_kept(tmp_path: Path) -> None:
    opened(tmp_path).set_facts(similarities=[0.5, 0.75])
    assert opened(tmp_path).facts["similarities"] == [0.5, 0.75]


def test_a_new_database_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    """Killed between making a table and its index, Optuna's own way leaves one that takes a study of the same name
    twice, and is never opened again."""
    folder, indexes = StudyFolder(tmp_path), list[set[str]]()

    def look(*_: object) -> None:
        if folder.database.exists():
            with closing(sqlite3.connect(folder.database)) as database:
                indexes.append({name for (name,) in database.execute("select name from sqlite_master")})

    for event in ("before_cursor_execute", "after_cursor_execute", "commit"):
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, event, look)
    try:
        StudyStore.open("one", 4, folder=folder)
    finally:
        for event in ("before_cursor_execute", "after_cursor_execute", "commit"):
            sqlalchemy.event.remove(sqlalchemy.engine.Engine, event, look)
    assert indexes
    assert all("ix_studies_study_name" in names for names in indexes)


def test_a_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    opened(tmp_path).append(Trial(KEY, "selection", "complete", 71.0))
    (tmp_path / "study.db").write_bytes(b"not a database" * 500)
    with pytest.raises(StudyError, match=r"study cannot be read.*restore study\.db"):
        opened(tmp_path)


def test_a_study_is_held_by_one_command_at_a_time(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    with folder.locked(), pytest.raises(StudyError, match="another command"), folder.locked():
        pass
    with folder.locked():
        pass


def test_commands_that_create_one_study_at_once(tmp_path: Path) -> None:
    """One is first. Another is refused by the study's name, or waits and then finds the study there."""
    folder, waits = StudyFolder(tmp_path / "mine"), threading.Event()

    def create(number: int) -> None:
        waits.set()
        with draft_of(folder, wait=True) as draft:
            write_json(draft.config, number)

    with ThreadPoolExecutor(2) as others:
        with draft_of(folder, wait=True) as draft:
            with (
                pytest.raises(StudyError, match="another command is working on the study mine;"),
                draft_of(folder, wait=False),
            ):
                pass
            write_json(draft.config, 1)
            waiting = [others.submit(create, number) for number in (2, 3)]
            waits.wait()
            time.sleep(0.2)
        for each in waiting:
            each.result(timeout=60)
    assert folder.config.read_text() == "1\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_files_appear_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"score": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"score": float("nan")})
    assert path.read_text() == '{\n  "score": 1.5\n}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_outputs_and_weights_of_different_evaluations_lie_apart(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    keys = [
        TrialKey(LayerSet(kept, 12), rung, seed)
        for kept in ((0, 1), (0, 1, 2))
        for rung in (1 / 24, 1.0)
        for seed in (1, 2)
    ]
    assert len({folder.weights(key) for key in keys}) == len(keys)
    assert len({folder.outputs(key, split) for key in keys for split in ("selection", "held_out")}) == 2 * len(keys)


def test_optunas_own_tools_see_names_layers_and_durations(tmp_path: Path) -> None:
    opened(tmp_path).append(Trial(KEY, "selection", "complete", score=81.5, train_seconds=60.0, evaluation_seconds=3.0))
    study = optuna.load_study(study_name="some study", storage=f"sqlite:///{tmp_path / 'study.db'}")
    table = study.trials_dataframe()
    assert list(table[["values_score", "values_depth"]].iloc[0]) == [81.5, 3]
    assert table["user_attrs_layers"].iloc[0] == "0,3,11 of 12"
    assert table["duration"].iloc[0].total_seconds() == pytest.approx(63, abs=1)
    assert [name for name in table if name.startswith("params_")] == [f"params_layer_{i:02d}" for i in range(12)]
