"""Who is told how a command goes: the command line's progress, or nobody."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from budget_search.core.config import SearchConfig
from budget_search.core.trial import Trial
from budget_search.data.tokenization import EncodedTask
from budget_search.engine.device import Device
from budget_search.layer_search.settings import SearchObserver, SearchSettings


class Observer(SearchObserver, Protocol):
    """A search's observer that is also told what was decided before the first evaluation."""

    def planned(
        self,
        settings: SearchSettings,
        config: SearchConfig,
        task: EncodedTask,
        device: Device,
        workers: int,
        known: Sequence[Trial],
    ) -> None: ...
