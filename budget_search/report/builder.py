"""Build the Report of a study from its trials, its per-example outputs and the measurements of its answers."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from budget_search.core.formatting import timestamp
from budget_search.core.layers import LayerSet
from budget_search.core.trial import EVALUATION_COST, FULL_RUNG
from budget_search.layer_search import verdict
from budget_search.layer_search.confirmation import Confirmations
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.verdict import Judgement, resolution, verdict_word
from budget_search.report.entries import (
    Baseline,
    Cost,
    FrontierPoint,
    GainKept,
    Reference,
    Resolution,
    Result,
    SplitSummary,
    TrialRow,
    VarianceShares,
)
from budget_search.report.evidence import Evidence
from budget_search.report.inference import InferencePoint, PeakThroughput, ThroughputPoint
from budget_search.report.rejected import nearest_rejected
from budget_search.report.report import SCHEMA_VERSION, Report
from budget_search.report.sentences import bound_by, why_not_smaller

if TYPE_CHECKING:
    from budget_search.data.tokenization import EncodedTask


@dataclass(frozen=True)
class ModelMeasurements:
    """The size of one rebuilt model, the FLOPs of one example, and its speed."""

    parameters: int | None
    flops: int | None
    inference: tuple[InferencePoint, ...]
    throughput: ThroughputPoint | None = None
    peak_throughput: PeakThroughput | None = None


@dataclass(frozen=True)
class ReportBuilder:
    """The sources of a report's numbers; ``fine_tuned`` is the number of evaluations that were run for this report.

    ``layer_parameters`` is empty where the layers' sizes are unknown.
    """

    state: SearchState
    fine_tuned: int
    evidence: Evidence
    measured: Mapping[LayerSet, ModelMeasurements]
    layer_parameters: Sequence[int]

    @property
    def total(self) -> int:
        return self.state.settings.total

    @property
    def full(self) -> LayerSet:
        return LayerSet.full(self.total)

    @cached_property
    def confirmations(self) -> Confirmations:
        return self.state.confirmations

    @cached_property
    def resolution(self) -> verdict.Resolution:
        """The smallest delta that these splits and seeds can certify, in points."""
        settings = self.state.settings
        sets = (self.full, *self.confirmations.uncollapsed)
        scores = [list(self.confirmations.scores(layers).values()) for layers in sets]
        return resolution(
            self.evidence.examples("certification"),
            len(settings.seeds),
            scores,
            confidence=settings.confidence,
            further=settings.certify,
            weight=self.evidence.example_weight("certification"),
        )

    def baseline(self) -> Baseline:
        scores = list(self.confirmations.scores(self.full).values())
        held_out = self.evidence.held_out_scores(self.full, self.confirmations.seeds_of(self.full))
        measured, gain = self.measured[self.full], self.state.gain()
        return Baseline(
            score=statistics.fmean(scores),
            std=_std(scores),
            seeds=len(scores),
            metrics=self.evidence.means(self.full, self.confirmations.seeds_of(self.full)),
            held_out_score=_mean(held_out),
            held_out_std=_std(held_out),
            parameters=measured.parameters,
            flops=measured.flops,
            inference=measured.inference,
            throughput=measured.throughput,
            peak_throughput=measured.peak_throughput,
            fine_tune_seconds=self._train_seconds(self.full),
            constant_score=gain.constant if gain else None,
        )

    def result(self, delta: float, layers: LayerSet) -> Result:
        """The answer for a delta, in points."""
        settings = self.state.settings
        scores = list(self.confirmations.scores(layers).values())
        rejected, bound = nearest_rejected(self.state, layers, delta), self.state.binding_limit(delta)
        return Result(
            delta=round(delta / 100, 12),
            criterion=settings.criterion,
            kept=layers.kept,
            dropped=layers.dropped,
            depth=layers.depth,
            confirmed=True,
            score=statistics.fmean(scores),
            std=_std(scores),
            seeds=len(scores),
            metrics=self.evidence.means(layers, self.confirmations.seeds_of(layers)),
            confidence=settings.confidence,
            held_out_score=_mean(self.evidence.held_out_scores(layers, self.confirmations.seeds_of(layers))),
            why_not_smaller=(
                why_not_smaller(delta / 100, rejected)
                if bound is None
                else bound_by(delta / 100, settings.limits, bound)
            ),
            collapsed=self.confirmations.collapsed(layers),
            exported_seed=self.confirmations.median_seed(layers),
            nearest_rejected=rejected,
            binding=bound,
            changes=None if layers.is_full else self.evidence.changes(layers, "certification"),
            **self._verdict(layers, delta),
            **self._savings(layers),
        )

    def _verdict(self, layers: LayerSet, delta: float) -> dict[str, Any]:
        """The fields of a result that compare it with the baseline; the full model loses nothing."""
        settings, gain = self.state.settings, self.state.gain()
        certification = None if layers.is_full else self.state.judge(layers, delta)
        held_out = self._held_out_loss(layers)
        word = verdict_word(
            layers,
            delta,
            certification,
            criterion=settings.criterion,
            held_out_degradation=held_out["held_out_degradation"],
            smallest_certifiable=self.resolution.smallest_certifiable_delta,
        )
        return {
            "verdict": word,
            "certified": word == "certified",
            "variance_shares": _variance_shares(certification),
            "gain_kept": gain and GainKept.of(gain, certification),
            "degradation": 0.0 if certification is None else certification.degradation,
            "degradation_upper": 0.0 if certification is None else certification.upper,
            "probability_within": 1.0
            if certification is None
            else self.state.estimate(layers).probability_within(delta),
            **held_out,
        }

    def _held_out_loss(self, layers: LayerSet) -> dict[str, float | None]:
        """The degradation on held_out and its bound; None where that was not scored. The full model loses nothing."""
        seeds = self.confirmations.seeds_of(layers)
        held_out = self.evidence.compare(layers, "held_out", self.state.settings.confidence, seeds)
        if held_out is None:
            return {"held_out_degradation": None, "held_out_degradation_upper": None}
        return {
            "held_out_degradation": 0.0 if layers.is_full else held_out.degradation,
            "held_out_degradation_upper": 0.0 if layers.is_full else held_out.upper,
        }

    def _savings(self, layers: LayerSet) -> dict[str, Any]:
        """The fields of a result that say how large and how fast its model is."""
        baseline, measured = self.measured[self.full], self.measured[layers]
        return {
            "parameters": measured.parameters,
            "parameters_saved": _saved(measured.parameters, baseline.parameters),
            "flops_saved": _saved(measured.flops, baseline.flops),
            "inference": () if layers.is_full else measured.inference,
            "throughput": None if layers.is_full else measured.throughput,
            "peak_throughput": None if layers.is_full else measured.peak_throughput,
            "fine_tune_speedup": self._speedup(layers),
        }

    def frontier(self) -> list[FrontierPoint]:
        """The best measured set of every depth: a confirmed set if there is one, else the best screen."""
        points = []
        for depth in range(1, self.total + 1):
            point = self._confirmed_best(depth) or self._screened_best(depth)
            if point is not None:
                points.append(point)
        return points

    def trial_rows(self) -> list[TrialRow]:
        return [
            TrialRow(
                kept=trial.layers.kept,
                rung=trial.rung,
                seed=trial.key.seed,
                split=trial.split,
                state=trial.state,
                score=trial.score,
                train_seconds=trial.train_seconds,
                error=trial.error,
            )
            for trial in self.state.history
        ]

    def cost(self, answers: Sequence[LayerSet], wall_seconds: float) -> Cost:
        """The cost of the study, in arithmetic relative to one full fine-tune of the full model."""
        baseline = self.confirmations.runs(self.full)
        unit = statistics.fmean(trial.training_work for trial in baseline)
        training = sum(trial.training_work for trial in self.state.history) / unit
        reading = sum(trial.evaluation_tokens * trial.layers.depth for trial in self.state.history) / unit
        scoring = statistics.fmean(trial.evaluation_tokens for trial in baseline) * self.total / unit
        distinct = {self.full, *answers}
        unavoidable = sum(trial.training_work for layers in distinct for trial in self.confirmations.runs(layers))
        return Cost(
            fine_tunes=len(self.state.history),
            full_fine_tune_equivalents=training + reading * EVALUATION_COST,
            training_equivalents=training,
            unavoidable_equivalents=unavoidable / unit,
            wall_seconds=wall_seconds,
            device_seconds=sum(trial.train_seconds + trial.evaluation_seconds for trial in self.state.history),
            reused=len(self.state.history) - self.fine_tuned,
            equivalents_per_fine_tune=1 + scoring * EVALUATION_COST,
        )

    def parameters(self, layers: LayerSet) -> int | None:
        """The number of parameters of any set, without building the model; None where the layers' sizes are unknown."""
        whole = self.measured[self.full].parameters
        if whole is None or not self.layer_parameters:
            return whole if layers.is_full else None
        return whole - sum(self.layer_parameters[index] for index in layers.dropped)

    def _confirmed_best(self, depth: int) -> FrontierPoint | None:
        sets = [layers for layers in (*self.confirmations.sets, self.full) if layers.depth == depth]
        if not sets:
            return None
        best = min(sets, key=lambda layers: (self._lost(layers), layers))
        scores = list(self.confirmations.scores(best).values())
        return FrontierPoint(
            depth, best.kept, statistics.fmean(scores), _std(scores), len(scores), FULL_RUNG, self._lost(best),
            self.parameters(best),
        )  # fmt: skip

    def _screened_best(self, depth: int) -> FrontierPoint | None:
        screens = self.state.screens
        tolerance = screens.tolerance(0.0)
        scored = [trial for trial in screens.trials if trial.layers.depth == depth and trial.score is not None]
        if not scored:
            return None
        best = min(scored, key=lambda trial: (tolerance.degradation(trial), trial.key))
        assert best.score is not None
        return FrontierPoint(
            depth, best.layers.kept, best.score, None, 1, best.rung, tolerance.degradation(best),
            self.parameters(best.layers),
        )  # fmt: skip

    def _lost(self, layers: LayerSet) -> float:
        return statistics.fmean(self.confirmations.degradations(layers))

    def _train_seconds(self, layers: LayerSet) -> float:
        """Training seconds of the fastest run, the one least disturbed by other processes."""
        return min(trial.train_seconds for trial in self.confirmations.runs(layers))

    def _speedup(self, layers: LayerSet) -> float | None:
        """Speed-up of the whole training, including the full model's if the smaller one needs its weights or outputs;
        None if the smaller one is not trained."""
        own, full = self._train_seconds(layers), self._train_seconds(self.full)
        inherited = full if self.state.settings.builds_on_full and not layers.is_full else 0.0
        return full / (inherited + own) if own > 0 else None


