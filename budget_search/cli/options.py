"""The options that commands share, and the search request built from them."""

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
    parser.add_argument("--studies-dir", metavar="DIR", help="folder of the studies (default studies)")


def studies_dir(arguments: argparse.Namespace) -> str:
    """The folder of the studies. argparse has no default here, because the environment takes precedence over it."""
    return str(arguments.studies_dir or "studies")


def add_search_options(run: argparse.ArgumentParser) -> None:
    """The options of ``run`` and ``plan``; an option that is not given is None, and ``Request`` has the default."""
    _add_task_and_model(run)
    _add_strategy(run)
    _add_limits(run)
    _add_recipe(run)
    _add_execution(run)


def _add_task_and_model(run: argparse.ArgumentParser) -> None:
    what = run.add_argument_group("task and model")
    what.add_argument("--task", help="a GLUE name, demo, hub:org/name[:config], or a file or folder")
    what.add_argument("--model", help="a hub id, a local folder, or demo")
    what.add_argument(
        "--delta",
        type=delta_argument,
        action="append",
        metavar="D",
        help="allowed drop in score, as a fraction of the metric's scale: 0.01 or 1%% is one point; takes several "
        "values (default 0.01 0.02 0.03)",
    )
    what.add_argument("--data-dir", metavar="DIR", help="read a GLUE task from local train.* and validation.* files")
    what.add_argument("--text-columns", nargs="+", metavar="A", help="the columns that hold the texts, one or two")
    what.add_argument(
        "--label-column",
        metavar="Y",
        help="the column that holds the label (default label); a,b,c for several 0/1 columns",
    )
    what.add_argument("--kind", choices=tuple(KINDS), help="the kind of task (default: inferred from the columns)")
    what.add_argument(
        "--metric",
        choices=METRICS,
        help="default: that of the built-in task; for your own data, the first one of its --kind",
    )
    what.add_argument("--validation", metavar="FILE", help="held-out examples (default: split off from train)")
    what.add_argument(
        "--encoding", metavar="NAME", help="encoding of text files, such as cp1252 (default UTF-8 or UTF-16)"
    )
    what.add_argument(
        "--skip-incomplete",
        action="store_true",
        default=None,
        help="skip examples without a text or a label; the report counts them",
    )


def _add_strategy(run: argparse.ArgumentParser) -> None:
    how = run.add_argument_group("search")
    how.add_argument("--strategy", choices=tuple(STRATEGIES), help="how layer sets are proposed (default auto)")
    how.add_argument(
        "--start-from", metavar="STUDY", help="first screen the best layer sets of this study of another task or model"
    )
    how.add_argument(
        "--reference", action="append", metavar="MODEL", help="another model to compare with; may be repeated"
    )
    how.add_argument("--layers", action="append", metavar="SET", help="measure only these layer sets, such as 0-4,7")
    how.add_argument("--sampler", choices=SAMPLERS, help="Optuna's sampler for --strategy optuna (default tpe)")
    how.add_argument(
        "--criterion",
        choices=CRITERIA,
        help="when a set is accepted. likely: its loss is within delta with probability P (default); observed: the "
        "mean loss is within delta, as in the papers; certified: the upper confidence bound is within delta",
    )
    how.add_argument(
        "--probability", type=float, metavar="P", help="probability that --criterion likely requires (default 0.8)"
    )
    how.add_argument("--confidence", type=float, metavar="C", help="level of the upper confidence bound (default 0.95)")
    how.add_argument(
        "--splits",
        choices=SPLIT_MODES,
        help="carved: select and confirm on splits taken from train; official: on the validation set, as in the papers",
    )
    how.add_argument(
        "--seeds", type=int, metavar="K", help="seeds of the baseline and of every confirmation (default 3)"
    )
    how.add_argument(
        "--certify",
        type=int,
        nargs="?",
        const=DEFAULT_CERTIFY,
        metavar="N",
        help="run up to N more seeds of each answer and the baseline, until the upper bound is within delta "
        f"({DEFAULT_CERTIFY} if N is left out)",
    )
    how.add_argument("--base-seed", type=int, metavar="N", help="the first seed; the others follow it (default 42)")
    how.add_argument(
        "--max-trials", type=int, metavar="N", help="maximum fine-tunes in the study, including the baseline's"
    )
    how.add_argument(
        "--max-hours", type=float, metavar="H", help="maximum hours spent on the study, including interrupted runs"
    )


