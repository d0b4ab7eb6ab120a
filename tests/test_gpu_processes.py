"""Several GPUs without any: which process runs what, and what its death means. Names of GPUs that are none will do."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from budget_search.engine.gpu.gpu_processes import GpuProcesses

# This module imports no torch, so that its functions tell whether the process has been given its GPU before it had it.


def beside(count: int, folder: Path) -> tuple[str, int, bool]:
    """Returns when so many evaluations run at the same time."""
    early = "torch" in sys.modules
    (folder / f"{os.getpid()}-{threading.get_ident()}").touch()
    while len(list(folder.iterdir())) < count:
        time.sleep(0.01)
    return os.environ["CUDA_VISIBLE_DEVICES"], os.getpid(), early


def die() -> None:
    os._exit(1)


def fail() -> None:
    raise EOFError("a file ends too early")


@pytest.fixture
def pool() -> Iterator[GpuProcesses]:
    made = GpuProcesses(("2", "GPU-5f"), 4, lambda: 0)
    yield made
    made.abandon()


def test_every_gpu_has_a_process_in_which_lanes_run_side_by_side(pool: GpuProcesses, tmp_path: Path) -> None:
    assert (pool.count, pool.sharing) == (4, 2)
    found = [each.result() for each in [pool.submit(beside, 4, tmp_path) for _ in range(4)]]
    assert Counter(gpu for gpu, _, _ in found) == {"2": 2, "GPU-5f": 2}
    assert len({(gpu, process) for gpu, process, _ in found}) == 2
    assert os.getpid() not in {process for _, process, _ in found}
    assert not any(early for _, _, early in found)
    again = [each.result() for each in [pool.submit(os.getpid) for _ in range(8)]]
    assert set(again) <= {process for _, process, _ in found}, "they last"


def test_a_process_that_dies_is_replaced_and_an_error_is_not_taken_for_a_death(pool: GpuProcesses) -> None:
    first = pool.submit(os.getpid).result()
    with pytest.raises(EOFError, match="a file ends too early"):
        pool.submit(fail).result()
    assert pool.submit(os.getpid).result() == first
    with pytest.raises(pool.lost):
        pool.submit(die).result()
    assert pool.submit(os.getpid).result() != first


def test_what_nobody_waits_for_ends(pool: GpuProcesses) -> None:
    process = pool.submit(os.getpid).result()
    endless = pool.submit(time.sleep, 3_600)
    pool.abandon()
    with pytest.raises(pool.lost):
        endless.result()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert pool.submit(int, "7").result() == 7


def test_a_pool_without_a_number_measures_on_the_first_gpu() -> None:
    pool = GpuProcesses(("0", "1", "2"), None, visible_number)
    try:
        assert (pool.count, pool.sharing) == (12, 4)
    finally:
        pool.abandon()


def visible_number() -> int:
    return 4 + int(os.environ["CUDA_VISIBLE_DEVICES"])
