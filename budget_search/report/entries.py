"""The parts of a report: baseline, one result per delta, frontier, trials, cost. Scripts rely on these names.

Units are those of ``report``: points for scores and degradations, fractions for shares and ``delta``, milliseconds
and seconds where the name says so. None means not measured or not defined.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from budget_search.core.config import Criterion, Verdict
from budget_search.core.limits import BindingLimit
from budget_search.core.serialization import OMIT_IF_NONE
from budget_search.report.inference import InferencePoint, PeakThroughput, ThroughputPoint

if TYPE_CHECKING:
    from budget_search.layer_search.learning import Gain
    from budget_search.layer_search.verdict import Judgement


@dataclass(frozen=True)
class SplitSummary:
    """``label_shares`` maps each label to its fraction of the examples; empty for a regression task.
    ``constant_score`` is the score in points of the best constant prediction."""

    examples: int
    label_shares: Mapping[str, float] = field(default_factory=dict)
    constant_score: float | None = field(default=None, metadata=OMIT_IF_NONE)


@dataclass(frozen=True)
class GainKept:
    """The share of the full model's gain over a constant prediction that an answer keeps, and its lower bound."""

    value: float
    low: float | None

    @classmethod
    def of(cls, gain: Gain, judgement: Judgement | None) -> GainKept:
        """``judgement`` compares the answer with the full model; None for the full model itself."""
        if judgement is None:
            return cls(1.0, 1.0)
        low = None if judgement.upper is None else gain.kept(judgement.upper)
        return cls(gain.kept(judgement.degradation), low)


@dataclass(frozen=True)
class VarianceShares:
    """The shares of the variance behind a bound that are due to the choice of seeds and to the choice of examples."""

    seeds: float
    examples: float


@dataclass(frozen=True)
class Baseline:
    """The full-depth model under the same recipe: ``score`` is the mean over ``seeds`` seeds on certification.

    ``flops`` are those of one forward pass over one example.
    """

    score: float
    std: float | None
    seeds: int
    metrics: Mapping[str, float | None]
    held_out_score: float | None
    parameters: int | None
    flops: int | None
    inference: tuple[InferencePoint, ...]
    fine_tune_seconds: float | None
    held_out_std: float | None = None
    throughput: ThroughputPoint | None = field(default=None, metadata=OMIT_IF_NONE)
    constant_score: float | None = field(default=None, metadata=OMIT_IF_NONE)
    peak_throughput: PeakThroughput | None = field(default=None, metadata=OMIT_IF_NONE)


Reason = Literal["screened", "failed", "futile", "unfinished", "mean", "collapsed", "upper bound", "probability"]
"""Why a set was not accepted: it was only screened; a fine-tune failed; its confirmation was stopped for futility, or
not finished; its mean exceeds delta; a fine-tune that did not learn bars certification; its upper bound exceeds delta;
its probability of being within delta is too low."""


@dataclass(frozen=True)
class Rejected:
    """The smaller layer set that missed delta by least, and why it was not accepted.

    ``missed_by`` is in points: how far its degradation, or the criterion's statistic (the upper bound, the quantile of
    the estimate), lies above delta. ``degradation`` is None when it could not be trained.
    ``probability_within`` is the estimated probability that it is within delta; None without all its runs. ``reason``
    is None in reports of earlier versions.
    """

    kept: tuple[int, ...]
    depth: int
    stage: Literal["screen", "confirmation"]
    degradation: float | None
    degradation_upper: float | None
    missed_by: float | None
    would_settle: str = ""
    probability_within: float | None = field(default=None, metadata=OMIT_IF_NONE)
    reason: Reason | None = field(default=None, metadata=OMIT_IF_NONE)


@dataclass(frozen=True)
class Slice:
    """The examples of one label, or of about the same length.

    ``baseline`` and ``score`` are means over seeds: of the accuracy, in points, or for a regression task of the
    absolute error, in units of the label. ``worse`` is the difference to the disadvantage of the smaller model (fewer
    points, a larger error), with its 95 % interval from ``low`` to ``high``; None with one seed.
    """

    by: Literal["label", "length"]
    name: str
    examples: int
    baseline: float
    score: float
    worse: float
    low: float | None
    high: float | None

    @property
    def title(self) -> str:
        return f"label {self.name}" if self.by == "label" else self.name


@dataclass(frozen=True)
class Direction:
    """The share of all examples that the baseline labels ``before`` and the smaller model labels ``after``."""

    before: str
    after: str
    share: float


@dataclass(frozen=True)
class Flip:
    """An example whose prediction differs between the baseline and the smaller model with every seed.

    ``texts`` are decoded tokens, shortened; ``label`` is the true label.
    """

    texts: tuple[str, ...]
    label: str
    before: str
    after: str


