"""Resolve a task: its columns, its metric and the source of its examples. Reads no examples."""

from __future__ import annotations

import codecs
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from budget_search.core.config import ALSO, KINDS, METRICS, REGRESSION_METRICS, Recipe
from budget_search.core.errors import UsageError
from budget_search.core.paths import expand_path
from budget_search.data import tables
from budget_search.data.kinds import kind_name
from budget_search.data.kinds.choice import columns_of, kind_shown_by, named_kind
from budget_search.storage.digests import digest_with, joint_digest

GLUE_REPOSITORY = "nyu-mll/glue"
# Identifies the demo's examples in study names. Change it if the generator produces other examples.
DEMO_DIGEST = "a20ca37d4f10979bfdde6d2b2b11cec90899004b50cb735a74cf67931dda4cef"
DEMO_RECIPE = Recipe(
    "demo", epochs=1, train_examples=3_000, batch_size=32, lr=5e-4, max_length=64, warmup=0.1, dropping="finetuned"
)


@dataclass(frozen=True)
class TaskSpec:
    """The columns and metrics of a task.

    ``metric`` is the primary metric, ``also`` are secondary ones. ``label_names`` follow the label numbers; empty means
    that the names come from the data, or that the labels are scores (if the metric is one for regression).
    ``held_out`` and ``further_held_out`` are the names of the labelled splits that are not used for training, as in the
    files. ``examples`` counts the official train and held_out examples.
    """

    name: str
    text_columns: tuple[str, ...]
    label_column: str
    metric: str
    also: tuple[str, ...] = ()
    label_names: tuple[str, ...] = ()
    held_out: str = "validation"
    further_held_out: tuple[str, ...] = ()
    recipe: str | Recipe = "standard"
    examples: tuple[int, int] | None = None

    @property
    def is_regression(self) -> bool:
        return self.metric in REGRESSION_METRICS

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that hold the labels; several are separated by commas in ``label_column``."""
        if kind_name(self.metric) != "multi-label":
            return (self.label_column,)
        return tuple(name.strip() for name in self.label_column.split(","))

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that are read."""
        return (*self.text_columns, *self.label_columns)


_SHARD = r"{}-\d+-of-\d+"
_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")

GLUE: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(
            "cola", ("sentence",), "label", "matthews", ("accuracy",), ("unacceptable", "acceptable"),
            examples=(8_551, 1_043),
        ),
        TaskSpec("sst2", ("sentence",), "label", "accuracy", (), ("negative", "positive"), examples=(67_349, 872)),
        TaskSpec(
            "mrpc", _SENTENCES, "label", "accuracy", ("f1",), ("not_equivalent", "equivalent"), examples=(3_668, 408)
        ),
        TaskSpec("stsb", _SENTENCES, "label", "pearson_spearman", ("pearson", "spearman"), examples=(5_749, 1_500)),
        TaskSpec(
            "qqp", ("question1", "question2"), "label", "accuracy", ("f1",), ("not_duplicate", "duplicate"),
            examples=(363_846, 40_430),
        ),
        TaskSpec(
            "mnli", ("premise", "hypothesis"), "label", "accuracy", (), ("entailment", "neutral", "contradiction"),
            held_out="validation_matched", further_held_out=("validation_mismatched",), examples=(392_702, 9_815),
        ),
        TaskSpec("qnli", ("question", "sentence"), "label", "accuracy", (), _ENTAILMENT, examples=(104_743, 5_463)),
        TaskSpec("rte", _SENTENCES, "label", "accuracy", (), _ENTAILMENT, examples=(2_490, 277)),
        TaskSpec("wnli", _SENTENCES, "label", "accuracy", (), tuple(reversed(_ENTAILMENT)), examples=(635, 71)),
    )
}  # fmt: skip
"""The nine GLUE tasks, with the columns and label numbers of ``nyu-mll/glue``."""

TASKS: dict[str, TaskSpec] = {
    **GLUE,
    "demo": TaskSpec("demo", ("premise", "hypothesis"), "label", "accuracy", recipe=DEMO_RECIPE),
}


@dataclass(frozen=True)
class TaskSource:
    """A task and the source of its examples: local ``files`` by split, the ``hub``, or neither for the demo.

    ``name`` is the display name: ``qqp``, ``hub:org/name:config``, or a name derived from the file. The files of one
    split are its shards. ``hub`` is a repository and its configuration (empty for the default). ``metric_named`` is
    true if the user chose the metric; decimal labels that are not whole numbers require that. ``encoding`` is that of
    local text files (None: recognised); with ``skip_incomplete`` examples without a text or a label are left out.
    """

    spec: TaskSpec
    name: str
    files: Mapping[str, tuple[Path, ...]] | None = None
    hub: tuple[str, str] | None = None
    metric_named: bool = True
    encoding: str | None = None
    skip_incomplete: bool = False


