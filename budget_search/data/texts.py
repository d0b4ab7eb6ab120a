"""A study's examples as texts, so that a reference model can encode them with its own tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from budget_search.core.errors import StudyError
from budget_search.data.loading import Examples
from budget_search.data.splits import SplitTask

if TYPE_CHECKING:
    from budget_search.data.tokenization import EncodedTask

_SPLIT = "split"


def save_texts(task: SplitTask, path: Path) -> None:
    """Write one parquet file: a row per example with its split and its texts, in the tokenised order."""
    import pyarrow as pa
    from pyarrow import parquet

    parts = []
    for name, stored in _stored_names(task.splits).items():
        if name == stored:
            columns = {str(number): pa.array(texts) for number, texts in enumerate(task.splits[name].texts)}
            parts.append(pa.table({_SPLIT: [name] * len(task.splits[name]), **columns}))
    parquet.write_table(pa.concat_tables(parts), path, compression="zstd")


def load_texts(path: Path, task: EncodedTask) -> SplitTask:
    """The splits of ``task`` with their texts. Raises StudyError if they are missing, damaged or do not match."""
    import pyarrow as pa
    import pyarrow.compute
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        loaded: dict[str, Examples] = {}
        for name, stored in _stored_names(task.splits).items():
            if name == stored:
                rows = table.filter(pa.compute.field(_SPLIT) == name).drop_columns(_SPLIT)
                loaded[name] = _with_labels([column.to_pylist() for column in rows.columns], task, name)
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise StudyError(
            f"the study's data cannot be read: {path.name} in {path.parent.name} is missing or damaged "
            f"({type(error).__name__}); restore it, or move the study's folder away to start over"
        ) from error
    splits = {name: loaded[stored] for name, stored in _stored_names(task.splits).items()}
    return SplitTask(splits, task.label_names, task.metric, task.also)


def _with_labels(texts: Sequence[Sequence[str]], task: EncodedTask, name: str) -> Examples:
    split = task.splits[name]
    if not texts or any(len(column) != split.examples for column in texts):
        raise ValueError(f"{name} has {split.examples} examples")
    return Examples(tuple(texts), split.labels)


def _stored_names(splits: Mapping[str, object]) -> dict[str, str]:
    """The name each split is stored under: official splits are one object with three names, stored once."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(split), name) for name, split in splits.items()}