@dataclass(frozen=True)
class PredictionChanges:
    """Where a smaller model is worse, and how often its prediction differs from the baseline's with the same seed.

    ``churn`` is the share of examples whose prediction differs, the mean over seeds; ``churn_between_seeds`` the same
    between two baselines that differ only in the seed. ``lost`` is the part of ``churn`` that changed from right to
    wrong, ``won`` from wrong to right. For a regression task the first two are the mean absolute difference of two
    predictions, in units of the label, and the last two None.
    """

    split: str
    examples: int
    regression: bool
    slices: tuple[Slice, ...]
    churn: float
    churn_between_seeds: float | None
    lost: float | None
    won: float | None
    directions: tuple[Direction, ...] = ()
    flips: tuple[Flip, ...] = ()


@dataclass(frozen=True)
class Result:
    """The answer for one delta: the smallest layer set that holds, or the full model.

    ``degradation_upper`` is the one-sided upper bound at ``confidence``; ``probability_within`` the estimated
    probability that the degradation is within delta; ``collapsed`` counts the seeds that predicted only one class.
    ``exported_seed`` is the seed of the confirmation with the median score, which is exported. ``binding`` names the
    limits that rule out a smaller set, if any do. ``variance_shares`` splits the variance behind the bound,
    ``changes`` shows where the set is worse; both are None for the full model.
    """

    delta: float
    criterion: Criterion
    verdict: Verdict
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    depth: int
    confirmed: bool
    score: float
    std: float | None
    seeds: int
    metrics: Mapping[str, float | None]
    degradation: float
    degradation_upper: float | None
    confidence: float
    probability_within: float | None
    certified: bool
    held_out_score: float | None
    held_out_degradation: float | None
    held_out_degradation_upper: float | None
    parameters: int | None
    parameters_saved: float | None
    flops_saved: float | None
    inference: tuple[InferencePoint, ...]
    fine_tune_speedup: float | None
    why_not_smaller: str
    collapsed: int = 0
    exported_seed: int | None = None
    nearest_rejected: Rejected | None = None
    binding: BindingLimit | None = field(default=None, metadata=OMIT_IF_NONE)
    gain_kept: GainKept | None = field(default=None, metadata=OMIT_IF_NONE)
    variance_shares: VarianceShares | None = field(default=None, metadata=OMIT_IF_NONE)
    throughput: ThroughputPoint | None = field(default=None, metadata=OMIT_IF_NONE)
    changes: PredictionChanges | None = None
    peak_throughput: PeakThroughput | None = field(default=None, metadata=OMIT_IF_NONE)

    def __post_init__(self) -> None:
        if self.depth != len(self.kept):
            raise ValueError(f"depth {self.depth} of a set of {len(self.kept)} layers")
        if self.certified != (self.verdict == "certified"):
            raise ValueError(f"certified is {self.certified} with the verdict {self.verdict!r}")

    @property
    def is_full(self) -> bool:
        return not self.dropped


@dataclass(frozen=True)
class FrontierPoint:
    """The best measured layer set of one depth; compared with the baseline at the same ``rung``."""

    depth: int
    kept: tuple[int, ...]
    score: float
    std: float | None
    seeds: int
    rung: float
    degradation: float
    parameters: int | None


@dataclass(frozen=True)
class TrialRow:
    """One evaluation; ``rung`` is the fraction of the full recipe that it ran."""

    kept: tuple[int, ...]
    rung: float
    seed: int
    split: str
    state: str
    score: float | None
    train_seconds: float
    error: str | None = None


@dataclass(frozen=True)
class Cost:
    """The cost of the study. One equivalent is the arithmetic of one full fine-tune of the full-depth model.

    ``unavoidable_equivalents``: the baseline and each distinct answer, over all seeds. ``reused`` counts evaluations
    that an earlier search had run. ``equivalents_per_fine_tune``: one full fine-tune of
    the full model including its scoring, a little more than 1.
    """

    fine_tunes: int
    full_fine_tune_equivalents: float
    training_equivalents: float
    unavoidable_equivalents: float
    wall_seconds: float
    device_seconds: float
    reused: int
    equivalents_per_fine_tune: float | None = field(default=None, metadata=OMIT_IF_NONE)

    @property
    def over_unavoidable(self) -> float:
        """The cost of all training over that of the baseline and the answers."""
        return self.training_equivalents / self.unavoidable_equivalents


@dataclass(frozen=True)
class Resolution:
    """The smallest delta (a fraction) that these data and seeds can certify; None where none can be certified."""

    smallest_certifiable_delta: float | None
    explanation: str


@dataclass(frozen=True)
class Reference:
    """A reference model: all its layers, fine-tuned by the study's recipe, on its examples, with its baseline's seeds.

    As DistilBERT beside BERT-6 in *Poor Man's BERT*, Table 4. ``score``, ``std`` and ``degradation`` are on
    certification. ``degradation`` is against the study's baseline, seed by seed (negative where the reference scores
    better), and so is ``parameters_saved`` (negative where the reference is larger).
    """

    model: str
    revision: str | None
    layers_total: int
    score: float
    std: float | None
    seeds: int
    metrics: Mapping[str, float | None]
    degradation: float
    degradation_upper: float | None
    confidence: float
    held_out_score: float
    held_out_degradation: float
    parameters: int
    parameters_saved: float
