"""Another process that holds the database (a dashboard, a backup): waited for, named, and nothing lost meanwhile."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Trial, TrialKey
from budget_search.storage import database
from budget_search.storage.database import DatabaseLockedError, LockWait
from budget_search.storage.study_folder import StudyFolder
from budget_search.storage.study_store import StudyStore, recorded_trials, require_storage
from tests import tiny

KEY = TrialKey(LayerSet((0, 2), 4), FULL_RUNG, 42)
TRIAL = Trial(KEY, "certification", "complete", 90.0, {"loss": 0.25}, train_seconds=1.5)
LOCK = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('begin exclusive'); print('held', flush=True); sys.stdin.read()"  # fmt: skip # noqa: E501


@contextmanager
def held(file: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that holds an exclusive lock on a SQLite file until its input is closed."""
    command = [sys.executable, "-c", LOCK, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            release(process)


def release(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)


def opened(path: Path, wait: LockWait = database.NO_WAIT) -> StudyStore:
    return StudyStore.open("one", 4, folder=StudyFolder(path), wait=wait)


def recorded(path: Path) -> list[Trial]:
    return recorded_trials("one", 4, folder=StudyFolder(path))


def test_a_trial_is_recorded_when_the_lock_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "TELL_SECONDS", 0.3)
    told: list[str] = []

    def tell(text: str) -> None:
        # The evaluation is safe before anybody is kept waiting.
        assert StudyFolder(tmp_path).unrecorded.exists()
        told.append(text)
        if len(told) == 3:
            release(holder)

    store = opened(tmp_path, LockWait(600, tell))
    with held(tmp_path / "study.db") as holder:
        store.append(TRIAL)
    assert told[0] == "another process holds study.db: waiting for it, up to 10 min 0 s (--storage-timeout)"
    assert all(line.startswith("another process still holds study.db, after ") for line in told[1:])
    assert opened(tmp_path).history == [TRIAL]
    assert len(tiny.recorded(tmp_path)) == 1
    assert not StudyFolder(tmp_path).unrecorded.exists()


def test_a_lock_that_stays_is_named_and_the_trial_kept(tmp_path: Path) -> None:
    store = opened(tmp_path, LockWait(0.5))
    with held(tmp_path / "study.db"):
        with pytest.raises(DatabaseLockedError) as refused:
            store.append(TRIAL)
        with pytest.raises(DatabaseLockedError):
            recorded(tmp_path)
    message = str(refused.value)
    assert "another process holds study.db (database is locked) for more than 0.5 s" in message
    assert "--storage-timeout" in message
    assert "disk" not in message
    assert tiny.recorded(tmp_path) == []
    assert recorded(tmp_path) == [TRIAL]
    again = opened(tmp_path)
    assert again.find(KEY) == TRIAL
    again.record_all()
    assert len(tiny.recorded(tmp_path)) == 1
    assert opened(tmp_path).history == [TRIAL]
    assert not StudyFolder(tmp_path).unrecorded.exists()


def test_who_interrupts_the_wait_loses_nothing(tmp_path: Path) -> None:
    def interrupt(text: str) -> None:
        raise KeyboardInterrupt

    store = opened(tmp_path, LockWait(600, interrupt))
    with held(tmp_path / "study.db"), pytest.raises(KeyboardInterrupt):
        store.append(TRIAL)
    opened(tmp_path).record_all()
    assert len(tiny.recorded(tmp_path)) == 1


def test_a_trial_recorded_just_before_a_kill_is_not_recorded_twice(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.keep(TRIAL)
    left = StudyFolder(tmp_path).unrecorded.read_bytes()
    store.record_all()
    StudyFolder(tmp_path).unrecorded.write_bytes(left)
    opened(tmp_path).record_all()
    assert len(tiny.recorded(tmp_path)) == 1


def test_a_database_that_is_held_can_be_opened_later(tmp_path: Path) -> None:
    """At the start of a search, for the study's own file and for a SQLite file named by --storage."""
    opened(tmp_path).append(TRIAL)
    told: list[str] = []

    def tell(text: str) -> None:
        told.append(text)
        release(holder)

    with held(tmp_path / "study.db") as holder:
        assert opened(tmp_path, LockWait(600, tell)).history == [TRIAL]
    url = f"sqlite:///{tmp_path / 'study.db'}"
    folder = StudyFolder(tmp_path / "elsewhere")
    with held(tmp_path / "study.db") as holder:
        require_storage(url)
        assert StudyStore.open("one", 4, folder=folder, storage=url, wait=LockWait(600, tell)).history == [TRIAL]
    assert len(told) == 2


def test_looking_at_a_study_creates_none(tmp_path: Path) -> None:
    assert recorded(tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    url = f"sqlite:///{tmp_path / 'all.db'}"
    optuna.create_study(study_name="of somebody else", storage=url)
    assert recorded_trials("one", 4, folder=StudyFolder(tmp_path), storage=url) == []
    assert optuna.get_all_study_names(url) == ["of somebody else"]


@pytest.mark.slow
def test_a_search_ends_when_the_lock_stays_and_runs_nothing_again(tmp_path: Path, bert: Path, sst2: Path) -> None:
    """Both baseline runs finish while the database is held: one is being recorded, the other was never taken."""
    tiny.context(tmp_path, sst2=sst2, bert=bert)
    env = tiny.environment(tmp_path)
    options = [*tiny.search_options("sst2"), "--delta", "0.05", "--workers", "2", "--layers", "0"]
    with tiny.ended(tiny.start([*options, "--storage-timeout", "0.1"], tmp_path, env)) as process:
        assert process.stderr is not None
        line = ""
        while "baseline" not in line:
            line = process.stderr.readline()
            assert line, "ended too early"
        study = tiny.only_study(tmp_path / "studies")
        with held(study / "study.db"):
            _, err = process.communicate()
    assert process.returncode == 1
    assert "another process holds study.db: waiting for it, up to 6.0 s" in err
    assert err.splitlines()[-1].startswith("budget-search: another process holds study.db (database is locked)")
    assert tiny.recorded(study) == []
    kept = json.loads((study / "unrecorded.json").read_text())
    assert sorted(trial["key"]["seed"] for trial in kept) == [42, 43]
    done = tiny.run(options, tmp_path, env)
    assert done.returncode == 0, done.stderr
    assert re.search(r"reused +2 evaluations of this study", done.stderr)
    trials = recorded_trials(study.name, 4, folder=StudyFolder(study))
    seconds = {
        trial.key.seed: trial.train_seconds for trial in trials if trial.key.seed in (42, 43) and trial.layers.is_full
    }
    assert seconds == {trial["key"]["seed"]: trial["train_seconds"] for trial in kept}
    assert len(set(tiny.recorded(study))) == len(tiny.recorded(study))
