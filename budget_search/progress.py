"""How a search tells how it goes: a bar on a terminal, one plain line per evaluation elsewhere. Always on stderr."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console as Terminal
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from budget_search.layers import LayerSet
from budget_search.trial import FULL_RUNG, Trial, TrialKey
from budget_search.wording import duration, plural, points

if TYPE_CHECKING:
    from budget_search.config import SearchConfig
    from budget_search.device import Device
    from budget_search.encode import EncodedTask
    from budget_search.loop import Plan

# A screened or confirmed set keeps about this share of the layers; only for guessing how long a search will take.
TYPICAL_SHARE = 0.6


class Console:
    """Tells people: plain lines, and on a terminal a bar below them. ``quiet`` says nothing."""

    def __init__(self, quiet: bool = False) -> None:
        self._terminal = Terminal(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def say(self, text: str) -> None:
        if not self._quiet:
            self._terminal.print(text, markup=False)

    def planned(
        self, plan: Plan, config: SearchConfig, task: EncodedTask, device: Device, workers: int, known: Sequence[Trial]
    ) -> None:
        """Before anything long: what will be done, in a few lines."""
        from budget_search.verdict import resolution

        sizes = ", ".join(f"{name} {split.examples:,}" for name, split in task.splits.items())
        recipe = config.recipe
        steps = recipe.steps(task.splits["train"].examples)
        self.say(f"  examples     {sizes}")
        self.say(
            f"  recipe       {recipe.name}: {recipe.epochs:g} epochs, batch {recipe.batch_size}, lr {recipe.lr:g}, "
            f"{steps:,} steps; {device.precision} on {device.name}, {plural(workers, 'evaluation')} at a time"
        )
        seeds = plural(len(plan.seeds), "seed")
        certifiable = resolution(task.splits["certification"].examples, len(plan.seeds), confidence=plan.confidence)
        self.say(f"  to expect    {certifiable.explanation}")
        if plan.named:
            self.say(f"  to do        {plural(len(plan.named), 'named layer set')} and the full model, {seeds} each")
        else:
            self.say(
                f"  to do        the full model with {seeds}; screens of {plan.screen_rung:.2g} of the recipe "
                f"(up to {plan.evaluations} layer sets); then the best sets in full with {seeds}"
            )
        if known:
            self.say(f"  known        {plural(len(known), 'evaluation')} of this study, reused")
        self._show_bar(_expected(plan), sum(_share(trial.key) for trial in known))

    def stage(self, text: str) -> None:
        self.say(f"{_clock()} {text}")

    def finished(self, trial: Trial) -> None:
        self.say(f"{_clock()}   {_describe(trial)}")
        if self._bar is not None:
            self._bar.advance(self._task, _share(trial.key))
            shown = self._bar.tasks[0]
            if shown.total is not None and shown.completed > shown.total:
                # It takes more than expected: admit it, instead of standing at the end.
                self._bar.update(self._task, total=shown.completed * 1.1)

    def answered(self, delta: float, layers: LayerSet) -> None:
        kept = "all layers" if layers.is_full else f"{plural(layers.depth, 'layer')} ({layers.compact})"
        self.say(f"{_clock()} within {points(delta)} points: {kept} of {layers.total}")
        if self._bar is not None:
            self._bar.update(self._task, description=f"within {delta:g}: {kept}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _show_bar(self, total: float, completed: float) -> None:
        if self._quiet or not self._terminal.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.1f} of about {task.total:.0f} full fine-tunes"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._terminal,
            transient=True,
        )
        self._task = self._bar.add_task("no answer yet", total=max(total, completed))
        self._bar.advance(self._task, completed)
        self._bar.start()


def _expected(plan: Plan) -> float:
    """A guess of what a search takes, in full fine-tunes of the full model."""
    if plan.named:
        return len(plan.seeds) * (1 + sum(layers.depth / plan.total for layers in plan.named))
    screens = plan.screen_rung * (1 + plan.evaluations * TYPICAL_SHARE)
    # One candidate in three or so fails after a seed or two.
    confirmations = len(plan.deltas) * (len(plan.seeds) + 1) * TYPICAL_SHARE
    return len(plan.seeds) + screens + confirmations


def _share(key: TrialKey) -> float:
    """What an evaluation takes, in full fine-tunes of the full model."""
    return key.rung * key.layers.depth / key.layers.total


def _describe(trial: Trial) -> str:
    kind = "full run" if trial.rung == FULL_RUNG else f"screen {trial.rung:.2g}"
    outcome = trial.error or "failed" if trial.score is None else f"{points(trial.score)} on {trial.split}"
    collapsed = ", collapsed" if trial.state == "collapsed" else ""
    return (
        f"layers {trial.layers}  {kind}, seed {trial.key.seed}: {outcome}{collapsed} ({duration(trial.train_seconds)})"
    )


def _clock() -> str:
    return time.strftime("%H:%M:%S")
