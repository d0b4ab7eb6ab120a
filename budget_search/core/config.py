"""The search configuration: the settings that two comparable trials share. Its fingerprint names the study.

Delta and the search budget are not part of it, because they do not change what a trial measures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from budget_search.core.errors import UsageError
from budget_search.core.layers import compact_indices, parse_indices
from budget_search.core.serialization import read_record

Splits = Literal["carved", "official"]
Criterion = Literal["likely", "observed", "certified"]
Verdict = Literal["held_out disagrees", "certified", "likely", "observed", "cannot be resolved", "full model"]
Dropping = Literal["first", "after", "gradual", "finetuned", "untrained"]

CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
KINDS = {
    "classification": ("accuracy", "f1", "matthews"),
    "regression": ("pearson", "spearman", "pearson_spearman"),
    "multi-label": ("micro_f1", "macro_f1"),
    "token-classification": ("entity_f1", "token_accuracy"),
    "question-answering": ("squad_f1", "exact_match"),
}
"""The kinds of task with their metrics, the default first. A metric belongs to one kind, so it names the kind."""
ALSO = {
    "micro_f1": ("macro_f1",),
    "macro_f1": ("micro_f1",),
    "entity_f1": ("token_accuracy",),
    "squad_f1": ("exact_match",),
    "exact_match": ("squad_f1",),
}
"""The metrics that are reported beside these ones."""
METRICS = tuple(metric for metrics in KINDS.values() for metric in metrics)
REGRESSION_METRICS = KINDS["regression"]
PRECISIONS = ("auto", "fp32", "bf16")
DEFAULT_CERTIFY = 3
"""How many further seeds ``--certify`` stands for without a number."""
DROPPING: tuple[Dropping, ...] = get_args(Dropping)
EMBEDDINGS = "embeddings"


def _normalise_freeze(parts: Iterable[str | int]) -> tuple[str, ...]:
    """Normalise ``freeze`` to one spelling, such as ``("embeddings", "0-2")``. Raises UsageError."""
    texts = [parts] if isinstance(parts, str) else [str(part) for part in parts]
    try:
        layers = {index for text in texts if text != EMBEDDINGS for index in parse_indices(text)}
    except UsageError as error:
        raise UsageError(f"--freeze takes embeddings and layer numbers, such as embeddings 0-2: {error}") from error
    embeddings = (EMBEDDINGS,) if EMBEDDINGS in texts else ()
    return (*embeddings, compact_indices(sorted(layers))) if layers else embeddings


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a fine-tune, except the seed.

    Every fine-tune uses AdamW, linear warm-up, linear decay to zero, and gradient clipping at 1. ``train_examples``
    None means all examples; ``warmup`` is a fraction of the steps; ``max_length`` is in tokens.

    The fields with a default are methods of the papers. ``dropping``: when layers are dropped (see ``phases``).
    ``layer_drop``: the rate at which training skips whole layers (LayerDrop). ``freeze``: the parts that are not
    trained, ``embeddings`` and layer numbers of the original model. ``distil``: the weight, from 0 to 1, of the full
    model's outputs in the loss of a smaller model. ``recovery``: where a smaller model starts from the fine-tuned full
    model, the length of its own fine-tune as a fraction of the recipe. Raises UsageError.
    """

    name: str
    epochs: float
    train_examples: int | None
    batch_size: int
    lr: float
    max_length: int
    warmup: float
    dropping: Dropping = "first"
    layer_drop: float = 0.0
    freeze: tuple[str, ...] = ()
    distil: float = 0.0
    recovery: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "freeze", _normalise_freeze(self.freeze))
        checks = {
            "epochs": (math.isfinite(self.epochs) and self.epochs > 0, "a number above 0"),
            "train-examples": (self.train_examples is None or self.train_examples >= 1, "a whole number from 1"),
            "batch-size": (self.batch_size >= 1, "a whole number from 1"),
            "lr": (math.isfinite(self.lr) and 0 < self.lr < 1, "a number above 0 and below 1"),
            "max-length": (8 <= self.max_length <= 100_000, "a whole number of tokens from 8"),
            "warmup": (0 <= self.warmup < 1, "a fraction of the steps from 0 to below 1"),
            "dropping": (self.dropping in DROPPING, f"one of {' '.join(DROPPING)}"),
            "layer-drop": (0 <= self.layer_drop < 1, "a rate from 0 to below 1"),
            "distil": (0 <= self.distil <= 1, "a weight from 0 to 1"),
            "recovery": (0 < self.recovery <= 1, "a fraction of the recipe above 0, at most 1"),
        }
        wrong = [
            f"--{name} must be {allowed}, received {getattr(self, name.replace('-', '_'))}"
            for name, (holds, allowed) in checks.items()
            if not holds
        ]
        if self.dropping == "untrained" and self.distil:
            wrong.append("--distil trains the smaller model, but --dropping untrained does not train it; leave one out")
        if self.dropping != "finetuned" and self.recovery != type(self).recovery:
            wrong.append(
                f"--recovery {self.recovery:g} applies to --dropping finetuned, not to {self.dropping}; leave it out"
            )
        if wrong:
            raise UsageError("; ".join(wrong))

    def to_json(self) -> dict[str, Any]:
        """Unused methods are left out, so that studies older than these fields keep their fingerprints."""
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}
        return {name: value for name, value in plain.items() if name not in METHODS or name in self.method}

    @property
    def method(self) -> dict[str, Any]:
        """The fields that differ from a plain fine-tune of the smaller model, by name."""
        return {name: getattr(self, name) for name, default in METHODS.items() if getattr(self, name) != default}

    @property
    def freezes_embeddings(self) -> bool:
        return EMBEDDINGS in self.freeze

    @property
    def frozen_layers(self) -> frozenset[int]:
        """Layer numbers in the original model."""
        return frozenset(index for part in self.freeze if part != EMBEDDINGS for index in parse_indices(part))

    def steps(self, train_examples: int, rung: float = 1.0) -> int:
        """Optimizer steps at a rung for this number of training examples; at least one."""
        per_epoch = math.ceil(train_examples / self.batch_size)
        return max(1, round(rung * self.epochs * per_epoch))