def split_summaries(task: EncodedTask) -> dict[str, SplitSummary]:
    return {
        name: SplitSummary(split.examples, task.label_shares(name), task.constant_score(name))
        for name, split in task.splits.items()
    }


def build_report(
    *,
    builder: ReportBuilder,
    answers: Mapping[float, LayerSet],
    identity: Mapping[str, Any],
    wall_seconds: float,
    notes: Sequence[str],
    references: Sequence[Reference] = (),
) -> Report:
    """``identity`` holds the fields of the report that say what was searched: study, task, model, splits and so on."""
    smallest = builder.resolution.smallest_certifiable_delta
    return Report(
        schema_version=SCHEMA_VERSION,
        layers_total=builder.total,
        finished=timestamp(),
        baseline=builder.baseline(),
        results=tuple(builder.result(delta, layers) for delta, layers in sorted(answers.items())),
        frontier=tuple(builder.frontier()),
        trials=tuple(builder.trial_rows()),
        cost=builder.cost(list(answers.values()), wall_seconds),
        resolution=Resolution(None if smallest is None else smallest / 100, builder.resolution.explanation),
        notes=tuple(notes),
        references=tuple(references),
        **identity,
    )


def _mean(scores: Sequence[float]) -> float | None:
    return statistics.fmean(scores) if scores else None


def _saved(own: int | None, baseline: int | None) -> float | None:
    """The fraction of the baseline's number that is saved; None where either is unknown."""
    return 1 - own / baseline if own and baseline else None


def _variance_shares(judgement: Judgement | None) -> VarianceShares | None:
    """None for the full model, and with one seed, which gives no variance between seeds."""
    share = judgement.seed_share if judgement else None
    return None if share is None else VarianceShares(share, 1 - share)


def _std(scores: Sequence[float]) -> float | None:
    return statistics.stdev(scores) if len(scores) > 1 else None
