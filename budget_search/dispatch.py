"""Where evaluations run: in this process, or one per worker process on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from joblib import Parallel, delayed
from joblib.externals.loky.process_executor import TerminatedWorkerError

from budget_search.evaluate import Workplace, run_job
from budget_search.trial import Job, Trial


class Workers:
    """Runs jobs and yields each trial as it finishes, in any order.

    On a CPU every worker calculates with one thread: two threads of one process wait for each other whenever another
    process has the second core.
    """

    def __init__(self, workplace: Workplace, count: int) -> None:
        self.workplace = workplace
        self.count = count

    def run(self, jobs: Sequence[Job]) -> Iterator[Trial]:
        if self.count == 1 or len(jobs) == 1:
            yield from (_run_here(self.workplace, job) for job in jobs)
            return
        yield from self._run_beside_each_other(jobs)

    def _run_beside_each_other(self, jobs: Sequence[Job]) -> Iterator[Trial]:
        waiting = {job.key: job for job in jobs}
        calls = (delayed(run_job)(self.workplace, job) for job in jobs)
        try:
            with Parallel(
                n_jobs=self.count,
                batch_size=1,
                pre_dispatch=self.count,
                return_as="generator_unordered",
                inner_max_num_threads=1,
                backend="loky",
            ) as pool:
                for trial in pool(calls):
                    del waiting[trial.key]
                    yield trial
        except TerminatedWorkerError:
            # Nobody can tell which job it was: all that had not finished come back as the machine's failures.
            for job in waiting.values():
                yield Trial(job.key, job.split, "failed", error="its worker process was killed", machine_failure=True)


def _run_here(workplace: Workplace, job: Job) -> Trial:
    import torch

    if workplace.device.kind == "cpu":
        torch.set_num_threads(1)
    return run_job(workplace, job)
