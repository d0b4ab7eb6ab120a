"""The options of a search, with every check that needs neither heavy imports nor files."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import operator
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budget_search.core.config import CRITERIA, KINDS, METHODS, RECIPES, Criterion, Recipe, Splits
from budget_search.core.errors import UsageError
from budget_search.core.formatting import plural, tolerance
from budget_search.core.layers import compact_indices, parse_indices
from budget_search.core.limits import Limits
from budget_search.core.paths import path_problem
from budget_search.layer_search.strategies import SAMPLERS, STRATEGIES

SPLIT_MODES = ("carved", "official")
BACKENDS = ("loky", "dask")
RECIPE_FIELDS = ("epochs", "train_examples", "batch_size", "lr", "max_length", "warmup", *METHODS)
# Screens use seeds beyond this, so that they never coincide with a confirmation's.
LARGEST_BASE_SEED = 1_000_000
MOST_SEEDS = 100
PATH_OPTIONS = ("task", "model", "data_dir", "validation", "studies_dir", "storage", "output")


@dataclass(frozen=True)
class Request:
    """The options of a search, named as on the command line; ``deltas`` are fractions.

    Raises UsageError, which names everything that is wrong.
    """

    task: str
    model: str
    deltas: tuple[float, ...] = (0.01, 0.02, 0.03)
    data_dir: str | None = None
    text_columns: tuple[str, ...] = ()
    label_column: str | None = None
    metric: str | None = None
    kind: str | None = None
    validation: str | None = None
    encoding: str | None = None
    skip_incomplete: bool = False
    strategy: str = "auto"
    layers: tuple[str, ...] = ()
    sampler: str = "tpe"
    criterion: Criterion = "likely"
    confidence: float = 0.95
    probability: float = 0.8
    recipe: str | None = None
    recipe_changes: Mapping[str, Any] = field(default_factory=dict)
    splits: Splits | None = None
    seeds: int = 3
    base_seed: int = 42
    certify: int = 0
    max_trials: int | None = None
    max_hours: float | None = None
    max_layers: int | None = None
    max_params: int | None = None
    max_latency_ms: float | None = None
    keep_layers: tuple[int, ...] = ()
    drop_layers: tuple[int, ...] = ()
    start_from: str | None = None
    reference: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    workers: int | None = None
    backend: str = "loky"
    scheduler: str | None = None
    wait: bool = False
    studies_dir: str = "studies"
    storage: str | None = None
    storage_timeout: float = 10.0
    study: str | None = None
    output: str | None = None
    offline: bool = False
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "deltas", tuple(sorted(set(self.deltas))))
        wrong = [problem for problem in self._problems() if problem]
        if wrong:
            raise UsageError("; ".join(wrong))

    def _problems(self) -> list[str | None]:
        return [
            *(problem_with_delta(delta) for delta in self.deltas),
            None if self.deltas else "--delta needs at least one value, such as 0.01",
            _one_of("--strategy", self.strategy, tuple(STRATEGIES)),
            _one_of("--sampler", self.sampler, SAMPLERS),
            None
            if self.strategy == "optuna" or self.sampler == type(self).sampler
            else f"--sampler {self.sampler} applies to --strategy optuna, not to {self.strategy}",
            _one_of("--criterion", self.criterion, CRITERIA),
            _one_of("--kind", self.kind, (*KINDS, None)),
            _one_of("--recipe", self.recipe, (*RECIPES, None)),
            _one_of("--splits", self.splits, (*SPLIT_MODES, None)),
            _one_of("--backend", self.backend, BACKENDS),
            None
            if (self.backend == "dask") == (self.scheduler is not None)
            else "--backend dask and --scheduler ADDR, such as tcp://127.0.0.1:8786, belong together",
            _within("--confidence", self.confidence, 0.5 <= self.confidence < 1, "from 0.5 to below 1"),
            _within("--probability", self.probability, 0.5 <= self.probability < 1, "from 0.5 to below 1"),
            None
            if self.criterion == "likely" or self.probability == type(self).probability
            else f"--probability {self.probability} applies to --criterion likely, not to {self.criterion}",
            _within("--seeds", self.seeds, 1 <= self.seeds <= MOST_SEEDS, f"a whole number from 1 to {MOST_SEEDS}"),
            "--criterion certified takes at least two seeds, received --seeds 1: one gives no variance between seeds"
            if (self.criterion, self.seeds) == ("certified", 1)
            else None,
            *self._problems_with_certify(),
            _within("--base-seed", self.base_seed, 0 <= self.base_seed < LARGEST_BASE_SEED, "from 0 to 999999"),
            self._problem_with_max_trials(),
            _within("--max-hours", self.max_hours, self.max_hours is None or self.max_hours > 0, "a number above 0"),
            _within("--max-layers", self.max_layers, self.max_layers is None or self.max_layers >= 1, "from 1"),
            _within("--max-params", self.max_params, self.max_params is None or self.max_params >= 1, "from 1"),
            _within(
                "--max-latency-ms",
                self.max_latency_ms,
                self.max_latency_ms is None or 0 < self.max_latency_ms < math.inf,
                "a number above 0",
            ),
            *self._contradictions(),
            _within("--storage-timeout", self.storage_timeout, 0 <= self.storage_timeout < math.inf, "minutes, from 0"),
            _within("--workers", self.workers, self.workers is None or self.workers >= 1, "from 1"),
            *(path_problem(f"--{name.replace('_', '-')}", getattr(self, name)) for name in PATH_OPTIONS),
            *(path_problem("--reference", model) for model in self.reference),
            None if self.task.strip() else "--task is empty; see `budget-search tasks`",
            None if self.model.strip() else "--model is empty; give a hub id, a folder, or demo",
        ]

    def _problems_with_certify(self) -> Iterator[str | None]:
        most = MOST_SEEDS - self.seeds
        yield _within("--certify", self.certify, 0 <= self.certify <= max(0, most), f"a whole number from 0 to {most}")
        if self.certify and self.criterion == "certified":
            yield (
                "--certify runs more seeds for answers that are not certified, but --criterion certified accepts only "
                "those that are; leave one of them out"
            )

    def _problem_with_max_trials(self) -> str | None:
        """Every answer needs the baseline, so the budget must cover it."""
        baseline = self.seeds + (not self.layers)
        if self.max_trials is None or self.max_trials >= baseline:
            return None
        return (
            f"--max-trials {self.max_trials}: the baseline alone takes {baseline} fine-tunes "
            f"({plural(self.seeds, 'seed')}{'' if self.layers else ' and a screen'}); "
            "raise --max-trials or lower --seeds"
        )

    def _contradictions(self) -> Iterator[str]:
        """Limits that no layer set of any model satisfies."""
        limits = self.limits
        if wrong := sorted(index for index in limits.keep | limits.drop if index < 0):
            yield f"--keep-layers and --drop-layers name layers from 0, received {wrong[0]}"
        elif both := sorted(limits.keep & limits.drop):
            yield f"--keep-layers and --drop-layers both name {compact_indices(both)}; leave it out of one"
        if limits.max_layers is not None and len(limits.keep) > limits.max_layers:
            yield (
                f"--keep-layers names {len(limits.keep)} layers and --max-layers allows {limits.max_layers}: "
                "name fewer, or allow more"
            )

    @property
    def limits(self) -> Limits:
        """The limits on the answer besides delta, still without the measurements that some of them need."""
        return Limits.from_options(vars(self))

    def recipe_from(self, default: str | Recipe) -> Recipe:
        """The requested recipe, else the task's own, with the changed fields. Raises UsageError."""
        base = RECIPES[self.recipe] if self.recipe else default if isinstance(default, Recipe) else RECIPES[default]
        return dataclasses.replace(base, **self.recipe_changes)

    def splits_for(self, recipe: Recipe) -> Splits:
        """The ``paper`` recipe chooses and reports on the official validation set, every other one on carved splits."""
        return self.splits or ("official" if recipe.name == "paper" else "carved")

    @property
    def confirmation_seeds(self) -> tuple[int, ...]:
        return tuple(range(self.base_seed, self.base_seed + self.seeds))

    @property
    def screen_seed(self) -> int:
        return LARGEST_BASE_SEED + 100 + self.base_seed

    @property
    def question(self) -> dict[str, Any]:
        """The options that determine the answer, besides those in the study's configuration."""
        return {
            "strategy": self.strategy,
            "layers": list(self.layers),
            "sampler": self.sampler,
            "criterion": self.criterion,
            "confidence": self.confidence,
            "seeds": self.seeds,
            "base_seed": self.base_seed,
            "max_trials": self.max_trials,
            "max_hours": self.max_hours,
            # Only where given, so that reports older than these options still count as the same question.
            **self.limits.given,
            **({"probability": self.probability} if self.criterion == "likely" else {}),
            **({"start_from": self.start_from} if self.start_from else {}),
            **({"certify": self.certify} if self.certify else {}),
        }


