"""The command line's options, as interface names them; standard library only, so that ``--help`` comes at once."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from budget_search.config import DROPPING, METRICS, PRECISIONS, RECIPES
from budget_search.errors import UsageError
from budget_search.layers import parse_indices
from budget_search.request import (
    BACKENDS,
    CRITERIA,
    RECIPE_FIELDS,
    SAMPLER_NAMES,
    SPLIT_MODES,
    STRATEGY_NAMES,
    Request,
    parse_count,
    parse_delta,
)
from budget_search.settings import FORMATS, OTHER_OPTIONS, SEARCH_FIELDS, from_environment, from_file

Value = TypeVar("Value")

_VERBOSE = "show a traceback when something fails"
COMMANDS = ("run", "plan", "report", "inspect", "export", "ls", "tasks", "doctor")
INSPECT_FORMATS = ("table", "markdown", "json")
# Options whose values may begin with a minus or be followed by a positional argument: each value gets its option.
_SPREAD = {
    "--delta": re.compile(r"[-+]?[.\d].*|[-+]?(nan|inf)%?", re.IGNORECASE),
    **dict.fromkeys(("--layers", "--keep-layers", "--drop-layers"), re.compile(r"[\d][\d,-]*")),
    "--freeze": re.compile(r"embeddings|[\d][\d,-]*"),
}


def _as_argument(parse: Callable[[str], Value]) -> Callable[[str], Value]:
    def parsed(text: str) -> Value:
        try:
            return parse(text)
        except UsageError as error:
            # argparse wants its own kind of error; the text stays.
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


_delta, _count = _as_argument(parse_delta), _as_argument(parse_count)


class _Parser(argparse.ArgumentParser):
    """argparse that reports through UsageError, so that every error looks alike."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Options by name; ``command`` says which. What the command line leaves out comes from the environment, then, for
    a search, from its ``--config`` file; None is left to the defaults.

    Raises UsageError, for a wrong value naming where it came from; ``--help`` and ``--version`` exit.
    """
    argv = _spread([_dashed(argument) for argument in argv])
    # Bare options mean a search; `budget-search --help` shows the commands.
    if argv and argv[0] not in COMMANDS and argv[0] not in ("-h", "--help", "--version"):
        argv = ["run", *argv]
    arguments = build_parser().parse_args(argv or ["--help"])
    if arguments.command in ("run", "plan"):
        settings = {**from_file(arguments.config), **from_environment((*SEARCH_FIELDS, *OTHER_OPTIONS))}
    else:
        settings = from_environment(("studies_dir",))
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(**{**vars(arguments), **settings, **given})


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


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="budget-search",
        description="How few layers of a pre-trained transformer does your task need?\n"
        "Fine-tunes candidate layer sets, reports the smallest that loses no more than you\n"
        "allow, and exports it as a plain Hugging Face checkpoint.",
        epilog="Without a command the options are those of `run`:\n"
        "  budget-search --task qqp --model xlnet-base-cased --delta 0.01",
        # Its lines stay as they are: commands are there to be copied.
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    from budget_search import __version__

    parser.add_argument("--version", action="version", version=f"budget-search {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_search(
        commands,
        "run",
        "search (the default)",
        "Search for the fewest layers within each delta. Run the same command again to go on with an interrupted "
        "search, or with another --delta to reuse everything measured so far.",
    )
    _add_search(
        commands,
        "plan",
        "what a search would run and what it would cost",
        "Takes the options of `run`. Times a few steps on this device, rehearses the search on made-up models, and "
        "tells how many evaluations, hours and bytes it will take. Trains nothing, keeps nothing.",
    )
    _add_report(commands)
    _add_inspect(commands)
    _add_export(commands)
    for name, help_text in (
        ("ls", "the studies: task, model, trials, state, best answer"),
        ("tasks", "the built-in tasks: columns, metric, sizes"),
        ("doctor", "versions, devices, precision, caches, whether the hub is reachable"),
    ):
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        if name == "ls":
            _add_storage(command)
        command.add_argument("-v", "--verbose", action="store_true", help=_VERBOSE)
    return parser


def _add_search(commands: Any, name: str, help_text: str, description: str) -> None:
    run = commands.add_parser(name, help=help_text, description=description, argument_default=None, allow_abbrev=False)
    what = run.add_argument_group("what to search")
    what.add_argument("--task", help="a GLUE name, demo, hub:org/name[:config], or a file or folder")
    what.add_argument("--model", help="a hub id, a local folder, or demo")
    what.add_argument(
        "--delta",
        type=_delta,
        action="append",
        metavar="D",
        help="tolerated loss, a fraction of the metric's scale: 0.01 or 1%% is one point; several "
        "values are answered by one study (default 0.01 0.02 0.03)",
    )
    what.add_argument("--data-dir", metavar="DIR", help="read a GLUE task from local train.* and validation.* files")
    what.add_argument("--text-columns", nargs="+", metavar="A", help="the columns that hold the texts, one or two")
    what.add_argument("--label-column", metavar="Y", help="the column that holds the label (default label)")
    what.add_argument("--metric", choices=METRICS, help="default: the task's own; accuracy for your files")
    what.add_argument("--validation", metavar="FILE", help="held-out examples; else they are carved out of train")
    how = run.add_argument_group("how to search")
    how.add_argument("--strategy", choices=STRATEGY_NAMES, help="what proposes layer sets (default auto)")
    how.add_argument("--start-from", metavar="STUDY", help="begin with what this study of another task or model found")
    how.add_argument(
        "--reference", action="append", metavar="MODEL", help="another model to set beside the answers; may be repeated"
    )
    how.add_argument("--layers", action="append", metavar="SET", help="measure exactly these sets, such as 0-4,7")
    how.add_argument("--sampler", choices=SAMPLER_NAMES, help="for --strategy optuna (default tpe)")
    how.add_argument(
        "--criterion",
        choices=CRITERIA,
        help="observed: the mean loss is within delta (default); certified: its upper bound is",
    )
    how.add_argument("--confidence", type=float, metavar="C", help="level of that bound (default 0.95)")
    how.add_argument(
        "--splits",
        choices=SPLIT_MODES,
        help="carved: choose and confirm on parts of train; official: on the validation set, as the papers",
    )
    how.add_argument(
        "--seeds", type=int, metavar="K", help="runs of the baseline and of every confirmation (default 3)"
    )
    how.add_argument("--base-seed", type=int, metavar="N", help="the first of those seeds (default 42)")
    how.add_argument(
        "--max-trials", type=int, metavar="N", help="fine-tunes that the study may hold, the baseline's included"
    )
    how.add_argument("--max-hours", type=float, metavar="H", help="start no further fine-tune after this long")
    _add_limits(run)
    _add_recipe(run)
    where = run.add_argument_group("where to run and what to write")
    where.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (default auto)")
    where.add_argument("--precision", choices=PRECISIONS, help="bf16 where the device is fast at it (default auto)")
    where.add_argument(
        "--workers", type=int, metavar="N", help="evaluations at a time (default: one per core, or one on a GPU)"
    )
    where.add_argument("--backend", choices=BACKENDS, help="processes on this machine (default), or a Dask cluster")
    where.add_argument("--scheduler", metavar="ADDR", help="of the Dask cluster, such as tcp://127.0.0.1:8786")
    _add_storage(where)
    where.add_argument("--storage", metavar="URL", help="any Optuna storage instead of SQLite in the study's folder")
    where.add_argument("--study", metavar="NAME", help="the study's name (default: task, model and a fingerprint)")
    where.add_argument(
        "--wait", action="store_true", default=None, help="wait for another command that works on the same study"
    )
    where.add_argument("--output", metavar="DIR", help="also export the answer of the smallest delta")
    where.add_argument("--format", choices=FORMATS, help="of the report on standard output (default table)")
    where.add_argument("--config", metavar="FILE", help="YAML with these options' names; the command line comes first")
    where.add_argument("--offline", action="store_true", default=None, help="use local files and caches only")
    where.add_argument("--trust-remote-code", action="store_true", default=None, help="run code that a model brings")
    where.add_argument("--fail-if-none", action="store_true", default=None, help="exit 3 if only the full model holds")
    where.add_argument("--dry-run", action="store_true", default=None, help="the same as the command `plan`")
    where.add_argument("--quiet", action="store_true", default=None, help="no progress")
    where.add_argument("-v", "--verbose", action="store_true", default=None, help=_VERBOSE)


def _add_limits(run: argparse.ArgumentParser) -> None:
    limits = run.add_argument_group("further limits on the answer")
    limits.add_argument("--max-layers", type=int, metavar="N", help="layers that may stay")
    limits.add_argument("--max-params", type=_count, metavar="N", help="parameters of the whole model, 66000000 or 66M")
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
        help="when layers go: first, then fine-tune (default); after a fine-tune, then fine-tune again; gradual, one "
        "after every two epochs; untrained, out of the fine-tuned full model with no training after",
    )
    recipe.add_argument("--layer-drop", type=float, metavar="RATE", help="skip whole layers in training at this rate")
    recipe.add_argument(
        "--freeze", action="append", metavar="PART ...", help="do not train: embeddings, layers, such as embeddings 0-2"
    )
    recipe.add_argument(
        "--distil", type=float, metavar="W", help="weight of the full model's outputs in a smaller one's loss, 0 to 1"
    )


def _add_report(commands: Any) -> None:
    report = commands.add_parser(
        "report",
        help="print what a study has found, or several side by side",
        description="STUDY is a study's name, the unique beginning of one, or a path. Several studies are set side by "
        "side: layers dropped per task and delta, and what that saves.",
        allow_abbrev=False,
    )
    report.add_argument("studies", nargs="+", metavar="STUDY")
    report.add_argument("--delta", type=_delta, action="append", metavar="D", help="only these deltas")
    report.add_argument("--format", choices=FORMATS, default="table")
    report.add_argument("--output", metavar="FILE", help="write to a file instead")
    report.add_argument(
        "--curves",
        action="store_true",
        help="mean score over the studies' tasks by strategy and number of dropped layers, instead",
    )
    report.add_argument(
        "--reference",
        action="append",
        metavar="MODEL",
        help="first fine-tune another model once, by the same recipe on the same examples with the same seeds, and set "
        "it beside the answers, now and from now on; may be repeated",
    )
    report.add_argument("--offline", action="store_true", help="find that model in local files and caches only")
    report.add_argument("--trust-remote-code", action="store_true", help="run code that it brings")
    report.add_argument("--wait", action="store_true", help="wait for another command that works on the same study")
    report.add_argument(
        "--plots", metavar="DIR", help="also write the pictures there, as PNG and SVG; of one study, or of --curves"
    )
    _add_storage(report)
    report.add_argument("-v", "--verbose", action="store_true", help=_VERBOSE)


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser(
        "inspect",
        help="what every layer of a study's fine-tuned model knows, and how far fine-tuning moved it",
        description="Layer-wise probes and similarities of a finished study's full model, and whether they predict "
        "what its search found. STUDY is a study's name, the unique beginning of one, or a path.",
        allow_abbrev=False,
    )
    inspect.add_argument("study", metavar="STUDY")
    inspect.add_argument("--model", help="the pre-trained model, where the study's name for it does not find it")
    inspect.add_argument("--format", choices=INSPECT_FORMATS, default="table")
    inspect.add_argument("--output", metavar="DIR", help="also write text, JSON and pictures (PNG, SVG) there")
    inspect.add_argument("--trust-remote-code", action="store_true", help="run code that a model brings")
    _add_storage(inspect)
    inspect.add_argument("-v", "--verbose", action="store_true", help=_VERBOSE)


def _add_export(commands: Any) -> None:
    export = commands.add_parser(
        "export",
        help="write the answer as a plain Hugging Face checkpoint",
        description="STUDY is a study's name, the unique beginning of one, or a path.",
        allow_abbrev=False,
    )
    export.add_argument("study", metavar="STUDY")
    export.add_argument("--delta", type=_delta, action="append", metavar="D", required=True, help="which answer")
    export.add_argument("--output", metavar="DIR", required=True, help="a new folder, or an earlier export")
    export.add_argument("--push-to-hub", metavar="REPO", help="then upload it to the hub, as name or org/name")
    export.add_argument("--private", action="store_true", help="for nobody else to see")
    export.add_argument("--trust-remote-code", action="store_true", help="run code that the model brings")
    _add_storage(export)
    export.add_argument("-v", "--verbose", action="store_true", help=_VERBOSE)


def _add_storage(parser: Any) -> None:
    parser.add_argument("--studies-dir", metavar="DIR", help="where the studies are (default studies)")


def _dashed(argument: str) -> str:
    """``--batch_size=8`` is ``--batch-size=8``."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _spread(argv: Sequence[str]) -> list[str]:
    """``--delta a b STUDY`` becomes ``--delta=a --delta=b STUDY``."""
    spread: list[str] = []
    option: str | None = None
    for argument in argv:
        if option and _SPREAD[option].fullmatch(argument):
            if spread[-1] == option:
                spread.pop()
            spread.append(f"{option}={argument}")
            continue
        option = argument if argument in _SPREAD else None
        spread.append(argument)
    return spread
