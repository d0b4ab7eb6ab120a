"""The progress of a search on stderr: a bar on a terminal, and one plain line per evaluation."""

from __future__ import annotations

import statistics
import textwrap
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console as Terminal
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from budget_search.core.formatting import duration, pairs, plural, points, tolerance
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Job, Trial, TrialKey
from budget_search.layer_search.confirmation import Confirmations

if TYPE_CHECKING:
    from budget_search.core.config import SearchConfig
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.device import Device
    from budget_search.layer_search.settings import SearchSettings

# The share of layers that a screened or confirmed set typically keeps, for an estimate of the search's length.
TYPICAL_SHARE = 0.6
COLUMNS = 80
SPEED_PERIOD = 30 * 24 * 3600.0


class Console:
    """An observer that prints: plain lines, and on a terminal a status line and a bar below them.

    ``quiet`` prints nothing. rich omits colours without a terminal, or if ``NO_COLOR`` is set.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._terminal = Terminal(stderr=True, highlight=False, soft_wrap=True)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._live: Live | None = None
        self._settings: SearchSettings | None = None
        self._trials: list[Trial] = []
        self._running: set[TrialKey] = set()
        self._workers = 0
        self._reused = 0

    def say(self, text: str) -> None:
        if not self._quiet:
            self._terminal.print(text, markup=False)

    def planned(
        self,
        settings: SearchSettings,
        config: SearchConfig,
        task: EncodedTask,
        device: Device,
        workers: int,
        known: Sequence[Trial],
    ) -> None:
        """Print what will be run, in a few lines."""
        from budget_search.layer_search.verdict import resolution

        sizes = ", ".join(f"{name} {split.examples:,}" for name, split in task.splits.items())
        recipe = config.recipe
        steps = recipe.steps(task.splits["train"].inputs)
        method = f", {pairs(recipe.method)}" if recipe.method else ""
        epochs = f"{recipe.epochs:g} epoch{'' if recipe.epochs == 1 else 's'}"
        self._fact("examples", sizes)
        self._fact(
            "recipe",
            f"{recipe.name}: {epochs}, batch {recipe.batch_size}, lr {recipe.lr:g}, "
            f"{steps:,} steps{method}; {device.precision} on {device.name}, {plural(workers, 'evaluation')} at a time",
        )
        certifiable = resolution(
            task.splits["certification"].examples,
            len(settings.seeds),
            confidence=settings.confidence,
            further=settings.certify,
            weight=task.example_weight("certification"),
        )
        self._fact("resolution", certifiable.explanation)
        self.begin(settings, workers, known)

    def begin(self, settings: SearchSettings, workers: int, known: Sequence[Trial]) -> None:
        """Print the plan, and on a terminal a progress bar."""
        seeds = plural(len(settings.seeds), "seed")
        further = f"; up to {plural(settings.certify, 'more seed')} for the answers" if settings.certify else ""
        if settings.named:
            named = plural(len(settings.named), "named layer set")
            self._fact("plan", f"{named} and the full model, {seeds} each{further}")
        else:
            self._fact(
                "plan",
                f"the full model with {seeds}; up to {settings.evaluations} layer sets with {settings.screen_rung:.2g} "
                f"of the recipe (screens); then the best sets with the full recipe and {seeds}{further}",
            )
        if known:
            self._fact("reused", f"{plural(len(known), 'evaluation')} of this study")
        self._settings, self._trials = settings, list(known)
        self._workers, self._reused = workers, len(known)
        self._show_bar(_expected_equivalents(settings), sum(_equivalents(trial.key) for trial in known))

    def stage(self, text: str) -> None:
        self.say(f"{_clock()} {text}")

    def started(self, job: Job) -> None:
        self._running.add(job.key)
        self._refresh()

    def finished(self, trial: Trial) -> None:
        self.say(f"{_clock()}   {_describe(trial)}")
        self._trials.append(trial)
        self._running.discard(trial.key)
        if self._bar is not None:
            [shown] = self._bar.tasks
            self._bar.advance(shown.id, _equivalents(trial.key))
            if shown.total is not None and shown.completed > shown.total:
                # The search is longer than expected: leave room, so that the bar does not stand at its end.
                self._bar.update(shown.id, total=shown.completed * 1.1)
        self._refresh()

    def answered(self, delta: float, layers: LayerSet) -> None:
        kept = "all layers" if layers.is_full else f"{plural(layers.depth, 'layer')} ({layers.compact})"
        self.say(f"{_clock()} within {tolerance(delta / 100)}: {kept} of {layers.total}")

    def close(self) -> None:
        if self._live is not None:
            self._live.stop()
        self._bar = self._live = None

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

    def _fact(self, name: str, text: str) -> None:
        """Print a name and a text, wrapped to the width of a report."""
        margin = f"  {name:<11}"
        self.say(textwrap.fill(text, COLUMNS, initial_indent=margin, subsequent_indent=" " * len(margin)))

    def _status(self) -> str:
        """The line above the bar."""
        reused = f", {self._reused:,} reused" if self._reused else ""
        return f"{self._so_far()}; {len(self._running)} of {plural(self._workers, 'worker')} busy{reused}"

    def _so_far(self) -> str:
        """The smallest set that every seed confirmed within the largest delta."""
        if self._settings is None:
            return ""
        confirmations = Confirmations(self._trials, self._settings.total, self._settings.seeds)
        lost = {layers: statistics.fmean(confirmations.degradations(layers)) for layers in confirmations.sets}
        holding = [layers for layers in lost if lost[layers] <= max(self._settings.deltas)]
        if not holding:
            return "nothing confirmed yet"
        best = min(holding, key=lambda layers: (layers.depth, lost[layers]))
        return f"best so far: {best.depth} of {best.total} layers, {points(lost[best])} points lost"

    def _show_bar(self, total: float, completed: float) -> None:
        if self._quiet or not self._terminal.is_terminal:
            return
        self._bar = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.1f} of ~{task.total:.0f} fine-tunes"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self._terminal,
            expand=True,
            # Evaluations are few, so all of them count for the estimate of the speed.
            speed_estimate_period=SPEED_PERIOD,
        )
        task = self._bar.add_task("", total=max(total, completed))
        self._bar.advance(task, completed)
        bar = self._bar
        self._live = Live(
            get_renderable=lambda: Group(Text(self._status()), bar), console=self._terminal, transient=True
        )
        self._live.start()


def _expected_equivalents(settings: SearchSettings) -> float:
    """A rough estimate of the cost of a search, in full fine-tunes of the full model."""
    if settings.named:
        return len(settings.seeds) * (1 + sum(layers.depth / settings.total for layers in settings.named))
    screens = settings.screen_rung * (1 + settings.evaluations * TYPICAL_SHARE)
    # About one candidate in three is stopped after a seed or two.
    confirmations = len(settings.deltas) * (len(settings.seeds) + 1) * TYPICAL_SHARE
    return len(settings.seeds) + screens + confirmations


def _equivalents(key: TrialKey) -> float:
    """The cost of an evaluation, in full fine-tunes of the full model."""
    return key.rung * key.layers.depth / key.layers.total


def _describe(trial: Trial) -> str:
    # The seed is left out of screens, which all have the same.
    kind = f"full run, seed {trial.key.seed}" if trial.split == "certification" else f"screen {trial.rung:.2g}"
    outcome = trial.error or "failed" if trial.score is None else f"{points(trial.score)} on {trial.split}"
    collapsed = ", collapsed" if trial.state == "collapsed" else ""
    return f"layers {trial.layers}  {kind}: {outcome}{collapsed} ({duration(trial.train_seconds)})"


def _clock() -> str:
    return time.strftime("%H:%M:%S")