def resolve_task(
    task: str,
    *,
    data_dir: str | Path | None = None,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    metric: str | None = None,
    kind: str | None = None,
    validation: str | Path | None = None,
    encoding: str | None = None,
    skip_incomplete: bool = False,
) -> TaskSource:
    """Resolve ``--task`` and its related options, with all checks that need no examples.

    Raises UsageError for an unknown task or metric, a missing file or column, and options that do not apply to this
    kind of task.
    """
    _check_metric(metric)
    named = named_kind(kind, metric)
    skip = skip_incomplete or None
    if task in TASKS:
        _refuse_options(
            task,
            text_columns=text_columns,
            label_column=label_column,
            kind=kind,
            validation=validation,
            encoding=encoding,
            skip_incomplete=skip,
        )
        return _builtin_task(TASKS[task], data_dir, metric)
    _refuse_options(task, data_dir=data_dir)
    if task.startswith("hub:"):
        _refuse_options(task, validation=validation, encoding=encoding)
        texts, label = columns_of(text_columns, label_column, named)
        source = _hub_task(task, _own_spec(texts, label, metric, named or "classification"))
    else:
        path = expand_path(task)
        if not path.exists():
            raise _unknown_task(task)
        _check_encoding(encoding)
        files = _local_files(path)
        if validation is not None:
            files["validation"] = (_existing_file(expand_path(validation)),)
        first = tables.Table(files["train"][0], encoding)
        texts, label = columns_of(text_columns, label_column, named, first)
        spec = _own_spec(texts, label, metric, named or kind_shown_by(first, texts, label))
        source = _file_task(_task_name(path), spec, files, encoding)
    return replace(source, metric_named=metric is not None, skip_incomplete=skip_incomplete)


def task_digest(source: TaskSource, *, offline: bool = False) -> str:
    """Identifies the examples: a digest of the local files, the commit on the hub, or the demo's constant.

    An encoding that was named and ``skip_incomplete`` enter it, because other examples are read with them.

    A commit in the local cache of the hub takes precedence over a newer one, so that a command can be repeated without
    a network. Raises UsageError if the hub is needed and cannot be reached.
    """
    reading = {"encoding": source.encoding or "", "skip_incomplete": "yes" if source.skip_incomplete else ""}
    return digest_with(_digest(source, offline), {name: value for name, value in reading.items() if value})


def _digest(source: TaskSource, offline: bool) -> str:
    if source.files is not None:
        shards = {split: paths for split, paths in source.files.items() if len(paths) > 1}
        named = {split: paths[0] for split, paths in source.files.items() if len(paths) == 1}
        return joint_digest(named | {f"{split} {path.name}": path for split, paths in shards.items() for path in paths})
    if source.hub is not None:
        from budget_search.data import hub as hub_data

        return hub_data.commit(source.hub[0], offline=offline)
    return DEMO_DIGEST


def _builtin_task(spec: TaskSpec, data_dir: str | Path | None, metric: str | None) -> TaskSource:
    if metric is not None and metric != spec.metric:
        if (kind := kind_name(spec.metric)) != kind_name(metric):
            raise UsageError(f"--metric {metric} does not fit {spec.name}; allowed: {' '.join(KINDS[kind])}")
        spec = replace(spec, metric=metric, also=tuple(other for other in spec.also if other != metric))
    if spec.name == "demo":
        _refuse_options("demo", data_dir=data_dir)
        return TaskSource(spec, spec.name)
    if data_dir is None:
        return TaskSource(spec, spec.name, hub=(GLUE_REPOSITORY, spec.name))
    folder = expand_path(data_dir)
    if not folder.is_dir():
        raise UsageError(
            f"--data-dir {data_dir} is not a folder; give the one that holds train.* and {spec.held_out}.*"
        )
    files = {}
    for split in ("train", spec.held_out, *spec.further_held_out):
        files[split] = _split_files(folder, split)
        if not files[split]:
            hint = f"; it contains a folder {spec.name}: give that" if (folder / spec.name).is_dir() else ""
            raise UsageError(f"--data-dir {data_dir} holds no {split}.* ({_extensions()}){hint}")
    return _file_task(spec.name, spec, files)


def _own_spec(texts: tuple[str, ...], label: str, metric: str | None, kind: str) -> TaskSpec:
    """The columns and metrics of the user's own data; by default the first metric of the kind of task."""
    metric = metric or KINDS[kind][0]
    return TaskSpec("", texts, label, metric, ALSO.get(metric, ()))


def _hub_task(task: str, spec: TaskSpec) -> TaskSource:
    match = re.fullmatch(r"hub:([\w.-]+(?:/[\w.-]+)?)(?::([\w.-]+))?", task)
    if match is None:
        raise UsageError(f"cannot read --task {task}: a data set of the hub is written hub:org/name[:config]")
    if not spec.text_columns:
        raise UsageError(f"--task {task} needs --text-columns A [B]: the columns that hold the texts")
    _check_spec(spec)
    return TaskSource(replace(spec, name=task), task, hub=(match[1], match[2] or ""))


