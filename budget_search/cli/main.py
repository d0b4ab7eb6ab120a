"""The entry point: run a command and return its exit code. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence

from budget_search.cli.commands import COMMANDS
from budget_search.cli.commands.run import INTERRUPTED
from budget_search.cli.parser import parse
from budget_search.core.errors import BudgetSearchError
from budget_search.core.formatting import printable
from budget_search.core.signals import ENDING
from budget_search.storage.credentials import mask_passwords, move_password_to_environment

# A message may quote data, which may hold a word of megabytes.
MAX_WORD_LENGTH = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code (0 done, 1 failed, 2 bad input, 3 none found, 130 interrupted)."""
    received = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        move_password_to_environment(received)
    verbose = "-v" in received or "--verbose" in received
    try:
        arguments = parse(received)
        verbose = bool(arguments.verbose)
        _handle_signals()
        return COMMANDS[arguments.command].run(arguments, received)
    except BudgetSearchError as error:
        if verbose:
            traceback.print_exc()
        print(f"budget-search: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be closed
            print("budget-search: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of the pipe has closed it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if verbose:
            traceback.print_exc()
        print(
            f"budget-search: unexpected {type(error).__name__}: {_one_line(error)}; -v shows the traceback; "
            "finished evaluations are kept; run the same command again to resume",
            file=sys.stderr,
        )
        return 1


def _handle_signals() -> None:
    """Treat SIGTERM and a closed terminal like Ctrl-C; a second signal exits at once.

    SIGHUP stays ignored under ``nohup``. SIGINT is always handled: a shell starts background commands with SIGINT
    ignored, and a script may still send it to them.
    """
    heeded = [number for number in ENDING if number in (signal.SIGINT, signal.SIGTERM) or not _is_ignored(number)]

    def interrupt(number: int, frame: object) -> None:
        for each in heeded:
            signal.signal(each, lambda *_: os._exit(INTERRUPTED))
        # joblib would warn about unfinished evaluations.
        warnings.simplefilter("ignore")
        raise KeyboardInterrupt

    for each in heeded:
        signal.signal(each, interrupt)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN


def _one_line(error: BaseException) -> str:
    masked = mask_passwords(str(error)).split()
    words = (word if len(word) <= MAX_WORD_LENGTH else f"{word[:MAX_WORD_LENGTH]}..." for word in masked)
    return printable(" ".join(words)) or type(error).__name__
