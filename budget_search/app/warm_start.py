"""Warm start: first screen the best layer sets of another study, and report whether that helped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from budget_search.app.study_report import read_report
from budget_search.core.errors import UsageError
from budget_search.core.formatting import plural, printable, tolerance
from budget_search.core.layers import LayerSet
from budget_search.storage.study_folder import find_study

if TYPE_CHECKING:
    from budget_search.layer_search.state import SearchState
    from budget_search.report.report import Report

MOST_SETS = 6
"""How many sets are taken over: about a third of those that every search screens."""


@dataclass(frozen=True)
class WarmStart:
    """The good layer sets of a finished study of a model with ``total`` layers, the best first."""

    study: str
    total: int
    sets: tuple[LayerSet, ...]

    def require_depth(self, total: int) -> None:
        """Raises UsageError for a model with another number of layers: its layers do not correspond to these."""
        if self.total != total:
            raise UsageError(
                f"--start-from {self.study}: its model has {self.total} layers, this one has {total}; "
                "name a study of a model with as many layers, or leave the option out"
            )


def warm_start_from(name: str, studies_dir: str) -> WarmStart:
    """From a study by its name, the beginning of its name, or its path. Raises UsageError and StudyError."""
    folder = find_study(name, studies_dir)
    report = read_report(folder)
    return WarmStart(folder.path.name, report.layers_total, good_sets(report))


def good_sets(report: Report) -> tuple[LayerSet, ...]:
    """The answers, then the best measured set of every other depth: the depths nearest to an answer come first."""
    total = report.layers_total
    depths = [result.depth for result in report.results if not result.is_full] or [total]
    frontier = sorted(
        (point for point in report.frontier if point.depth < total),
        key=lambda point: (min(abs(point.depth - depth) for depth in depths), -point.rung, point.degradation or 0.0),
    )
    sets = [*(result.kept for result in report.results if not result.is_full), *(point.kept for point in frontier)]
    return tuple(LayerSet(kept, total) for kept in dict.fromkeys(sets))[:MOST_SETS]


def warm_start_note(state: SearchState, study: str) -> str:
    """A sentence for the report: which answers are among the other study's sets, and how good the rest of them were."""
    sets = plural(len(state.settings.start), "layer set")
    return f"Started from {sets} of {printable(study)}: {'; '.join(_outcomes(state))}."


def _outcomes(state: SearchState) -> Iterator[str]:
    screens = state.screens
    unchanged = screens.tolerance(0.0)
    lost = {trial.layers: unchanged.degradation(trial) for trial in screens.trials if not trial.layers.is_full}
    for delta, answer in sorted(state.answers().items()):
        within = f"within {tolerance(delta / 100)}"
        same_depth = sorted((lost[layers], layers) for layers in lost if layers.depth == answer.depth)
        ranks = [rank for rank, (_, layers) in enumerate(same_depth, start=1) if layers in state.settings.start]
        if answer in state.settings.start:
            yield f"the answer {within} is one of them"
        elif answer.is_full:
            yield f"none is accepted {within}"
        elif ranks:
            yield (
                f"the answer {within} is another set; the best of them at its depth ranks {ranks[0]} of "
                f"{len(same_depth)} screened"
            )
        else:
            yield f"none of them has the depth of the answer {within}"
