"""The finished trials of a study, kept in order as they come: what every decision is a function of."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from budget_search.trial import Trial, TrialKey


class TrialsByKey:
    """One trial per key, sorted; a re-run after the machine failed takes the place of the failure.

    Adding to ten thousand trials costs what adding to ten does: a search asks for them after every evaluation.
    """

    def __init__(self, trials: Iterable[Trial] = ()) -> None:
        self._keys: list[TrialKey] = []
        self._trials: list[Trial] = []
        for trial in trials:
            self.add(trial)

    def add(self, trial: Trial) -> None:
        place = bisect_left(self._keys, trial.key)
        if self._keys[place : place + 1] == [trial.key]:
            self._trials[place] = trial
            return
        self._keys.insert(place, trial.key)
        self._trials.insert(place, trial)

    def find(self, key: TrialKey) -> Trial | None:
        place = bisect_left(self._keys, key)
        return self._trials[place] if self._keys[place : place + 1] == [key] else None

    def in_order(self) -> list[Trial]:
        return list(self._trials)
