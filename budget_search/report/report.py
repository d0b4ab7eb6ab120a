"""The report of a study as a record, with the same names as ``report.json``. Scripts rely on these names.

Units everywhere: scores, degradations and standard deviations are points (0-100), ``*_saved`` and shares are
fractions (0-1), ``delta`` is a fraction of the metric's scale as on the command line (0.01 is one point), ``*_ms``
and ``ms`` are milliseconds, ``*_seconds`` seconds. None means not measured or not defined, such as the standard
deviation of one seed. Nothing is rounded here; ``renderers`` round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budget_search.core.config import METHODS
from budget_search.core.errors import StudyError, UsageError
from budget_search.core.formatting import pairs
from budget_search.core.limits import Limits
from budget_search.core.serialization import NOT_SERIALIZED, OMIT_IF_NONE, read_record, to_plain
from budget_search.report.entries import (
    Baseline,
    Cost,
    FrontierPoint,
    Reference,
    Resolution,
    Result,
    SplitSummary,
    TrialRow,
)

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Report:
    """The result of a study. ``created`` and ``finished`` are ISO 8601; ``finished`` None: interrupted.

    ``splits`` is keyed ``train``, ``selection``, ``certification``, ``held_out``; ``notes`` are sentences needed to
    interpret the numbers. ``similarities`` are the cosines between every layer's output and its input, if
    strategy ``contribution`` measured them. ``references`` are reference models; ``license`` is that of the model, as
    in its card on the hub, empty where the card names none. ``folder`` is the study's folder, for a report that was
    read from there.
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
    similarities: tuple[float, ...] | None = field(default=None, metadata=OMIT_IF_NONE)
    references: tuple[Reference, ...] = ()
    license: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = field(default=None, compare=False, repr=False, metadata=NOT_SERIALIZED)

    def result(self, delta: float) -> Result:
        """The answer for this delta (a fraction). Raises UsageError if it was not requested."""
        for result in self.results:
            if math.isclose(result.delta, delta, rel_tol=1e-9, abs_tol=1e-12):
                return result
        asked = " ".join(f"{result.delta:g}" for result in self.results) or "none"
        raise UsageError(f"study {self.study} has no answer for --delta {delta:g}; it has: {asked}")

    @property
    def best(self) -> Result:
        """The smaller, reliable answer with the smallest delta; without one, the answer of the smallest delta."""
        by_delta = sorted(self.results, key=lambda result: result.delta)
        useful = (result for result in by_delta if not result.is_full and result.verdict != "held_out disagrees")
        return next(useful, by_delta[0])

    @property
    def seeds(self) -> range:
        """The seeds of the baseline and of every confirmation. Raises StudyError for a report without them."""
        try:
            first, count = int(self.question["base_seed"]), int(self.question["seeds"])
        except KeyError:
            raise StudyError(
                f"the report of {self.study} does not say which seeds it has; delete its report.json and run the "
                f"search again: {self.command}"
            ) from None
        return range(first, first + count)

    @property
    def keeps_weights(self) -> bool:
        """Whether the study has models to export; with a user's objective it has neither models nor a recipe."""
        return bool(self.recipe)

    @property
    def treated_model(self) -> str:
        """The model, and the methods of the papers that it was fine-tuned with, if any."""
        method = {name: self.recipe[name] for name in METHODS if name in self.recipe}
        return f"{self.model}, {pairs(method)}" if method else self.model

    @property
    def limits(self) -> Limits:
        """The limits on the answers besides delta."""
        return Limits.from_options(self.question)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dumps(..., allow_nan=False)``; numbers that are not finite become None."""
        fields: dict[str, Any] = to_plain(self)
        return fields

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Report:
        """Read what ``to_json`` wrote; unknown keys are skipped. Raises StudyError."""
        version = fields.get("schema_version") if isinstance(fields, Mapping) else None
        if version != SCHEMA_VERSION:
            raise StudyError(f"this report has schema version {version!r}, this program reads {SCHEMA_VERSION}")
        return read_record(cls, fields, "report")
