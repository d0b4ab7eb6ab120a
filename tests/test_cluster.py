"""Evaluations on a real Dask cluster on this machine: one of its workers dies half way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from budget_search.engine.parallel.dask_workers import connect
from tests import tiny
from tests.test_end_to_end import read_report

# Smaller models start from weights that another worker has written.
OPTIONS = [*tiny.search_options("sst2"), "--layers", "0-1", "0", "--delta", "0.05", "--dropping", "finetuned"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a scheduler with two workers, as users start them; on the loopback interface only."""
    pytest.importorskip("distributed", reason="the extra budget-search[dask] is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    root = str(Path(__file__).parent.parent)
    env = tiny.environment(tmp_path, PYTHONPATH=root, DASK_DISTRIBUTED__WORKER__DAEMON="False")

    def dask(*options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dask", *options, "--host", "127.0.0.1", "--no-dashboard"]
        log = (tmp_path / "dask.log").open("a")
        return subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log, text=True)

    processes = [dask("scheduler", "--port", str(port))]
    processes += [dask("worker", address, "--nthreads", "1", "--memory-limit", "0") for _ in range(2)]
    try:
        yield address
    finally:
        for process in reversed(processes):
            # A nanny takes its worker along when it is asked to end, not when it is killed.
            process.terminate()
        for process in processes:
            process.wait(timeout=30)


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_its_evaluation_run_again(
    cluster: str, tmp_path: Path, bert: Path, sst2: Path
) -> None:
    tiny.context(tmp_path, sst2=sst2, bert=bert)
    options = [*OPTIONS, "--workers", "2", "--backend", "dask", "--scheduler", cluster]
    workers = processes_of(cluster)
    assert len(workers) == 2
    with tiny.ended(tiny.start(options, tmp_path, tiny.environment(tmp_path))) as process:
        tiny.wait_for(lambda: recorded(tmp_path) >= 1, process)
        os.kill(min(workers), signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 0, err
    replaced = processes_of(cluster)
    assert len(replaced) == 2
    assert len(replaced & workers) == 1
    assert "to stay within" in " ".join(out.split())
    study = tiny.only_study(tmp_path / "studies")
    beside = read_report(study)
    assert len(tiny.recorded(study)) == len(set(tiny.recorded(study))) == 6
    assert [connect(cluster, study, most).count for most in (None, 1, 2, 40)] == [2, 1, 2, 2]
    # The same scores as in this process, to the last digit.
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert tiny.command(*OPTIONS, "--study", "alone", "--quiet") == 0
    finally:
        os.chdir(before)
    assert scores(read_report(study.with_name("alone"))) == scores(beside)


def processes_of(scheduler: str) -> set[int]:
    """Of its workers, once there are two."""
    from distributed import Client

    with Client(scheduler, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        return set(client.run(os.getpid).values())


def recorded(folder: Path) -> int:
    studies = [path.parent for path in folder.glob("studies/[a-z]*/config.json")]
    return len(tiny.recorded(studies[0])) if studies else 0


def scores(report: dict) -> set[tuple[tuple[int, ...], int, float]]:
    return {(tuple(trial["kept"]), trial["seed"], trial["score"]) for trial in report["trials"]}


@pytest.mark.slow
def test_no_scheduler_there(tmp_path: Path, bert: Path, sst2: Path) -> None:
    pytest.importorskip("distributed", reason="the extra budget-search[dask] is not installed")
    tiny.context(tmp_path, sst2=sst2, bert=bert)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        options = [*OPTIONS, "--quiet", "--backend", "dask", "--scheduler", address]
        done = tiny.run(options, tmp_path, tiny.environment(tmp_path, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="2s"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert address in line
    assert "dask scheduler" in line