METHODS = {each.name: each.default for each in dataclasses.fields(Recipe) if each.default is not dataclasses.MISSING}
"""The fields that papers add to a plain fine-tune, with the values that switch them off."""

RECIPES = {
    # A first impression: one epoch over a few thousand examples.
    "quick": Recipe("quick", 1, 4_000, 16, 5e-5, 128, 0.1, dropping="finetuned"),
    # The middle of the ranges that BERT's authors recommend (their appendix A.3), on at most 30,000 examples.
    "standard": Recipe("standard", 3, 30_000, 32, 3e-5, 128, 0.1, dropping="finetuned"),
    # The defaults of run_glue that Poor Man's BERT used (its section 3); implies the official splits.
    "paper": Recipe("paper", 3, None, 8, 5e-5, 128, 0.0),
}


@dataclass(frozen=True)
class SearchConfig:
    """Everything that two trials must share to be compared.

    ``task_digest`` and ``model_digest`` identify the content: a hub revision, or a hash of the files. ``device`` and
    ``precision`` are the requested values, such as ``auto``; they are resolved once, when the study is created.
    """

    task: str
    task_digest: str
    metric: str
    text_columns: tuple[str, ...]
    label_column: str
    model: str
    model_digest: str
    recipe: Recipe
    splits: Splits = "carved"
    split_seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(f"unknown metric {self.metric!r}; allowed: {' '.join(METRICS)}")
        if self.precision not in PRECISIONS:
            raise UsageError(f"unknown precision {self.precision!r}; allowed: {' '.join(PRECISIONS)}")

    @property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits of a hash over all fields; stable across library versions."""
        return fingerprint_of(self.to_json())

    @property
    def study_name(self) -> str:
        return f"{slug(self.task)}__{slug(self.model)}__{self.fingerprint}"

    def to_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "recipe": self.recipe.to_json()}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> SearchConfig:
        """Read the output of ``to_json``. Raises StudyError."""
        return read_record(cls, fields, "config")


def fingerprint_of(fields: Mapping[str, Any]) -> str:
    """Ten hexadecimal digits of a hash over plain values."""
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:10]


def slug(name: str) -> str:
    """A file name from any name: its last path component in ASCII letters, digits, dots and dashes, 60 at most."""
    last = re.split(r"[/\\]+", name.strip("/\\"))[-1]
    return re.sub(r"[^A-Za-z0-9.-]+", "-", last).strip(".-")[:60] or "unnamed"


def in_points(delta: float) -> float:
    """A fraction as points, without the floating-point error of 100 * 0.07."""
    return round(100 * delta, 10)