def request_from_python(options: Mapping[str, Any]) -> Request:
    """A request from keyword arguments: the fields of ``Request`` and of a recipe.

    Paths, a single value where several are allowed, and the texts of the command line (``"1%"``, ``"66M"``, ``"0-2"``)
    are converted. Raises UsageError for an unknown name and for a value of another type.
    """
    types = {each.name: str(each.type) for record in (Recipe, Request) for each in dataclasses.fields(record)}
    allowed = sorted({*types} - {"name", "recipe_changes"})
    for name in options:
        if name not in allowed:
            near = "deltas" if name == "delta" else next(iter(difflib.get_close_matches(name, allowed, n=1)), None)
            hint = f" (did you mean {near}?)" if near else ""
            raise UsageError(f"there is no option {name}{hint}; allowed: {' '.join(allowed)}")
    fields = {name: _converted(name, types[name], value) for name, value in options.items()}
    changes = {name: fields.pop(name) for name in RECIPE_FIELDS if name in fields}
    return Request(recipe_changes=changes, **fields)


def _items(value: Any) -> list[Any]:
    single = isinstance(value, str | bytes | os.PathLike) or not isinstance(value, Iterable)
    return [value] if single else list(value)


def _text(value: Any) -> str:
    text = os.fspath(value)
    if isinstance(text, bytes):
        raise TypeError
    return text


