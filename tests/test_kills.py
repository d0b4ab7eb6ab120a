"""Searches that are killed anywhere: nothing finished is lost or done twice, and the answer is the undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import kills, tiny
from tests.test_end_to_end import read_report, timeless

ROOT = Path(__file__).parent.parent
OPTIONS = [*tiny.search_options("sst2"), "--delta", "0.05", "0.06", "--quiet"]


def test_a_search_that_is_killed_again_and_again(tmp_path: Path) -> None:
    env = tiny.environment(tmp_path, TMPDIR=str(tmp_path), PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "tests.kills", "--kills", "25", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tallies = json.loads(done.stdout)
    assert set(tallies) == set(kills.KINDS)
    assert sum(tally.pop("kills") for tally in tallies.values()) >= 25
    assert all(tally.pop("evaluations") > 0 for tally in tallies.values())
    assert {count for tally in tallies.values() for count in tally.values()} == {0}


# -- real fine-tunes ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path: Path, bert: Path, sst2: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny.workplace(tmp_path, sst2=sst2, bert=bert)


@pytest.fixture
def marked(fresh: Path) -> Iterator[dict[str, str]]:
    """An environment that every process started with it, and every one that those start, can be known by."""
    mark = uuid.uuid4().hex
    yield tiny.environment(fresh, KILL_TEST=mark, PYTHONPATH=str(ROOT))
    left = with_mark(mark)
    for number in left:
        os.kill(number, signal.SIGKILL)


def with_mark(mark: str) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (place / "environ").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue
    return found


def ends_alone(env: dict[str, str]) -> bool:
    """Whether all processes that were started with this environment are gone within a while."""
    return tiny.within(20, lambda: not with_mark(env["KILL_TEST"]))


@pytest.mark.parametrize("step", [300, 1100])
def test_a_real_search_killed_inside_a_write(step: int, fresh: Path, marked: dict[str, str], sst2_study: Path) -> None:
    """Opening, renaming and removing files, and statements of the database, are counted; the process dies at one."""
    script = (
        "import sys\nfrom budget_search.cli import main\nfrom tests import kills\n"
        f"kills.at_write({step})()\nsys.exit(main({OPTIONS!r}))\n"
    )
    done = tiny.run_script(script, fresh, marked)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = tiny.recorded(tiny.only_study(fresh / "studies")) if list(fresh.glob("studies/[a-z]*")) else []
    assert tiny.command(*OPTIONS) == 0
    study = tiny.only_study(fresh / "studies")
    done_now = tiny.recorded(study)
    assert done_now[: len(left)] == left
    assert sorted(done_now) == sorted(tiny.recorded(sst2_study))
    report, expected = read_report(study), read_report(sst2_study)
    assert json.dumps(timeless(report)) == json.dumps(timeless(expected))
    assert report["cost"]["reused"] == len(left)
    assert [path for path in study.rglob(".*")] == []
    assert ends_alone(marked)