def _file_task(
    name: str, spec: TaskSpec, files: Mapping[str, tuple[Path, ...]], encoding: str | None = None
) -> TaskSource:
    """The task of local files by split, after a check of their columns."""
    for file in (file for shards in files.values() for file in shards):
        _check_columns(spec, tables.Table(file, encoding))
    return TaskSource(replace(spec, name=name), name, files=files, encoding=encoding)


def _local_files(path: Path) -> dict[str, tuple[Path, ...]]:
    if not path.is_dir():
        return {"train": (_existing_file(path),)}
    files = {split: _split_files(path, split) for split in ("train", "validation")}
    if not files["train"]:
        raise UsageError(
            f"the folder {path} holds no train.* ({_extensions()}), nor shards such as train-00000-of-00002.parquet"
        )
    return {split: shards for split, shards in files.items() if shards}


def _split_files(folder: Path, split: str) -> tuple[Path, ...]:
    """The file of a split, such as ``train.csv``, or its shards, such as ``train-00000-of-00002.parquet``."""
    stems = {path: tables.table_stem(path) for path in sorted(folder.iterdir()) if path.is_file()}
    if any(stem == split and path.suffix != ".txt" for path, stem in stems.items()):
        # A text beside a table is no second table.
        stems = {path: stem for path, stem in stems.items() if path.suffix != ".txt"}
    whole = [path for path, stem in stems.items() if stem == split]
    shards = [path for path, stem in stems.items() if stem and re.fullmatch(_SHARD.format(split), stem)]
    if len(whole) > 1 or (whole and shards):
        names = " and ".join(path.name for path in (*whole, *shards)[:3])
        raise UsageError(f"{folder} holds {names}; keep only one of them")
    announced = {int(path.name.partition("-of-")[2].partition(".")[0]) for path in shards}
    if shards and announced != {len(shards)}:
        raise UsageError(
            f"{folder} holds {len(shards)} of the {max(announced)} shards of {split}, such as {shards[0].name}; "
            "complete them"
        )
    return tuple(whole or shards)


def _existing_file(path: Path) -> Path:
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    return tables.Table(path).path


def _check_columns(spec: TaskSpec, table: tables.Table) -> None:
    if not spec.text_columns:
        raise UsageError(
            f"--text-columns A [B] is needed: which columns of {table.path.name} hold the texts? "
            f"It has: {' '.join(repr(name) for name in table.columns)}"
        )
    _check_spec(spec)
    tables.check_columns(table.title, table.columns, spec.columns)


def _check_encoding(encoding: str | None) -> None:
    try:
        codecs.lookup(encoding or "utf-8")
    except LookupError:
        raise UsageError(
            f"--encoding {encoding}: no such encoding; name one that Python knows, such as cp1252, latin-1 or utf-16"
        ) from None


def _check_spec(spec: TaskSpec) -> None:
    columns = spec.columns
    if len(spec.text_columns) > 1 and kind_name(spec.metric) == "token-classification":
        raise UsageError("--kind token-classification takes one --text-columns, with the words of a sentence")
    if len(spec.text_columns) != 2 and kind_name(spec.metric) == "question-answering":
        raise UsageError("--kind question-answering takes two --text-columns: the question and its context")
    if len(spec.text_columns) > 2:
        raise UsageError(f"--text-columns takes one or two columns, received {len(spec.text_columns)}")
    if len(set(columns)) != len(columns):
        raise UsageError(f"text and label columns must be different, received {' '.join(columns)}")


def _check_metric(metric: str | None) -> None:
    if metric is not None and metric not in METRICS:
        raise UsageError(f"unknown --metric {metric}{_did_you_mean(metric, METRICS)}; allowed: {' '.join(METRICS)}")


def _refuse_options(task: str, **options: object) -> None:
    for name, value in options.items():
        if value is not None and value != ():
            kind = {"data_dir": "a GLUE task", "validation": "a file"}.get(name, "a file or a data set of the hub")
            raise UsageError(f"--{name.replace('_', '-')} applies to {kind}, not to --task {task}; leave it out")


def _unknown_task(task: str) -> UsageError:
    return UsageError(
        f"unknown --task {task}{_did_you_mean(task, tuple(TASKS))}; allowed: {' '.join(TASKS)}, hub:org/name[:config], "
        f"or an existing file ({_extensions()}) or folder"
    )


def _did_you_mean(received: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(received.lower(), known, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""


def _extensions() -> str:
    return " ".join("." + extension for extension in tables.EXTENSIONS)


def _task_name(path: Path) -> str:
    """A file's stem, or the nearest parent's name that is more specific than ``train`` or ``data``."""
    absolute = path.resolve()
    stems = [absolute.stem if path.is_file() else absolute.name, *(parent.name for parent in absolute.parents)]
    general = {"", "train", "training", "data", "dataset", "datasets", "raw", "files", "csv", "tsv", "jsonl", "parquet"}
    return next((stem for stem in stems if stem.lower() not in general), "data")