def _whole_number(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return parse_count(value) if isinstance(value, str) else operator.index(value)


def _number(value: Any) -> float:
    if isinstance(value, str | bytes | bool):
        raise TypeError
    return float(value)


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _layer_numbers(value: Any) -> tuple[int, ...]:
    numbers = (parse_indices(each) if isinstance(each, str) else [operator.index(each)] for each in _items(value))
    return tuple(itertools.chain.from_iterable(numbers))


_CONVERSIONS: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "tuple[str, ...]": (lambda value: tuple(map(_text, _items(value))), "a text or a list of texts"),
    "tuple[float, ...]": (
        lambda value: tuple(parse_delta(str(each)) for each in _items(value)),
        "a fraction or a list of fractions, such as [0.01, 0.02]",
    ),
    "tuple[int, ...]": (_layer_numbers, "a list of layer numbers"),
    "int": (_whole_number, "a whole number"),
    "float": (_number, "a number"),
    "bool": (_switch, "True or False"),
}
"""How the values of an annotated type are read from Python, and what is expected. Any other type is a text."""


def _converted(name: str, annotation: str, value: Any) -> Any:
    """The value in the type that an annotation names. Raises UsageError."""
    kind = annotation.removesuffix(" | None")
    if value is None and kind != annotation:
        return None
    convert, expected = _CONVERSIONS.get(kind, (_text, "a text"))
    try:
        return convert(value)
    except TypeError:
        raise UsageError(f"{name}={value!r} must be {expected}") from None


def parse_count(text: str) -> int:
    """``66000000``, ``66_000_000`` or ``66M``. Raises UsageError."""
    match = re.fullmatch(r"([\d_.]+)([KMB]?)", text.strip(), flags=re.IGNORECASE)
    try:
        count = float(match[1] if match else "") * {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}[match[2].upper()]  # type: ignore[index]
    except ValueError:
        raise UsageError(f"{text!r} is not a number; write 66000000 or 66M") from None
    if not count.is_integer():
        raise UsageError(f"{text!r} is not a whole number; write 66000000 or 66M")
    return int(count)


def parse_delta(text: str) -> float:
    """``0.01`` or ``1%`` as a fraction. Raises UsageError for anything else."""
    match = re.fullmatch(r"\s*([^%\s]+)\s*(%?)\s*", text)
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or math.isnan(value):
        raise UsageError(f"--delta {text}: not a number; write 0.01 or 1% for one point")
    delta = round(value / 100, 12) if match[2] else value
    if problem := problem_with_delta(delta, text):
        raise UsageError(problem)
    return delta


def problem_with_delta(delta: float, text: str | None = None) -> str | None:
    shown = text or f"{delta:g}"
    if math.isfinite(delta) and 0 < delta < 1:
        return None
    if math.isfinite(delta) and 1 <= delta <= 100:
        return (
            f"--delta {shown}: a delta is a fraction of the metric's scale, above 0 and below 1; "
            f"for {tolerance(delta / 100)} write {delta / 100:g} or {delta:g}%"
        )
    return f"--delta {shown}: a delta is a fraction above 0 and below 1; write 0.01 or 1% for one point"


def _one_of(option: str, value: str | None, allowed: Sequence[str | None]) -> str | None:
    if value in allowed:
        return None
    return f"{option} {value}: unknown; allowed: {' '.join(name for name in allowed if name)}"


def _within(option: str, value: object, holds: bool, allowed: str) -> str | None:
    return None if holds else f"{option} {value}: must be {allowed}"
