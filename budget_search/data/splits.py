"""Selection and certification, carved out of train in whole groups so that they resemble held_out.

Sizes come from the resolution wanted: when 8 % of the predictions of two models differ, the standard error of their
accuracies' difference on n examples is sqrt(0.08 / n): 0.4 points on 5,000 examples, 0.6 on 2,000.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budget_search.core.config import Splits
from budget_search.core.errors import UsageError
from budget_search.data.grouping import Groups, first_of_each, number_texts, pair_groups, phrase_groups
from budget_search.data.loading import Examples, RawTask
from budget_search.data.stratification import attainable, cells, pick

TARGETS = {"selection": 2_000, "certification": 5_000, "held_out": 2_000}
# What may leave train for each: a quarter in all where there is a validation set, so that a small task keeps most of
# its examples to train on; more where train is so large that the standard recipe still finds all it uses.
SHARES = {"selection": 0.10, "certification": 0.15, "held_out": 0.15}
ENOUGH_TO_TRAIN = 30_000
# A split of a few large groups says less than its size: those stay in train.
LARGEST_GROUP = 0.05
FEWEST = 8
DIFFERING_PREDICTIONS = 0.08


@dataclass(frozen=True)
class SplitTask:
    """``splits`` holds train, selection, certification, held_out and further ones, such as held_out_mismatched."""

    splits: Mapping[str, Examples]
    label_names: tuple[str, ...]
    metric: str
    also: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def carve(raw: RawTask, mode: Splits, seed: int) -> SplitTask:
    """The splits of a task; the same for the same ``seed``, in every process.

    ``official`` chooses and reports on the official validation set, as the papers did. Raises UsageError when there
    is none, or when train is too small or too entangled to be carved up.
    """
    splits, notes = _official(raw) if mode == "official" else _carved(raw, seed)
    return SplitTask(splits, raw.label_names, raw.metric, raw.also, (*raw.notes, *notes))


def resolution(examples: int) -> float:
    """The standard error, in points, of a paired difference in accuracy when 8 % of the predictions differ."""
    return 100 * math.sqrt(DIFFERING_PREDICTIONS / examples)


def _official(raw: RawTask) -> tuple[dict[str, Examples], list[str]]:
    if "held_out" not in raw.splits:
        raise UsageError("--splits official needs a validation set: give --validation FILE, or use --splits carved")
    validation = raw.splits["held_out"]
    note = (
        "selection, certification and held_out are one and the same official validation set, as in the papers: "
        "choosing and reporting on the same examples flatters the answer."
    )
    return {
        "train": raw.splits["train"],
        "selection": validation,
        "certification": validation,
        "held_out": validation,
        **_further(raw),
    }, [note]


def _carved(raw: RawTask, seed: int) -> tuple[dict[str, Examples], list[str]]:
    train, held_out = raw.splits["train"], raw.splits.get("held_out")
    carver, notes = _prepared(raw, seed)
    started_with = int(carver.stays.sum())
    spare = _spare(started_with, ("selection", "certification") if held_out else tuple(SHARES))
    if held_out is None:
        whole = train.take(np.array([row for group in carver.groups.members for row in group], dtype=np.int64))
        held_out = carver.carve("held_out", whole, spare["held_out"])
        notes.append(f"held_out ({len(held_out):,}) was carved out of train, since there is no validation set.")
    # The certification split first: where what resembles held_out is scarce, it matters more.
    certification = carver.carve("certification", held_out, spare["certification"])
    chosen = {"selection": carver.carve("selection", held_out, spare["selection"]), "certification": certification}
    left = train.take(np.flatnonzero(carver.stays))
    notes += _sizes_notes(chosen, len(left), len(train))
    inside = carver.left_behind
    if inside:
        notes.append(f"{inside:,} train examples stand inside carved ones as phrases and were left out of train.")
    return {"train": left, **chosen, "held_out": held_out, **_further(raw)}, notes


def _further(raw: RawTask) -> dict[str, Examples]:
    return {name: examples for name, examples in raw.splits.items() if name not in ("train", "held_out")}


def _prepared(raw: RawTask, seed: int) -> tuple[_Carver, list[str]]:
    """Train without repeats and without examples of held_out, grouped by what they share; and remarks on that."""
    train = raw.splits["train"]
    held_texts = raw.splits["held_out"].texts if "held_out" in raw.splits else tuple([] for _ in train.texts)
    register: dict[str, int] = {}
    numbers, held_out = number_texts(train.texts, register), number_texts(held_texts, register)
    first = first_of_each(numbers)
    pairs_held_out = set(map(tuple, held_out.tolist()))
    known = first & np.array([tuple(pair) in pairs_held_out for pair in numbers.tolist()], dtype=bool)
    rows = np.flatnonzero(first & ~known)
    single = len(train.texts) == 1
    groups = phrase_groups(train.texts[0], rows) if single else pair_groups(numbers, rows, held_out)
    notes = []
    if not first.all():
        notes.append(f"{(~first).sum():,} train examples repeat another (but for case and spaces) and were left out.")
    if known.any():
        notes.append(f"{known.sum():,} train examples stand in held_out as well and were left out of train.")
    shared = int((np.isin(held_out, numbers[rows]) & (held_out >= 0)).any(axis=1).sum())
    if shared:
        notes.append(
            f"{shared:,} of {len(held_out):,} held_out examples share one of their texts with train, as the data came."
        )
    if groups.prompts:
        notes.append(
            f"{groups.prompts:,} texts stand in very many examples: taken for prompts, they may be in several splits."
        )
    return _Carver(train, len(raw.label_names), groups, first & ~known, seed), notes


class _Carver:
    """Takes splits out of train, one after the other; ``stays`` says which examples are still there."""

    def __init__(self, train: Examples, classes: int, groups: Groups, stays: np.ndarray, seed: int) -> None:
        self.train, self.classes, self.groups, self.stays, self.seed = train, classes, groups, stays, seed
        self.left_behind = 0
        self._whole = np.ones(len(groups.members), dtype=bool)

    def carve(self, name: str, like: Examples, spare: int) -> Examples:
        """Groups at random that together resemble ``like``, so many that at most ``spare`` examples leave train.

        Raises UsageError when there are too few.
        """
        cell_of, shares = cells(like, self.train, self.classes)
        order = np.random.default_rng([self.seed, list(SHARES).index(name)]).permutation(np.flatnonzero(self._whole))
        wanted = min(TARGETS[name], spare)
        largest = max(FEWEST, int(LARGEST_GROUP * wanted))
        order = np.array([group for group in order if len(self.groups.members[group]) <= largest], dtype=np.int64)
        available = np.bincount(cell_of[self._members(order)], minlength=len(shares))
        while True:
            picked = pick(self.groups.members, order, cell_of, attainable(shares, available, wanted))
            leaving = self._leaving(picked)
            if len(leaving) <= spare:
                break
            # Phrases leave with the texts they stand in: ask for fewer, in the same proportions.
            wanted = int(0.98 * wanted * spare / len(leaving))
        rows = np.sort(self._members(picked))
        self._check(name, rows)
        self._whole[picked] = False
        self.stays[leaving] = False
        self.left_behind += len(leaving) - len(rows)
        return self.train.take(rows)

    def _members(self, groups: Iterable[int]) -> np.ndarray:
        return np.array([row for group in groups for row in self.groups.members[group]], dtype=np.int64)

    def _leaving(self, picked: Sequence[int]) -> np.ndarray:
        rows = np.unique(np.array([row for group in picked for row in self.groups.leaving[group]], dtype=np.int64))
        return np.asarray(rows[self.stays[rows]])

    def _check(self, name: str, rows: np.ndarray) -> None:
        if len(rows) < FEWEST:
            raise UsageError(
                f"cannot carve {name} out of the {len(self.train):,} train examples: {len(rows)} found that share no "
                f"text with others, at least {FEWEST} needed. Give more examples (some hundreds), or a validation set "
                f"and --splits official"
            )
        if self.classes and len(np.unique(self.train.labels[rows])) < 2:
            raise UsageError(
                f"cannot carve {name} out of train: the {len(rows)} examples found are all of one class. Give more "
                f"examples of the others, or a validation set and --splits official"
            )


def _spare(examples: int, names: Sequence[str]) -> dict[str, int]:
    """How many of these examples may leave train for each split."""
    total = sum(SHARES[name] for name in names)
    leaving = max(total * examples, examples - ENOUGH_TO_TRAIN)
    return {name: int(leaving * SHARES[name] / total) for name in names}


def _sizes_notes(chosen: Mapping[str, Examples], left: int, given: int) -> list[str]:
    selection, certification = len(chosen["selection"]), len(chosen["certification"])
    return [
        f"selection ({selection:,}) and certification ({certification:,}) were carved out of train so that they "
        f"resemble held_out in length and labels; {left:,} of {given:,} examples stay in train.",
        f"If 8 % of two models' predictions differ, one standard error of their difference in accuracy is "
        f"{resolution(certification):.1f} points on certification and {resolution(selection):.1f} on selection.",
    ]
