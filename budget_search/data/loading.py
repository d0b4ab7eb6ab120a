"""Load and check a task's examples: texts and labels of every split with labels, before splits are carved."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np

from budget_search.core.errors import UsageError
from budget_search.data import labels, tables
from budget_search.data.kinds import kind_of
from budget_search.data.kinds.kind import LabelCells
from budget_search.data.tasks import GLUE, GLUE_REPOSITORY, TaskSource, TaskSpec

Columns = Mapping[str, Sequence[Any]]
_NUMBER = re.compile(r"\s*[+-]?\d+([.,]\d+)?\s*", flags=re.ASCII)


@dataclass(frozen=True)
class Examples:
    """Texts and labels. ``texts`` holds one list per text column.

    ``labels`` are int64 class numbers or float32 scores (examples,), float32 zeros and ones (examples, labels), or an
    array of objects (examples,): for each example int64 (words,) or an ``Answer``.
    """

    texts: tuple[Sequence[str], ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Examples:
        """The examples of these rows, in this order."""
        return Examples(tuple([column[row] for row in rows] for column in self.texts), self.labels[rows])


@dataclass(frozen=True)
class RawTask:
    """All labelled examples: ``splits`` holds ``train``, ``held_out`` (if it exists) and further held-out splits.

    ``label_names`` follow the label numbers and are empty for scores; ``notes`` are sentences for the report.
    """

    splits: Mapping[str, Examples]
    label_names: tuple[str, ...]
    metric: str
    also: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def load_task(source: TaskSource, *, offline: bool = False) -> RawTask:
    """Read and check a task. ``offline`` prevents network access.

    Raises UsageError if the files, texts or labels are invalid.
    """
    spec = source.spec
    notes: list[str] = []
    if source.files is not None:
        wanted = spec.columns
        shards = {
            split: [tables.Table(path, source.encoding) for path in paths] for split, paths in source.files.items()
        }
        columns = {_split_name(spec, split): _joined(each, wanted) for split, each in shards.items()}
        notes += [table.note for each in shards.values() for table in each if table.note]
        names = spec.label_names or shards["train"][0].class_names(spec.label_column)
        return _check_and_encode(source, columns, names, notes)
    if spec.name in GLUE:
        columns = _glue_from_hub(spec, offline)
    elif source.hub is not None:
        columns, names, notes = _dataset_from_hub(source.hub, spec, offline)
        return _check_and_encode(source, columns, names, notes)
    else:
        from budget_search.data import demo_task as demo

        columns = {_split_name(spec, split): _by_column(demo.examples(split)) for split in ("train", spec.held_out)}
        return _check_and_encode(source, columns, demo.LABELS, notes)
    return _check_and_encode(source, columns, spec.label_names, notes)


def _split_name(spec: TaskSpec, split: str) -> str:
    """``validation_mismatched`` becomes ``held_out_mismatched``; the main validation split becomes ``held_out``."""
    return "held_out" if split == spec.held_out else split.replace("validation", "held_out")


def _by_column(rows: Sequence[Mapping[str, Any]]) -> Columns:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _glue_from_hub(spec: TaskSpec, offline: bool) -> dict[str, Columns]:
    from budget_search.data import hub as hub_data

    splits = ("train", spec.held_out, *spec.further_held_out)
    files = hub_data.split_files(GLUE_REPOSITORY, spec.name, splits, offline=offline)
    wanted = spec.columns
    columns: dict[str, Columns] = {}
    for split, paths in files.items():
        columns[_split_name(spec, split)] = _joined([tables.Table(path) for path in paths], wanted)
    return columns


def _joined(shards: Sequence[tables.Table], wanted: Sequence[str]) -> Columns:
    read = [shard.read(wanted) for shard in shards]
    return {name: [value for each in read for value in each[name]] for name in wanted}


def _dataset_from_hub(
    hub: tuple[str, str], spec: TaskSpec, offline: bool
) -> tuple[dict[str, Columns], tuple[str, ...], list[str]]:
    from budget_search.data import hub as hub_data

    loaded = hub_data.load_splits(*hub, offline=offline)
    if "train" not in loaded:
        raise UsageError(f"the data set {hub[0]} has no split 'train'; its splits are: {' '.join(loaded)}")
    train = loaded["train"]
    wanted = spec.columns
    tables.check_columns(f"the data set {hub[0]}", train.column_names, wanted)
    feature = train.features.get(spec.label_column)
    # The names of a ClassLabel, or of those in a list.
    names = tuple(getattr(getattr(feature, "feature", feature), "names", None) or ())
    splits, notes = {"train": train}, []
    if spec.held_out in loaded:
        splits["held_out"] = loaded[spec.held_out]
    elif "test" in loaded and _has_labels(loaded["test"], spec.label_columns):
        splits["held_out"] = loaded["test"]
        notes.append("held_out is the data set's test split, since it has no validation split.")
    for split in splits.values():
        tables.check_columns(f"the data set {hub[0]}", split.column_names, wanted)
    return {name: {c: list(split[c]) for c in wanted} for name, split in splits.items()}, names, notes


def _has_labels(split: Any, columns: Sequence[str]) -> bool:
    present = all(column in split.column_names for column in columns)
    return present and not any(label in (None, -1, "") for column in columns for label in split[column])


def _check_and_encode(
    source: TaskSource, columns: Mapping[str, Columns], names: Sequence[str], notes: list[str]
) -> RawTask:
    spec, kind = source.spec, kind_of(source.spec.metric)
    columns = {split: _with_texts(spec, kind.read_text, values) for split, values in columns.items()}
    if source.skip_incomplete:
        columns = {split: _complete(spec, split, values, notes) for split, values in columns.items()}
    for split, values in columns.items():
        if not values[spec.text_columns[0]]:
            raise UsageError(f"there are no examples in {split} of {source.name}")
        _check_texts(spec, split, values)
    if len(columns["train"][spec.text_columns[0]]) < 2:
        raise UsageError(f"there is one example in train of {source.name}; at least two are needed")
    cells = LabelCells(
        columns=spec.label_columns,
        cells={split: _rows(values, spec.label_columns) for split, values in columns.items()},
        texts={split: [values[name] for name in spec.text_columns] for split, values in columns.items()},
        names=tuple(names),
        metrics=(spec.metric, *spec.also),
        metric_named=source.metric_named,
    )
    coded, names = kind.read_labels(cells)
    labels.check_metrics(cells.metrics, names)
    splits = {
        split: Examples(tuple(values[column] for column in spec.text_columns), coded[split])
        for split, values in columns.items()
    }
    return RawTask(splits, tuple(names), spec.metric, spec.also, tuple(notes))


def _rows(columns: Columns, names: Sequence[str]) -> list[tuple[Any, ...]]:
    """The cells of some columns, example by example."""
    return list(zip(*(columns[name] for name in names), strict=True))


def _with_texts(spec: TaskSpec, read_text: Callable[[Any], Any], columns: Columns) -> Columns:
    return {**columns, **{name: [read_text(cell) for cell in columns[name]] for name in spec.text_columns}}


def _complete(spec: TaskSpec, split: str, columns: Columns, notes: list[str]) -> Columns:
    """The examples with a text and a label; a note says how many were left out."""
    whole = [
        not any(map(labels.is_missing, label)) and not any(map(_is_missing, pair)) and not _is_blank(pair)
        for pair, label in zip(_rows(columns, spec.text_columns), _rows(columns, spec.label_columns), strict=True)
    ]
    if skipped := whole.count(False):
        notes.append(f"{skipped} of {len(whole)} examples in {split} have no text or no label and were left out.")
    return {name: list(compress(values, whole)) for name, values in columns.items()}


def _is_missing(text: Any) -> bool:
    return text is None or text != text


def _is_blank(texts: Sequence[Any]) -> bool:
    """Some GLUE pairs have one empty text, but an example without any text is none."""
    return not any(text.strip() for text in texts if isinstance(text, str))


def _check_texts(spec: TaskSpec, split: str, columns: Columns) -> None:
    for column in spec.text_columns:
        missing = _first_index(columns[column], _is_missing)
        if missing is not None:
            raise UsageError(
                f"--text-columns {column}: the text of example {missing + 1} in {split} is missing; fill it in, or "
                "leave such examples out with --skip-incomplete"
            )
        other = _first_index(columns[column], lambda text: not isinstance(text, str))
        if other is not None or all(_NUMBER.fullmatch(text) for text in columns[column]):
            shown = columns[column][other or 0]
            hint = "; lists of words are --kind token-classification" if isinstance(shown, list) else ""
            raise UsageError(f"--text-columns {column} holds no texts in {split}, but values such as {shown!r}{hint}")
    blank = _first_index(_rows(columns, spec.text_columns), _is_blank)
    if blank is not None:
        raise UsageError(
            f"--text-columns {' '.join(spec.text_columns)}: example {blank + 1} in {split} has no text; "
            f"fill it in, or leave such examples out with --skip-incomplete"
        )


def _first_index(values: Sequence[Any], wrong: Callable[[Any], bool]) -> int | None:
    return next((position for position, value in enumerate(values) if wrong(value)), None)
