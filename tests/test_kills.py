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


@pytest.mark.slow
def test_a_search_that_is_killed_again_and_again(tmp_path: Path) -> None:
    env = tiny.environment(tmp_path, TMPDIR=str(tmp_path), PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "tests.kills", "--kills", "12", "--json"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    tallies = json.loads(done.stdout)
    assert set(tallies) == set(kills.KINDS)
    assert sum(tally.pop("kills") for tally in tallies.values()) >= 12
    assert all(tally.pop("evaluations") > 0 for tally in tallies.values())
    assert {count for tally in tallies.values() for count in tally.values()} == {0}


# -- real fine-tunes ------------------------------------------------------------------------------------------------


@pytest.fixture
def fresh(tmp_path: Path, bert: Path, sst2: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tiny.context(tmp_path, sst2=sst2, bert=bert)


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


@pytest.mark.slow
@pytest.mark.parametrize("step", [300, 1100])
def test_a_real_search_killed_inside_a_write(step: int, fresh: Path, marked: dict[str, str], sst2_study: Path) -> None:
    """Opening, renaming and removing files, and statements of the database, are counted; the process dies at one."""
    script = (
        "import sys\nfrom budget_search.cli.main import main\nfrom tests import kills\n"
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
    assert list(study.rglob(".*")) == []
    assert ends_alone(marked)


def loky_workers(mark: str) -> list[int]:
    return [number for number in with_mark(mark) if b"LokyProcess" in Path(f"/proc/{number}/cmdline").read_bytes()]


@pytest.mark.slow
def test_a_killed_worker_and_then_a_killed_search(fresh: Path, marked: dict[str, str], sst2_study: Path) -> None:
    """The worker's evaluation is run again; the search's workers end with it."""
    options = [*tiny.search_options("sst2"), "--delta", "0.05", "0.06", "--workers", "2"]
    with tiny.ended(tiny.start(options, fresh, marked)) as process:
        tiny.wait_for(lambda: bool(loky_workers(marked["KILL_TEST"])), process)
        os.kill(loky_workers(marked["KILL_TEST"])[0], signal.SIGKILL)
        tiny.wait_for(lambda: rows(fresh) >= 6, process)
        process.send_signal(signal.SIGKILL)
        _, told = process.communicate()
    assert "its worker process was killed" in told
    assert ends_alone(marked)
    study = tiny.only_study(fresh / "studies")
    left = tiny.recorded(study)
    assert tiny.command(*OPTIONS) == 0
    report = read_report(study)
    assert "failed" not in {trial["state"] for trial in report["trials"]}
    assert len(report["trials"]) == len(set(tiny.recorded(study)))
    assert set(left) <= set(tiny.recorded(study))


def rows(folder: Path) -> int:
    studies = [path.parent for path in folder.glob("studies/[a-z]*/config.json")]
    return len(tiny.recorded(studies[0])) if studies else 0


@pytest.mark.slow
def test_ctrl_c_reaches_the_workers_too_and_nobody_complains(fresh: Path, marked: dict[str, str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "budget_search", *OPTIONS, "--workers", "2"],
        cwd=fresh, env=marked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with tiny.ended(process):
        tiny.wait_for(lambda: rows(fresh) >= 1, process)
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert [line.split(".")[0].split(":")[0] for line in err.splitlines()] == ["interrupted", "To resume"], err
    assert ends_alone(marked)


@pytest.mark.slow
def test_a_second_signal_quits_at_once(fresh: Path, marked: dict[str, str]) -> None:
    """Both signals are waiting when the process is let go on: the second comes before the first has been answered."""
    with tiny.ended(tiny.start(OPTIONS, fresh, marked)) as process:
        tiny.wait_for(lambda: rows(fresh) >= 1, process)
        for number in (signal.SIGSTOP, signal.SIGINT, signal.SIGTERM, signal.SIGCONT):
            process.send_signal(number)
        out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "")
    assert ends_alone(marked)


@pytest.mark.slow
def test_a_second_command_can_wait_for_the_first(fresh: Path, marked: dict[str, str], sst2_study: Path) -> None:
    with tiny.ended(tiny.start(OPTIONS, fresh, marked)) as first:
        tiny.wait_for(lambda: rows(fresh) >= 1, first)
        first.send_signal(signal.SIGSTOP)
        waiting = [option for option in OPTIONS if option != "--quiet"] + ["--wait"]
        with tiny.ended(tiny.start(waiting, fresh, marked)) as second:
            assert second.stderr is not None
            told = iter(second.stderr.readline, "")
            assert any("waiting for another command that is working on the study" in line for line in told)
            assert not tiny.within(0.5, lambda: second.poll() is not None)
            first.send_signal(signal.SIGCONT)
            found, _ = first.communicate()
            answer, _ = second.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert answer == found
    assert sorted(tiny.recorded(tiny.only_study(fresh / "studies"))) == sorted(tiny.recorded(sst2_study))
