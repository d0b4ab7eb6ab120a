"""The report of a study as a value: what ``report.json`` holds, name for name. Scripts rely on these names.

Units everywhere: scores, degradations and standard deviations are points (0-100), ``*_saved`` and shares are
fractions (0-1), ``delta`` is a fraction of the metric's scale as on the command line (0.01 is one point), ``*_ms``
and ``ms`` are milliseconds, ``*_seconds`` seconds. None means not measured or not defined, such as the standard
deviation of one seed. Nothing is rounded in here; ``render`` does that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from budget_search import wording
from budget_search.changes import Changes
from budget_search.config import METHODS
from budget_search.errors import StudyError, UsageError
from budget_search.limits import Binding, Limits
from budget_search.records import ABSENT_IF_NONE, NEVER_WRITTEN, plain, read_record

if TYPE_CHECKING:
    from pandas import DataFrame

    from budget_search.cost import Throughput, Timing
    from budget_search.export import Export

SCHEMA_VERSION = 1

Verdict = Literal["held_out disagrees", "certified", "observed", "cannot be resolved", "full model"]
Criterion = Literal["observed", "certified"]


@dataclass(frozen=True)
class SplitSummary:
    """``label_shares`` maps each label to its fraction of the examples; empty for a regression task."""

    examples: int
    label_shares: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantiles:
    """The median and the 10 % and 90 % quantiles of repeated measurements."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class InferencePoint:
    """Time of one forward pass over ``batch`` examples of ``length`` tokens, and the conditions it was measured in.

    ``saved`` is the fraction of the baseline's time that is saved; absent in the baseline. ``peak_bytes`` is device
    memory, weights included; None where the device does not count it (CPU).
    """

    batch: int
    length: int
    ms: Quantiles
    saved: Interval | None = field(default=None, metadata=ABSENT_IF_NONE)
    device: str = ""
    dtype: str = ""
    threads: int | None = None
    rounds: int | None = None
    peak_bytes: int | None = None

    @classmethod
    def of(cls, timing: Timing) -> InferencePoint:
        """The measurement as the report shows it."""
        return cls(
            batch=timing.batch,
            length=timing.length,
            ms=Quantiles(timing.median_ms, timing.low_ms, timing.high_ms),
            saved=None if timing.saved is None else Interval(*timing.saved),
            device=timing.device,
            dtype=timing.dtype,
            threads=timing.threads,
            rounds=timing.rounds,
            peak_bytes=timing.peak_bytes,
        )


@dataclass(frozen=True)
class ThroughputPoint:
    """How fast a model reads ``examples`` examples of held_out, ``batch`` at a time (Poor Man's BERT, Table 3).

    ``saved`` is the fraction of the baseline's time that is saved; absent in the baseline.
    """

    batch: int
    examples: int
    examples_per_second: float
    saved: Interval | None = field(default=None, metadata=ABSENT_IF_NONE)

    @classmethod
    def of(cls, measured: Throughput) -> ThroughputPoint:
        return cls(
            batch=measured.batch,
            examples=measured.examples,
            examples_per_second=measured.examples / measured.seconds,
            saved=None if measured.saved is None else Interval(*measured.saved),
        )


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
    parameters: int
    flops: int | None
    inference: tuple[InferencePoint, ...]
    fine_tune_seconds: float | None
    held_out_std: float | None = None
    throughput: ThroughputPoint | None = field(default=None, metadata=ABSENT_IF_NONE)


@dataclass(frozen=True)
class Rejected:
    """The smaller layer set that came nearest to holding, and why it did not.

    ``missed_by`` is in points: how far its degradation, or the upper bound of it, lies above delta.
    ``degradation`` is None when it could not be trained.
    """

    kept: tuple[int, ...]
    depth: int
    stage: Literal["screen", "confirmation"]
    degradation: float | None
    degradation_upper: float | None
    missed_by: float | None
    would_settle: str = ""


@dataclass(frozen=True)
class Result:
    """The answer for one delta: the smallest layer set that holds, or the full model.

    ``degradation_upper`` is the one-sided upper bound at ``confidence``; ``probability_within`` the estimated
    probability that the degradation is within delta; ``collapsed`` counts the seeds that predicted only one class.
    ``exported_seed`` names the confirmation that an export is made of: the one with the median score. ``binding`` says
    which limits keep a smaller set from being the answer, where that is so. ``changes`` says where the set got worse;
    None for the full model.
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
    parameters: int
    parameters_saved: float
    flops_saved: float | None
    inference: tuple[InferencePoint, ...]
    fine_tune_speedup: float | None
    why_not_smaller: str
    collapsed: int = 0
    exported_seed: int | None = None
    nearest_rejected: Rejected | None = None
    binding: Binding | None = field(default=None, metadata=ABSENT_IF_NONE)
    throughput: ThroughputPoint | None = field(default=None, metadata=ABSENT_IF_NONE)
    changes: Changes | None = None

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
    """One evaluation; ``rung`` is the fraction of the full recipe it was given."""

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
    """What the study took. One equivalent is the arithmetic of one full fine-tune of the full-depth model.

    ``unavoidable_equivalents``: the baseline and each distinct answer, over all seeds. ``reused`` counts evaluations
    that were taken from an earlier search instead of being run. ``equivalents_per_fine_tune``: one full fine-tune of
    the full model with its scoring, which is a little more than 1.
    """

    fine_tunes: int
    full_fine_tune_equivalents: float
    training_equivalents: float
    unavoidable_equivalents: float
    wall_seconds: float
    device_seconds: float
    reused: int
    equivalents_per_fine_tune: float | None = field(default=None, metadata=ABSENT_IF_NONE)


@dataclass(frozen=True)
class Resolution:
    """The smallest delta (a fraction) that this much data and this many seeds can certify, if it is known."""

    smallest_certifiable_delta: float | None
    explanation: str


@dataclass(frozen=True)
class Reference:
    """Another model, fine-tuned whole by the study's recipe, on its examples, with its baseline's seeds.

    As DistilBERT beside BERT-6 in *Poor Man's BERT*, Table 4. ``score``, ``std`` and ``degradation`` are on
    certification. What it loses is against the study's baseline, seed by seed (negative where it scores better), and
    so is ``parameters_saved`` (negative where it is larger).
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


