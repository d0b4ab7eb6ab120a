"""``budget-search run``, the default: search, print the report, export the answer."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from budget_search.cli.options import add_search_options, request_from
from budget_search.core.errors import BudgetSearchError
from budget_search.storage.credentials import OPTION, VARIABLE, mask_passwords

if TYPE_CHECKING:
    from budget_search.app.resolve import ResolvedRequest
    from budget_search.cli.progress import Console
    from budget_search.report.report import Report

HELP = "search for the fewest layers (the default)"
DESCRIPTION = (
    "Search for the fewest layers within each delta. Run the same command again to resume an interrupted search, "
    "or with another --delta to reuse all its trials."
)
INTERRUPTED = 130
ONLY_THE_FULL_MODEL = 3

add_options = add_search_options


def run(arguments: argparse.Namespace, received: Sequence[str]) -> int:
    request = request_from(arguments)
    from budget_search.app.resolve import resolve_request
    from budget_search.cli.progress import Console
    from budget_search.models.export_folder import refuse_foreign

    if arguments.dry_run:
        from budget_search.cli.commands import plan

        return plan.run(arguments, received)
    if request.output:
        refuse_foreign(Path(request.output))
    resolved = resolve_request(request)
    console = Console(quiet=bool(arguments.quiet))
    console.say(f"budget-search: {request.task} with {request.model}, study {resolved.folder.path}")
    report = _search(resolved, console, received)
    if report is None:
        return INTERRUPTED
    if (page := resolved.folder.page).exists():
        console.say(f"report with plots: {page}")
    try:
        if request.output:
            _export(resolved, report)
    except BudgetSearchError:
        # The search is finished: its report is printed before the error.
        _print(report, arguments.format)
        raise
    _print(report, arguments.format, exported=request.output)
    none_found = all(result.is_full for result in report.results)
    return ONLY_THE_FULL_MODEL if none_found and arguments.fail_if_none else 0


def _search(resolved: ResolvedRequest, console: Console, received: Sequence[str]) -> Report | None:
    """The report; None after Ctrl-C, with the best answer so far and the command to resume on stderr."""
    from budget_search.app.resolve import best_so_far
    from budget_search.app.search import search_or_read

    try:
        return search_or_read(resolved, console, _portable_command(received))
    except KeyboardInterrupt:
        # The terminal may be closed, and the database held by another process.
        with contextlib.suppress(OSError):
            console.close()
            with contextlib.suppress(BudgetSearchError):
                print(f"interrupted. {best_so_far(resolved)}", file=sys.stderr)
            command = mask_passwords(shlex.join(["budget-search", *received]))
            where = f" (with {VARIABLE} set as before)" if resolved.request.storage and OPTION not in command else ""
            print(f"To resume{where}: {command}", file=sys.stderr)
        return None
    finally:
        with contextlib.suppress(OSError):
            console.close()


def _export(resolved: ResolvedRequest, report: Report) -> None:
    """Export the answer of the smallest delta. Raises BudgetSearchError."""
    from budget_search.cli.commands.export import export_and_report

    request = resolved.request
    output = Path(str(request.output))
    export_and_report(resolved.folder, report, min(request.deltas), output, trust=request.trust_remote_code)


def _portable_command(received: Sequence[str]) -> str:
    """The command as the report shows it: base names instead of paths of this machine."""
    return shlex.join(["budget-search", *map(_base_name, received)])


def _base_name(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    if "://" in value:
        # An URL may hold a password.
        value = "URL"
    elif Path(value).is_absolute() or value.startswith(".."):
        value = Path(value).name
    return option + equals + value


def _print(report: Report, form: str | None, exported: str | None = None) -> None:
    from budget_search.report.renderers import render

    print(render([report], form or "table", exported).rstrip("\n"), flush=True)
