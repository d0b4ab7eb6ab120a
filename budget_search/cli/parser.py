"""The parser of the command line. It loads the standard library only, so that ``--help`` is fast."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from budget_search.cli.commands import COMMANDS
from budget_search.cli.config_file import OTHER_OPTIONS, SEARCH_FIELDS, from_environment, from_file
from budget_search.core.errors import UsageError
from budget_search.core.versions import VERSION

# Options with several values, which may begin with a minus or precede a positional argument: every value is passed
# with its own option.
_REPEATED = {
    "--delta": re.compile(r"[-+]?[.\d].*|[-+]?(nan|inf)%?", re.IGNORECASE),
    **dict.fromkeys(("--layers", "--keep-layers", "--drop-layers"), re.compile(r"[\d][\d,-]*")),
    "--freeze": re.compile(r"embeddings|[\d][\d,-]*"),
}


class _Parser(argparse.ArgumentParser):
    """Raises UsageError, so that all errors look alike."""

    def error(self, message: str) -> Any:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options by name, and the name of the ``command``.

    An option that the command line lacks comes from the environment, then, for a search, from its ``--config`` file;
    else it is None. Raises UsageError, which names the source of a wrong value; ``--help`` and ``--version`` exit.
    """
    argv = _repeat_options([_dashed(argument) for argument in argv])
    # Bare options mean a search; `budget-search --help` shows the commands.
    if argv and argv[0] not in COMMANDS and argv[0] not in ("-h", "--help", "--version"):
        argv = ["run", *argv]
    arguments = build_parser().parse_args(argv or ["--help"])
    if arguments.command in ("run", "plan"):
        settings = {**from_file(arguments.config), **from_environment((*SEARCH_FIELDS, *OTHER_OPTIONS))}
    else:
        settings = from_environment(("studies_dir", "storage"))
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(**{**vars(arguments), **settings, **given})


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="budget-search",
        description="How few layers of a pre-trained transformer does your task need?\n"
        "Fine-tunes candidate layer sets, reports the smallest that loses no more than you\n"
        "allow, and exports it as a plain Hugging Face checkpoint.",
        epilog="Without a command the options are those of `run`:\n"
        "  budget-search --task qqp --model xlnet-base-cased --delta 0.01",
        # Keeps the line breaks, so that commands can be copied.
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"budget-search {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        parser_of_command = commands.add_parser(
            name, help=command.HELP, description=command.DESCRIPTION, argument_default=None, allow_abbrev=False
        )
        command.add_options(parser_of_command)
        parser_of_command.add_argument(
            "-v", "--verbose", action="store_true", default=None, help="show a traceback when something fails"
        )
    return parser


def _dashed(argument: str) -> str:
    """``--batch_size=8`` is ``--batch-size=8``."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _repeat_options(argv: Sequence[str]) -> list[str]:
    """``--delta a b STUDY`` becomes ``--delta=a --delta=b STUDY``."""
    repeated: list[str] = []
    option: str | None = None
    for argument in argv:
        if option and _REPEATED[option].fullmatch(argument):
            if repeated[-1] == option:
                repeated.pop()
            repeated.append(f"{option}={argument}")
            continue
        option = argument if argument in _REPEATED else None
        repeated.append(argument)
    return repeated