@dataclass(frozen=True)
class Report:
    """Everything a study has to tell. ``created`` and ``finished`` are ISO 8601; ``finished`` None: interrupted.

    ``splits`` is keyed ``train``, ``selection``, ``certification``, ``held_out``; ``notes`` are sentences that a
    reader of the numbers must know. ``similarities`` are the cosines between every layer's output and its input,
    where a search by contribution measured them. ``references`` are other models, set beside the answers; ``license``
    is the model's own, in the words of its card on the hub, empty where that says nothing. ``folder`` is where the
    study lies, for a report that was read from there.
    """

    schema_version: int
    study: str
    task: str
    model: str
    revision: str | None
    metric: str
    layers_total: int
    created: str
    finished: str | None
    command: str
    versions: Mapping[str, str]
    device: Mapping[str, Any]
    recipe: Mapping[str, Any]
    splits: Mapping[str, SplitSummary]
    baseline: Baseline
    results: tuple[Result, ...]
    frontier: tuple[FrontierPoint, ...]
    trials: tuple[TrialRow, ...]
    cost: Cost
    resolution: Resolution
    notes: tuple[str, ...] = ()
    question: Mapping[str, Any] = field(default_factory=dict)
    similarities: tuple[float, ...] | None = field(default=None, metadata=ABSENT_IF_NONE)
    references: tuple[Reference, ...] = ()
    license: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False, repr=False, metadata=NEVER_WRITTEN)

    def result(self, delta: float) -> Result:
        """The answer for this delta (a fraction). Raises UsageError when it was not asked."""
        for result in self.results:
            if math.isclose(result.delta, delta, rel_tol=1e-9, abs_tol=1e-12):
                return result
        asked = " ".join(f"{result.delta:g}" for result in self.results) or "none"
        raise UsageError(f"study {self.study} has no answer for --delta {delta:g}; it has: {asked}")

    @property
    def seeds(self) -> range:
        """Those of the baseline and of every confirmation. Raises StudyError for a report that does not say."""
        try:
            first, count = int(self.question["base_seed"]), int(self.question["seeds"])
        except KeyError:
            raise StudyError(
                f"the report of {self.study} does not say which seeds it has; delete its report.json and run the "
                f"search again: {self.command}"
            ) from None
        return range(first, first + count)

    @property
    def treated_model(self) -> str:
        """The model, and by which of the papers' methods it was fine-tuned, where by any."""
        method = {name: self.recipe[name] for name in METHODS if name in self.recipe}
        return f"{self.model}, {wording.pairs(method)}" if method else self.model

    @property
    def limits(self) -> Limits:
        """What the answers had to satisfy beside delta."""
        return Limits.of(self.question)

    def answer_sentence(self, result: Result) -> str:
        """The answer in one sentence, for somebody who has never heard of layer dropping."""
        return wording.answer(self, result)

    def to_frame(self, part: Literal["results", "frontier", "trials"] = "results") -> DataFrame:
        """A pandas table: one row per delta (the columns of ``--format csv``), per depth or per evaluation."""
        from pandas import DataFrame

        from budget_search.render import flat_row

        if part == "results":
            return DataFrame([flat_row(self, result) for result in self.results])
        return DataFrame(plain(getattr(self, part)))

    def export(self, output: str | Path, delta: float | None = None, *, trust_remote_code: bool = False) -> Export:
        """Write the answer for ``delta`` (the smallest asked, unless given) as a plain Hugging Face checkpoint.

        The same as ``budget-search export``; see ``budget_search.handover``. Raises UsageError for a delta that was
        not asked, a destination that is taken, and a report that was not read from its study.
        """
        if self.folder is None:
            raise UsageError("this report does not know where its study is: export one that search() returned")
        from budget_search.handover import hand_over
        from budget_search.store import StudyFolder

        chosen = min(result.delta for result in self.results) if delta is None else delta
        return hand_over(StudyFolder(self.folder), self, chosen, Path(output), trust_remote_code=trust_remote_code)

    def __str__(self) -> str:
        """What ``budget-search report`` prints."""
        from budget_search.render import table

        return table(self)

    def _repr_html_(self) -> str:
        """In a notebook: where the study is, and the page of ``report.html`` in a frame, so that neither's style
        touches the other's."""
        from html import escape

        from budget_search.render import html

        study, page = escape(str(self.folder or self.study)), escape(html(self))
        frame = f'<iframe srcdoc="{page}" sandbox="allow-scripts" style="border:0;width:100%;height:46rem"></iframe>'
        return f"<p>Study <code>{study}</code></p>{frame}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps(..., allow_nan=False)``: what is not finite becomes None."""
        fields: dict[str, Any] = plain(self)
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Report:
        """Read what ``to_json`` wrote; keys it does not know are skipped. Raises StudyError."""
        version = fields.get("schema_version") if isinstance(fields, Mapping) else None
        if version != SCHEMA_VERSION:
            raise StudyError(f"this report has schema version {version!r}, this program reads {SCHEMA_VERSION}")
        return read_record(cls, fields, "report")