def _add_limits(run: argparse.ArgumentParser) -> None:
    limits = run.add_argument_group("further limits on the answer")
    limits.add_argument("--max-layers", type=int, metavar="N", help="maximum number of layers")
    limits.add_argument(
        "--max-params", type=count_argument, metavar="N", help="maximum parameters of the whole model: 66000000 or 66M"
    )
    limits.add_argument(
        "--max-latency-ms", type=float, metavar="MS", help="maximum latency of one example on this device"
    )
    limits.add_argument(
        "--keep-layers", action="append", metavar="I", help="layers that must be kept, such as 0 1 or 0-1"
    )
    limits.add_argument("--drop-layers", action="append", metavar="I", help="layers that must be dropped")


def _add_recipe(run: argparse.ArgumentParser) -> None:
    recipe = run.add_argument_group("fine-tuning")
    recipe.add_argument(
        "--recipe", choices=tuple(RECIPES), help="hyperparameters (default: standard, or the task's own)"
    )
    recipe.add_argument("--epochs", type=float, metavar="E", help="passes over the training examples")
    recipe.add_argument("--train-examples", type=int, metavar="N", help="number of training examples")
    recipe.add_argument("--batch-size", type=int, metavar="N", help="examples per step")
    recipe.add_argument("--lr", type=float, metavar="R", help="peak learning rate")
    recipe.add_argument("--max-length", type=int, metavar="N", help="tokens per input; longer inputs are truncated")
    recipe.add_argument(
        "--warmup", type=float, metavar="F", help="fraction of the steps used for learning-rate warm-up"
    )
    recipe.add_argument(
        "--dropping",
        choices=DROPPING,
        help="when layers are dropped. finetuned (default): from the fine-tuned full model, then fine-tune again; "
        "first (default of --recipe paper): before the fine-tune; after: fine-tune the full model with these layers "
        "frozen, drop them, fine-tune again; gradual: drop one layer every two epochs; untrained: from the fine-tuned "
        "full model, without a second fine-tune",
    )
    recipe.add_argument(
        "--recovery",
        type=float,
        metavar="F",
        help="length of the second fine-tune of --dropping finetuned, as a fraction of the recipe (default 1)",
    )
    recipe.add_argument("--layer-drop", type=float, metavar="RATE", help="probability of skipping a layer in training")
    recipe.add_argument(
        "--freeze", action="append", metavar="PART ...", help="parts that are not trained, such as embeddings 0-2"
    )
    recipe.add_argument(
        "--distil", type=float, metavar="W", help="weight of the full model's soft targets in the loss, 0 to 1"
    )


def _add_execution(run: argparse.ArgumentParser) -> None:
    where = run.add_argument_group("execution and output")
    where.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default auto)")
    where.add_argument("--precision", choices=PRECISIONS, help="default auto: bf16 where the device is fast at it")
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="concurrent evaluations (default: one per core; on GPUs the fastest number, measured)",
    )
    where.add_argument("--backend", choices=BACKENDS, help="processes on this machine (default), or a Dask cluster")
    where.add_argument(
        "--scheduler", metavar="ADDR", help="address of the Dask scheduler, such as tcp://127.0.0.1:8786"
    )
    add_studies_dir(where)
    where.add_argument("--storage", metavar="URL", help="any Optuna storage instead of SQLite in the study's folder")
    where.add_argument(
        "--storage-timeout",
        type=float,
        metavar="MINUTES",
        help="maximum wait while another process locks the study's database (default 10)",
    )
    where.add_argument("--study", metavar="NAME", help="name of the study (default: task, model and a fingerprint)")
    where.add_argument(
        "--wait", action="store_true", default=None, help="wait while another command is working on the study"
    )
    where.add_argument("--output", metavar="DIR", help="also export the answer of the smallest delta")
    where.add_argument(
        "--format", choices=FORMATS, help="format of the report on standard output (default table; a plan: table, json)"
    )
    where.add_argument(
        "--config", metavar="FILE", help="YAML file with these options; the command line takes precedence"
    )
    where.add_argument("--offline", action="store_true", default=None, help="use local files and caches only")
    where.add_argument(
        "--trust-remote-code", action="store_true", default=None, help="run code that comes with a model"
    )
    where.add_argument(
        "--fail-if-none", action="store_true", default=None, help="exit with 3 if no smaller set is accepted"
    )
    where.add_argument("--dry-run", action="store_true", default=None, help="the same as the command `plan`")
    where.add_argument("--quiet", action="store_true", default=None, help="print no progress")


def request_from(arguments: argparse.Namespace) -> Request:
    """The request for a search, from parsed options. Raises UsageError for missing or invalid options."""
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
