"""Run evaluations on a Dask cluster: one at a time per worker process, with the study on a shared file system."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from budget_search.core.errors import BudgetSearchError, UsageError
from budget_search.engine.evaluation import EvaluationContext
from budget_search.engine.parallel.workers import Workers

Outcome = TypeVar("Outcome")

CONNECT_SECONDS = 10
# A search that starts together with its cluster waits this long for the first worker.
FIRST_WORKER_SECONDS = 600
# Threads of a process share its random state, so concurrent evaluations would not be reproducible.
_one_at_a_time = threading.Lock()


class ClusterPool:
    """The workers of a Dask scheduler, at most ``most`` at a time; workers may join and leave during a search. Each
    evaluation uses all devices of its worker."""

    sharing = 1

    def __init__(self, client: Any, most: int | None = None) -> None:
        from distributed import KilledWorker

        self.lost: tuple[type[BaseException], ...] = (KilledWorker,)
        self._client = client
        self._most = most
        self._executor = client.get_executor(pure=False)

    @property
    def count(self) -> int:
        there = len(self._client.scheduler_info(n_workers=-1)["workers"])
        return max(1, there if self._most is None else min(there, self._most))

    def submit(self, function: Callable[..., Outcome], *arguments: Any) -> Future[Outcome]:
        """Submit a call; if its worker dies, Dask reruns it on another."""
        future: Future[Outcome] = self._executor.submit(_alone, function, *arguments)
        return future

    def abandon(self) -> None:
        self._executor.shutdown(wait=False)


def workers_for(
    context: EvaluationContext, asked: str, count: int | None = None, scheduler: str | None = None
) -> Workers:
    """The workers of a study: ``count`` workers of the cluster of ``scheduler``, or else ``count`` processes on this
    machine; by default all workers, or one process per slot. ``asked`` is the device as the user named it. Raises
    UsageError if no cluster answers."""
    cluster = connect(scheduler, context.folder.path, count) if scheduler else None
    return Workers(context, count, asked=asked, cluster=cluster)


def connect(scheduler: str, study: Path, most: int | None = None) -> ClusterPool:
    """The cluster of the scheduler at this address, such as ``tcp://127.0.0.1:8786``, once it has a worker.

    Raises UsageError without Dask, a scheduler, or a worker that sees the study's folder.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError("--backend dask needs an extra: pip install 'budget-search[dask]'") from error
    try:
        client = Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(
            f"--scheduler {scheduler}: no Dask scheduler answers there ({reason}); start one with `dask scheduler`"
        ) from error
    try:
        client.wait_for_workers(1, timeout=FIRST_WORKER_SECONDS)
    except TimeoutError as error:
        raise BudgetSearchError(
            f"the Dask scheduler {scheduler} has no workers; start some with `dask worker {scheduler} --nthreads 1`"
        ) from error
    blind = [address for address, sees in client.run(_sees, str(study)).items() if sees is not True]
    if blind:
        raise UsageError(
            f"the Dask worker {blind[0]} does not see the study's folder or has no budget-search; put --studies-dir on "
            "a file system that all workers share, under the same path, and install budget-search on each"
        )
    return ClusterPool(client, most)


def _sees(study: str) -> bool:
    return (Path(study) / "config.json").is_file()


def _alone(function: Callable[..., Outcome], *arguments: Any) -> Outcome:
    with _one_at_a_time:
        return function(*arguments)
