"""The options that commands share, and the request that they make."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from budget_search.app.request import BACKENDS, RECIPE_FIELDS, SPLIT_MODES, Request, parse_count, parse_delta
from budget_search.cli.config_file import SEARCH_FIELDS
from budget_search.core.config import CRITERIA, DEFAULT_CERTIFY, DROPPING, KINDS, METRICS, PRECISIONS, RECIPES
from budget_search.core.errors import UsageError
from budget_search.core.layers import parse_indices
from budget_search.layer_search.strategies import SAMPLERS, STRATEGIES
from budget_search.report.renderers import FORMATS

Value = TypeVar("Value")


def _as_argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except UsageError as error:
            # argparse expects its own type of error.
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


delta_argument, count_argument = _as_argument(parse_delta), _as_argument(parse_count)


def add_studies_dir(parser: Any) -> None:
    parser.add_argument("--studies-dir", metavar="DIR", help="where the studies are (default studies)")


def studies_dir(arguments: argparse.Namespace) -> str:
    """The folder of the studies. No default of argparse: the environment comes before the default."""
    return str(arguments.studies_dir or "studies")


def add_search_options(run: argparse.ArgumentParser) -> None:
    """The options of ``run`` and ``plan``; an option that is not given is None, and ``Request`` has the default."""
    _add_task_and_model(run)
    _add_strategy(run)
    _add_limits(run)
    _add_recipe(run)
    _add_execution(run)


def _add_task_and_model(run: argparse.ArgumentParser) -> None:
    what = run.add_argument_group("what to search")
    what.add_argument("--task", help="a GLUE name, demo, hub:org/name[:config], or a file or folder")
    what.add_argument("--model", help="a hub id, a local folder, or demo")
    what.add_argument(
        "--delta",
        type=delta_argument,
        action="append",
        metavar="D",
        help="tolerated loss, a fraction of the metric's scale: 0.01 or 1%% is one point; one study answers several "
        "values (default 0.01 0.02 0.03)",
    )
    what.add_argument("--data-dir", metavar="DIR", help="read a GLUE task from local train.* and validation.* files")
    what.add_argument("--text-columns", nargs="+", metavar="A", help="the columns that hold the texts, one or two")
    what.add_argument(
        "--label-column",
        metavar="Y",
        help="the column that holds the label (default label); a,b,c for 0/1 columns",
    )
    what.add_argument("--kind", choices=tuple(KINDS), help="the kind of task (default: what your labels look like)")
    what.add_argument(
        "--metric", choices=METRICS, help="default: the task's own; for your files accuracy, or the first of the kind"
    )
    what.add_argument("--validation", metavar="FILE", help="held-out examples; by default carved out of train")
    what.add_argument("--encoding", metavar="NAME", help="of your text files, such as cp1252 (default UTF-8 or UTF-16)")
    what.add_argument(
        "--skip-incomplete",
        action="store_true",
        default=None,
        help="leave out examples without a text or a label, and count them",
    )


def _add_strategy(run: argparse.ArgumentParser) -> None:
    how = run.add_argument_group("how to search")
    how.add_argument("--strategy", choices=tuple(STRATEGIES), help="what proposes layer sets (default auto)")
    how.add_argument(
        "--start-from", metavar="STUDY", help="screen the good layer sets of this study of another task or model first"
    )
    how.add_argument(
        "--reference", action="append", metavar="MODEL", help="another model to compare with; may be repeated"
    )
    how.add_argument("--layers", action="append", metavar="SET", help="measure exactly these sets, such as 0-4,7")
    how.add_argument("--sampler", choices=SAMPLERS, help="for --strategy optuna (default tpe)")
    how.add_argument(
        "--criterion",
        choices=CRITERIA,
        help="likely: the loss is within delta with the probability that --probability asks for (default); observed: "
        "its mean is, as in the papers; certified: its upper bound is",
    )
    how.add_argument("--probability", type=float, metavar="P", help="for --criterion likely (default 0.8)")
    how.add_argument("--confidence", type=float, metavar="C", help="level of the upper bound (default 0.95)")
    how.add_argument(
        "--splits",
        choices=SPLIT_MODES,
        help="carved: choose and confirm on parts of train; official: on the validation set, as the papers",
    )
    how.add_argument(
        "--seeds", type=int, metavar="K", help="runs of the baseline and of every confirmation (default 3)"
    )
    how.add_argument(
        "--certify",
        type=int,
        nargs="?",
        const=DEFAULT_CERTIFY,
        metavar="N",
        help="run up to N more seeds of each answer and the baseline, until the upper bound is within delta (without a "
        f"number {DEFAULT_CERTIFY})",
    )
    how.add_argument("--base-seed", type=int, metavar="N", help="the first of those seeds (default 42)")
    how.add_argument(
        "--max-trials", type=int, metavar="N", help="fine-tunes that the study may hold, the baseline's included"
    )
    how.add_argument(
        "--max-hours", type=float, metavar="H", help="hours that the study may take, those of interrupted runs included"
    )


def _add_limits(run: argparse.ArgumentParser) -> None:
    limits = run.add_argument_group("further limits on the answer")
    limits.add_argument("--max-layers", type=int, metavar="N", help="how many layers may stay")
    limits.add_argument(
        "--max-params", type=count_argument, metavar="N", help="parameters of the whole model, 66000000 or 66M"
    )
    limits.add_argument("--max-latency-ms", type=float, metavar="MS", help="milliseconds to predict one example here")
    limits.add_argument("--keep-layers", action="append", metavar="I", help="layers that must stay, such as 0 1 or 0-1")
    limits.add_argument("--drop-layers", action="append", metavar="I", help="layers that must go")


def _add_recipe(run: argparse.ArgumentParser) -> None:
    recipe = run.add_argument_group("how to fine-tune")
    recipe.add_argument("--recipe", choices=tuple(RECIPES), help="default standard, or the task's own")
    recipe.add_argument("--epochs", type=float, metavar="E", help="passes over the training examples")
    recipe.add_argument("--train-examples", type=int, metavar="N", help="examples to train on")
    recipe.add_argument("--batch-size", type=int, metavar="N", help="examples per step")
    recipe.add_argument("--lr", type=float, metavar="R", help="peak learning rate")
    recipe.add_argument("--max-length", type=int, metavar="N", help="tokens at which texts are cut")
    recipe.add_argument("--warmup", type=float, metavar="F", help="fraction of the steps that warm up")
    recipe.add_argument(
        "--dropping",
        choices=DROPPING,
        help="when layers are dropped: first, before the fine-tune (default); after a fine-tune, followed by "
        "another; gradual, one layer every two epochs; finetuned, from the fine-tuned full model, then trained; "
        "untrained, from the fine-tuned full model, then not trained",
    )
    recipe.add_argument(
        "--recovery", type=float, metavar="F", help="for --dropping finetuned: this fraction of the recipe (default 1)"
    )
    recipe.add_argument("--layer-drop", type=float, metavar="RATE", help="skip whole layers in training at this rate")
    recipe.add_argument(
        "--freeze", action="append", metavar="PART ...", help="do not train: embeddings, layers, such as embeddings 0-2"
    )
    recipe.add_argument(
        "--distil", type=float, metavar="W", help="weight of the full model's outputs in a smaller one's loss, 0 to 1"
    )


def _add_execution(run: argparse.ArgumentParser) -> None:
    where = run.add_argument_group("where to run and what to write")
    where.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default auto)")
    where.add_argument("--precision", choices=PRECISIONS, help="bf16 where the device is fast at it (default auto)")
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="evaluations at a time (default: one per core; on GPUs as many as make the total faster)",
    )
    where.add_argument("--backend", choices=BACKENDS, help="processes on this machine (default), or a Dask cluster")
    where.add_argument("--scheduler", metavar="ADDR", help="of the Dask cluster, such as tcp://127.0.0.1:8786")
    add_studies_dir(where)
    where.add_argument("--storage", metavar="URL", help="any Optuna storage instead of SQLite in the study's folder")
    where.add_argument(
        "--storage-timeout",
        type=float,
        metavar="MINUTES",
        help="wait this long for another process that holds the study's database (default 10)",
    )
    where.add_argument("--study", metavar="NAME", help="the study's name (default: task, model and a fingerprint)")
    where.add_argument(
        "--wait", action="store_true", default=None, help="wait until no other command works on the same study"
    )
    where.add_argument("--output", metavar="DIR", help="also export the answer of the smallest delta")
    where.add_argument("--format", choices=FORMATS, help="of the report on standard output (default table)")
    where.add_argument(
        "--config", metavar="FILE", help="YAML with the names of these options; the command line takes precedence"
    )
    where.add_argument("--offline", action="store_true", default=None, help="use local files and caches only")
    where.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="run code that comes with a model"
    )
    where.add_argument("--fail-if-none", action="store_true", default=None, help="exit 3 if only the full model holds")
    where.add_argument("--dry-run", action="store_true", default=None, help="the same as the command `plan`")
    where.add_argument("--quiet", action="store_true", default=None, help="no progress")


def request_from(arguments: argparse.Namespace) -> Request:
    """The search that parsed options ask for. Raises UsageError for what is missing or wrong."""
    settings = {name: value for name, value in vars(arguments).items() if value is not None}
    for required in ("task", "model"):
        if required not in settings:
            raise UsageError(f"--{required} is required; see `budget-search run --help`")
    changes = {name: settings.pop(name) for name in RECIPE_FIELDS if name in settings}
    fields: dict[str, Any] = {name: settings[name] for name in SEARCH_FIELDS if name in settings}
    if "delta" in settings:
        fields["deltas"] = tuple(settings["delta"])
    for name in ("text_columns", "layers", "reference"):
        if name in fields:
            fields[name] = tuple(fields[name])
    for name in ("keep_layers", "drop_layers"):
        if name in fields:
            fields[name] = tuple(index for text in fields[name] for index in parse_indices(text))
    return Request(recipe_changes=changes, **fields)
