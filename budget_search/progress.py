"""How a search tells how it goes: a bar on a terminal, one plain line per evaluation elsewhere. Always on stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from budget_search.layers import LayerSet
from budget_search.trial import FULL_RUNG, Job, Trial
from budget_search.wording import duration, plural, points

if TYPE_CHECKING:
    from budget_search.config import SearchConfig
    from budget_search.device import Device
    from budget_search.encode import EncodedTask
    from budget_search.search import Plan

# A screened or confirmed set keeps about this share of the layers; only for guessing how long a search will take.
TYPICAL_SHARE = 0.6


class Console:
    """Tells people. ``quiet`` says nothing but the first line."""

    def __init__(self, quiet: bool = False) -> None:
        self._terminal = Terminal(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._best = ""
        self._done = 0.0

    def say(self, text: str) -> None:
        if not self._quiet:
            self._terminal.print(text, markup=False)

    def planned(
        self, plan: Plan, config: SearchConfig, task: EncodedTask, device: Device, workers: int, known: int
    ) -> None:
        """Before anything long: what will be done, in a few lines."""
        sizes = ", ".join(f"{name} {split.examples:,}" for name, split in task.splits.items())
        recipe = config.recipe
        steps = recipe.steps(task.splits["train"].examples)
        self.say(f"  examples     {sizes}")
        self.say(
            f"  recipe       {recipe.name}: {recipe.epochs:g} epochs, batch {recipe.batch_size}, lr {recipe.lr:g}, "
            f"{steps:,} steps; {device.precision} on {device.name}, {plural(workers, 'evaluation')} at a time"
        )
        seeds = plural(len(plan.seeds), "seed")
        if plan.named:
            self.say(f"  to do        {plural(len(plan.named), 'named layer set')} and the full model, {seeds} each")
        else:
            self.say(
                f"  to do        the full model with {seeds}; screens of {plan.screen_rung:.2g} of the recipe "
                f"(up to {plan.evaluations} layer sets); then the best sets in full with {seeds}"
            )
        if known:
            self.say(f"  known        {plural(known, 'evaluation')} of this study are reused")

    def stage(self, text: str) -> None:
        self.say(f"{_clock()} {text}")

    def started(self, jobs: Sequence[Job]) -> None:
        if self._quiet or not self._terminal.is_terminal:
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TimeRemainingColumn(), console=self._terminal, transient=True,
            )  # fmt: skip
            self._bar.start()
        self._task = self._bar.add_task(self._best or "evaluations", total=len(jobs))

    def finished(self, trial: Trial) -> None:
        self.say(f"{_clock()}   {_describe(trial)}")
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)
            if self._bar.tasks[-1].finished:
                self.close()

    def answered(self, delta: float, layers: LayerSet) -> None:
        kept = "all layers" if layers.is_full else f"{plural(layers.depth, 'layer')} ({layers.compact})"
        self._best = f"within {delta:g}: {kept}"
        self.say(f"{_clock()} within {points(delta)} points: {kept} of {layers.total}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _describe(trial: Trial) -> str:
    kind = "full run" if trial.rung == FULL_RUNG else f"screen {trial.rung:.2g}"
    outcome = trial.error or "failed" if trial.score is None else f"{points(trial.score)} on {trial.split}"
    collapsed = ", collapsed" if trial.state == "collapsed" else ""
    return (
        f"layers {trial.layers}  {kind}, seed {trial.key.seed}: {outcome}{collapsed} ({duration(trial.train_seconds)})"
    )


def _clock() -> str:
    return time.strftime("%H:%M:%S")
