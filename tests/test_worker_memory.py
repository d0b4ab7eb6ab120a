"""A worker that stays: model and examples are loaded once per process, however much memory a fine-tune took."""

from __future__ import annotations

import dataclasses
import os
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from joblib.externals.loky import get_reusable_executor

from budget_search.core.config import Recipe
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Job, TrialKey
from budget_search.engine.device import Device
from budget_search.engine.evaluation import EvaluationContext, load, run_job
from budget_search.engine.parallel.workers import Workers
from budget_search.storage.study_folder import StudyFolder
from tests.test_finetune import make_task

RECIPE = Recipe("short", epochs=0.1, train_examples=None, batch_size=8, lr=1e-3, max_length=32, warmup=0.1)
JOBS = [Job(TrialKey(LayerSet((0, 2), 4), 0.5, seed), "selection") for seed in range(6)]
_left_behind: list[torch.Tensor] = []


@dataclass(frozen=True)
class Seen:
    process: int
    loads: int


@pytest.fixture
def context(tmp_path: Path, bert: Path) -> EvaluationContext:
    folder = StudyFolder(tmp_path / "study")
    task = make_task()
    both = dict.fromkeys(("train", "selection"), task.splits["train"])
    dataclasses.replace(task, splits=both).save(folder.examples)
    return EvaluationContext(folder, bert, "tiny-bert", RECIPE, Device("cpu", "fp32"))


def run_and_look(context: EvaluationContext, job: Job) -> Seen:
    assert run_job(context, job).error is None
    return Seen(os.getpid(), load.cache_info().misses)


def run_and_take_memory(context: EvaluationContext, job: Job) -> Seen:
    """As a large model does after a small one: frees hundreds of megabytes below something that stays."""
    seen = run_and_look(context, job)
    freed_later = [torch.ones(2**18) for _ in range(400 if job.key.seed > 1 else 1)]
    _left_behind.append(torch.ones(1_000))
    time.sleep(1.1)  # loky looks at most once a second
    del freed_later
    return seen


def test_one_process_loads_once(context: EvaluationContext) -> None:
    before = load.cache_info().misses
    assert [trial.error for trial in Workers(context, 1).run(JOBS[:3])] == [None] * 3
    assert load.cache_info().misses == before + 1


@pytest.mark.slow
@pytest.mark.skipif(os.uname().sysname != "Linux", reason="only glibc can be told to give memory back")
def test_workers_stay_and_load_once_though_memory_was_taken(context: EvaluationContext) -> None:
    pytest.importorskip("psutil", reason="without it loky replaces nobody")
    get_reusable_executor(kill_workers=True).shutdown(wait=True)
    loads = defaultdict(set)
    for seen in Workers(context, 2)._each(run_and_take_memory, JOBS):
        loads[seen.process].add(seen.loads)
    assert len(loads) == 2
    assert all(counts == {1} for counts in loads.values())
