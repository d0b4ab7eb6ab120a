"""Run the search of an open study with any evaluator, record its trials and measure its time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from budget_search.app.request import Request
from budget_search.core.errors import StudyError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Job, Trial
from budget_search.layer_search.settings import SearchObserver, SearchSettings
from budget_search.storage.database import LockWait
from budget_search.storage.study_folder import StudyFolder, stored_config
from budget_search.storage.study_store import StudyStore

if TYPE_CHECKING:
    from budget_search.layer_search.loop import Search
    from budget_search.layer_search.verdict import Judgement
    from budget_search.report.evidence import Evidence


class Evaluator(Protocol):
    """Runs evaluations; ``untaken`` are those that had finished when the search ended early."""

    @property
    def untaken(self) -> list[Trial]: ...

    def run(self, jobs: Iterable[Job | None]) -> Iterator[Trial]:
        """Each job's trial as it finishes, in any order. A job of None means that the next depends on running ones."""
        ...


@dataclass(frozen=True)
class Clock:
    """Time spent on a study: ``seconds_before`` by earlier commands, plus the time since ``began`` (monotonic)."""

    seconds_before: float
    began: float

    @classmethod
    def of(cls, store: StudyStore, began: float) -> Clock:
        return cls(float(store.facts.get("wall_seconds", 0.0)), began)

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.began


def open_store(folder: StudyFolder, fingerprint: str, request: Request, observer: SearchObserver) -> StudyStore:
    """The study's trials. Raises StudyError where the storage holds another study of that name."""
    total = stored_config(folder)["facts"]["layers_total"]
    wait = LockWait(60 * request.storage_timeout, observer.stage)
    store = StudyStore.open(folder.path.name, total, folder=folder, storage=request.storage, wait=wait)
    if store.facts.get("fingerprint", fingerprint) != fingerprint:
        raise StudyError(
            f"the storage holds a study {folder.path.name} of another task, model or recipe; "
            "choose another --study name"
        )
    store.set_facts(fingerprint=fingerprint)
    store.record_all()
    return store


def run_search(
    settings: SearchSettings,
    store: StudyStore,
    evaluator: Evaluator,
    evidence: Evidence,
    observer: SearchObserver,
    clock: Clock,
) -> Search:
    """Evaluate until every delta has its answer or the search budget is spent. Raises BudgetSearchError."""
    from budget_search.layer_search.loop import Search
    from budget_search.layer_search.state import SearchState

    def compare(layers: LayerSet, confidence: float) -> Judgement:
        confirmations = state.confirmations
        among = {each: confirmations.seeds_of(each) for each in confirmations.uncollapsed}
        judgement = evidence.compare(layers, "certification", confidence, confirmations.seeds_of(layers), among)
        assert judgement is not None, "every confirmation is scored on certification"
        return judgement

    def run_jobs(jobs: Iterable[Job | None]) -> Iterator[Trial]:
        for trial in evaluator.run(jobs):
            yield trial
            store.set_facts(wall_seconds=clock.seconds)

    state = SearchState(settings, store, compare, lambda: evidence.gain("certification"))
    search = Search(state, run_jobs, observer)
    try:
        search.run()
    finally:
        for trial in evaluator.untaken:
            store.keep(trial)
    return search
