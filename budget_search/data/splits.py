"""Split selection and certification off from train by group, stratified to resemble held_out.

The target sizes follow from the standard error. If 8 % of the predictions of two models differ, the standard error of
their difference in accuracy on n examples is sqrt(0.08 / n): 0.4 points on 5,000 examples, 0.6 on 2,000. Examples that
the recipe does not train on go to certification beyond that, as long as scoring them stays cheap beside a fine-tune.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budget_search.core.config import RECIPES, Recipe, Splits
from budget_search.core.errors import UsageError
from budget_search.core.trial import EVALUATION_COST
from budget_search.data.grouping import Groups, is_first_occurrence, number_texts, pair_groups, phrase_groups
from budget_search.data.kinds import kind_of
from budget_search.data.loading import Examples, RawTask
from budget_search.data.stratification import assign_cells, attainable_quotas, pick_groups

TARGETS = {"selection": 2_000, "certification": 5_000, "held_out": 2_000}
# The share of train that each split may take. With a validation set, that is a quarter in total, so that a small task
# keeps most of its training examples. A split may take more if SUFFICIENT_TRAIN examples, as many as the standard
# recipe uses, remain.
SHARES = {"selection": 0.10, "certification": 0.15, "held_out": 0.15}
SUFFICIENT_TRAIN = 30_000
# Of the examples that the recipe does not train on, certification takes more than its target: up to this number, and as
# long as scoring all of it takes at most this share of the arithmetic of a full fine-tune.
LARGEST_CERTIFICATION = 20_000
SCORING_SHARE = 0.05
# A split of a few large groups is less informative than its size suggests, so groups above this share stay in train.
MAX_GROUP_SHARE = 0.05
MIN_EXAMPLES = 8
DIFFERING_PREDICTIONS = 0.08


@dataclass(frozen=True)
class SplitTask:
    """A task with all ``splits``: train, selection, certification, held_out, and others such as held_out_mismatched."""

    splits: Mapping[str, Examples]
    label_names: tuple[str, ...]
    metric: str
    also: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def carve(raw: RawTask, mode: Splits, seed: int, recipe: Recipe = RECIPES["standard"]) -> SplitTask:
    """Create the splits of a task. They depend only on the data, ``seed``, and the recipe's epochs and number of
    training examples.

    Mode ``official`` selects and reports on the official validation set, as the papers did. Raises UsageError if there
    is no such set, or if train has too few examples that can be carved.
    """
    splits, notes = _official(raw) if mode == "official" else _carved(raw, seed, recipe)
    return SplitTask(splits, raw.label_names, raw.metric, raw.also, (*raw.notes, *notes))


def resolution(examples: int) -> float:
    """The standard error, in points, of a paired difference in accuracy if 8 % of the predictions differ."""
    return 100 * math.sqrt(DIFFERING_PREDICTIONS / examples)


def _official(raw: RawTask) -> tuple[dict[str, Examples], list[str]]:
    if "held_out" not in raw.splits:
        raise UsageError("--splits official needs a validation set: give --validation FILE, or use --splits carved")
    validation = raw.splits["held_out"]
    note = (
        "selection, certification and held_out are the same official validation set, as in the papers: "
        "selecting and reporting on the same examples biases the scores upwards."
    )
    return {
        "train": raw.splits["train"],
        "selection": validation,
        "certification": validation,
        "held_out": validation,
        **_further_splits(raw),
    }, [note]


def _carved(raw: RawTask, seed: int, recipe: Recipe) -> tuple[dict[str, Examples], list[str]]:
    train, held_out = raw.splits["train"], raw.splits.get("held_out")
    carver, notes = _prepare(raw, seed)
    to_carve = ("selection", "certification") if held_out else tuple(SHARES)
    sizes = split_sizes(int(carver.in_train.sum()), to_carve, recipe)
    if held_out is None:
        whole = train.take(np.array([row for group in carver.groups.members for row in group], dtype=np.int64))
        held_out = carver.carve("held_out", whole, sizes["held_out"])
        notes.append(f"held_out ({len(held_out):,}) was split off from train because there is no validation set.")
    # Certification comes first: it matters more if train has few examples that resemble held_out.
    certification = carver.carve("certification", held_out, sizes["certification"])
    chosen = {"selection": carver.carve("selection", held_out, sizes["selection"]), "certification": certification}
    left = train.take(np.flatnonzero(carver.in_train))
    notes += _size_notes(chosen, len(left), len(train), raw.metric)
    if phrases := carver.left_out_phrases:
        notes.append(f"{phrases:,} train examples are phrases of examples in these splits and were removed from train.")
    return {"train": left, **chosen, "held_out": held_out, **_further_splits(raw)}, notes


def _further_splits(raw: RawTask) -> dict[str, Examples]:
    return {name: examples for name, examples in raw.splits.items() if name not in ("train", "held_out")}


def _prepare(raw: RawTask, seed: int) -> tuple[_Carver, list[str]]:
    """Group train by shared texts, without duplicates and examples of held_out; also returns notes for the report."""
    train = raw.splits["train"]
    held_texts = raw.splits["held_out"].texts if "held_out" in raw.splits else tuple([] for _ in train.texts)
    register: dict[str, int] = {}
    numbers, held_out = number_texts(train.texts, register), number_texts(held_texts, register)
    first = is_first_occurrence(numbers)
    held_out_rows = set(map(tuple, held_out.tolist()))
    in_held_out = first & np.array([tuple(row) in held_out_rows for row in numbers.tolist()], dtype=bool)
    rows = np.flatnonzero(first & ~in_held_out)
    single = len(train.texts) == 1
    groups = phrase_groups(train.texts[0], rows) if single else pair_groups(numbers, rows, held_out)
    notes = []
    if not first.all():
        notes.append(f"{(~first).sum():,} train examples are duplicates (ignoring case and spaces) and were removed.")
    if in_held_out.any():
        notes.append(f"{in_held_out.sum():,} train examples are also in held_out and were removed from train.")
    shared = int((np.isin(held_out, numbers[rows]) & (held_out >= 0)).any(axis=1).sum())
    if shared:
        notes.append(
            f"In the original data, {shared:,} of {len(held_out):,} held_out examples share a text with train."
        )
    if groups.prompts:
        notes.append(
            f"{groups.prompts:,} texts occur in very many examples: they are treated as prompts and may be in several "
            f"splits."
        )
    stratum, count = kind_of(raw.metric).strata(train.labels, len(raw.label_names))
    return _Carver(train, Strata(stratum, count), groups, first & ~in_held_out, seed), notes


@dataclass(frozen=True)
class Strata:
    """What carved splits keep the shares of: ``of`` maps labels to ``count`` strata, or to scores if that is 0."""

    of: Callable[[np.ndarray], np.ndarray]
    count: int

    def labelling(self, examples: Examples) -> Examples:
        """The examples with their strata as labels."""
        return Examples(examples.texts, self.of(examples.labels))


class _Carver:
    """Carves splits out of train one after another; ``in_train`` marks the remaining examples, bool (examples,)."""

    def __init__(self, train: Examples, strata: Strata, groups: Groups, in_train: np.ndarray, seed: int) -> None:
        self.train, self.strata, self.groups, self.in_train, self.seed = train, strata, groups, in_train, seed
        self._stratified = strata.labelling(train)
        self.left_out_phrases = 0
        self._whole = np.ones(len(groups.members), dtype=bool)

    def carve(self, name: str, like: Examples, size: Size) -> Examples:
        """Carve random groups that together resemble ``like``.

        Raises UsageError if there are too few.
        """
        cell_of, shares = assign_cells(self.strata.labelling(like), self._stratified, self.strata.count)
        order = np.random.default_rng([self.seed, list(SHARES).index(name)]).permutation(np.flatnonzero(self._whole))
        wanted = size.wanted
        largest = max(MIN_EXAMPLES, int(MAX_GROUP_SHARE * wanted))
        order = np.array([group for group in order if len(self.groups.members[group]) <= largest], dtype=np.int64)
        available = np.bincount(cell_of[self._members(order)], minlength=len(shares))
        while True:
            picked = pick_groups(self.groups.members, order, cell_of, attainable_quotas(shares, available, wanted))
            leaving = self._leaving(picked)
            if len(leaving) <= size.leaving:
                break
            # Phrases leave train with the texts that contain them. Try again with a smaller split.
            wanted = int(0.98 * wanted * size.leaving / len(leaving))
        rows = np.sort(self._members(picked))
        self._check(name, rows)
        self._whole[picked] = False
        self.in_train[leaving] = False
        self.left_out_phrases += len(leaving) - len(rows)
        return self.train.take(rows)

    def _members(self, groups: Iterable[int]) -> np.ndarray:
        return np.array([row for group in groups for row in self.groups.members[group]], dtype=np.int64)

    def _leaving(self, picked: Sequence[int]) -> np.ndarray:
        rows = np.unique(np.array([row for group in picked for row in self.groups.leaving[group]], dtype=np.int64))
        return np.asarray(rows[self.in_train[rows]])

    def _check(self, name: str, rows: np.ndarray) -> None:
        if len(rows) < MIN_EXAMPLES:
            raise UsageError(
                f"cannot split {name} off from the {len(self.train):,} train examples: it would get {len(rows)} "
                f"(examples that share a text stay together), at least {MIN_EXAMPLES} are needed. Give more examples "
                f"(a few hundred), or a validation set and --splits official"
            )
        if self.train.labels.dtype.kind == "i" and len(np.unique(self.train.labels[rows])) < 2:
            raise UsageError(
                f"cannot split {name} off from train: the {len(rows)} examples found are all of one class. Give more "
                f"examples of the other classes, or a validation set and --splits official"
            )


@dataclass(frozen=True)
class Size:
    """The examples ``wanted`` in a split, and how many may be ``leaving`` train for it, phrases included."""

    wanted: int
    leaving: int


def split_sizes(examples: int, names: Sequence[str], recipe: Recipe) -> dict[str, Size]:
    """The sizes of the splits ``names`` when they are split off from this many train examples."""
    total = sum(SHARES[name] for name in names)
    leaving = max(total * examples, examples - SUFFICIENT_TRAIN)
    allowance = {name: int(leaving * SHARES[name] / total) for name in names}
    sizes = {name: Size(min(TARGETS[name], allowed), allowed) for name, allowed in allowance.items()}
    if recipe.train_examples is not None:
        usual = sizes["certification"]
        spare = examples - recipe.train_examples - sum(allowance.values()) + usual.leaving
        affordable = int(SCORING_SHARE * recipe.epochs * recipe.train_examples / EVALUATION_COST)
        wanted = min(LARGEST_CERTIFICATION, affordable, spare)
        if wanted > usual.wanted:
            sizes["certification"] = Size(wanted, max(usual.leaving, spare))
    return sizes


def _size_notes(chosen: Mapping[str, Examples], left: int, given: int, metric: str) -> list[str]:
    selection, certification = len(chosen["selection"]), len(chosen["certification"])
    sizes = (
        f"selection ({selection:,}) and certification ({certification:,}) were split off from train and "
        f"stratified to resemble held_out in length and labels; {left:,} of {given:,} examples remain in train."
    )
    if metric != "accuracy":
        return [sizes]
    return [
        sizes,
        f"If the predictions of two models differ on 8 % of the examples, the standard error of their difference in "
        f"accuracy is {resolution(certification):.1f} points on certification and {resolution(selection):.1f} on "
        f"selection.",
    ]
